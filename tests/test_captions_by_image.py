"""Captions by image compute what pairs do: the same pairs, the same loss, the same gradients."""

from functools import partial

import pytest
import torch

from coco.data import CocoData
from coco.tokenizer import PAD, load_tokenizer
from coco_loader import CaptFirstDataset, ImageCaptionsDataset, LoaderOptions, get_coco_loader
from image_captioner import visible_patches
from image_transforms import EvaluationTransform, TrainingTransform, load_image, normalize
from tests.captioner_cases import random_model
from train_captioner import caption_loss


@pytest.fixture
def uneven_coco(tiny_coco):
    """Tiny COCO with 0 to 7 captions an image, an image's captions not side by side in the file."""
    entries = torch.load(tiny_coco["train_tokenized"], weights_only=True)
    ids = sorted({entry["image_id"] for entry in entries})
    numbers = dict(zip(ids, (7, 5, 1, 0, 3, 6)))
    captions = [entry["caption"] for entry in entries]
    uneven = [
        {"image_id": image_id, "caption": captions[(3 * number + image_id) % len(captions)]}
        for number in range(7)
        for image_id in ids
        if number < numbers[image_id]
    ]
    torch.save(uneven, tiny_coco["train_tokenized"])
    return tiny_coco


@pytest.mark.parametrize("per_image", [2, 5, 9])
def test_the_samples_hold_every_pair_once(uneven_coco, per_image):
    pairs = CaptFirstDataset("train", EvaluationTransform(16), data=CocoData(uneven_coco))
    grouped = ImageCaptionsDataset(
        "train", EvaluationTransform(16), data=CocoData(uneven_coco), captions_per_image=per_image
    )
    expected = sorted((pair.image_id, tuple(pair.tokens.tolist())) for pair in pairs)
    found = []
    for sample in grouped:
        assert len(sample.tokens) == per_image
        rows = [tuple(token for token in row if token != pairs.pad_id) for row in sample.tokens.tolist()]
        found += [(sample.image_id, row) for row in rows if row]
    assert sorted(found) == expected
    assert len(grouped) == sum(-(-number // per_image) for number in (7, 5, 1, 3, 6))


@pytest.mark.parametrize("per_image", [1, 2, 5])
def test_a_sample_is_as_long_as_its_longest_caption(uneven_coco, per_image):
    loader = get_coco_loader(
        "train",
        1,
        EvaluationTransform(16),
        shuffle=True,
        data=CocoData(uneven_coco),
        options=LoaderOptions(length_buckets=True, captions_per_image=per_image, context_length=8),
    )
    dataset = loader.dataset
    assert len(set(dataset.lengths.tolist())) > 1
    assert dataset.lengths.tolist() == [
        int((sample.tokens != dataset.pad_id).sum(dim=-1).max()) for sample in dataset
    ]
    assert loader.batch_sampler.lengths.tolist() == dataset.lengths.tolist()


def test_each_image_is_decoded_once_an_epoch(tiny_coco, monkeypatch):
    """The public original decoded each image five times an epoch, once for every caption."""
    decoded = []
    monkeypatch.setattr("coco_samples.load_image", lambda path: decoded.append(path.name) or load_image(path))
    loader = get_coco_loader(
        "train",
        4,
        EvaluationTransform(16),
        shuffle=True,
        data=CocoData(tiny_coco),
        options=LoaderOptions(captions_per_image=5),
    )
    assert sum(len(batch.tokens) for batch in loader) == 30
    assert sorted(decoded) == sorted(path.name for path in tiny_coco["train_images"].iterdir())


def test_one_caption_about_sides_keeps_the_image_from_being_mirrored(tiny_coco):
    dataset = ImageCaptionsDataset(
        "train",
        TrainingTransform(16, (1, 1), (4 / 3, 4 / 3), 1.0),
        data=CocoData(tiny_coco),
        captions_per_image=5,
    )
    upright = ImageCaptionsDataset(
        "train",
        TrainingTransform(16, (1, 1), (4 / 3, 4 / 3), 0.0),
        data=CocoData(tiny_coco),
        captions_per_image=5,
    )
    assert all(torch.equal(one.image, other.image) for one, other in zip(dataset, upright))


def test_loss_and_gradients_are_those_of_the_pairs_taken_one_by_one(uneven_coco):
    torch.manual_seed(0)
    tokenizer = load_tokenizer(uneven_coco["tokenizer"])
    pad_id = tokenizer.token_to_id(PAD)
    model = random_model(tokenizer.get_vocab_size(), 30, image_size=16).double()
    arguments = {"transform": EvaluationTransform(16), "data": CocoData(uneven_coco)}
    gradients, losses = [], []
    for batch_size, per_image in ((1, 1), (6, 5)):
        model.zero_grad()
        loss_sum = weight_sum = 0.0
        options = LoaderOptions(captions_per_image=per_image)
        for batch in get_coco_loader("train", batch_size, options=options, **arguments):
            loss, weight = caption_loss(
                lambda images, tokens, kept: model(images.double(), tokens, kept=kept), batch, pad_id, 0.1
            )
            loss_sum, weight_sum = loss_sum + loss * weight, weight_sum + weight
        (loss_sum / weight_sum).backward()
        losses.append(loss_sum / weight_sum)
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-10)
    for one, other in zip(*gradients):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


def test_training_sees_the_patches_that_the_seeds_draw_and_validation_all(uneven_coco):
    torch.manual_seed(0)
    tokenizer = load_tokenizer(uneven_coco["tokenizer"])
    model, pad_id = random_model(tokenizer.get_vocab_size(), 30, image_size=16), tokenizer.token_to_id(PAD)
    arguments = {"transform": EvaluationTransform(16), "data": CocoData(uneven_coco)}
    (batch, *_) = get_coco_loader("train", 6, options=LoaderOptions(captions_per_image=5), **arguments)
    half = partial(visible_patches, num_patches=4, dropout=0.5)
    memory = model.encoder(normalize(batch.images), half(batch.seeds))
    assert memory.shape[1] == 2
    by_hand, _ = caption_loss(lambda _, tokens, kept: model.decoder(tokens, memory), batch, pad_id, 0.1)
    assert caption_loss(model, batch, pad_id, 0.1, half)[0] == by_hand
    everything, _ = caption_loss(model, batch, pad_id, 0.1)
    assert by_hand != everything
    with torch.no_grad():
        assert caption_loss(model, batch, pad_id, 0.1, half)[0] == everything


def test_sequences_of_one_memory_side_by_side_equal_memories_repeated():
    torch.manual_seed(0)
    model = random_model(50, 30, image_size=16).double()
    images, tokens = torch.randn(3, 3, 16, 16, dtype=torch.double), torch.randint(50, (6, 9))
    together = model(images, tokens)
    repeated = model(images.repeat_interleave(2, dim=0), tokens)
    assert (together - repeated).abs().max() < 1e-10
