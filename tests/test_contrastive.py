"""The second task of pre-training: pairs of crops, their colours, the loss, and the run with it."""

import math

import pytest
import torch
from torch.nn import functional as F

import train_encoder
from coco.data import CocoData
from coco_loader import LoaderOptions, get_coco_loader
from coco_samples import ImageBatch, load_transformed
from contrastive import GRAY, RECOLORED, ContrastiveAutoEncoder, contrastive_loss, recolored
from image_transforms import EvaluationTransform, TrainingTransform
from reconstruction import reconstructor_from_state
from support.errors import UsageError
from tests.training_cases import state_of, train_captions, train_mae, write_config
from train_encoder import MaeConfig
from training.config import load_config


def brute_force(projected: torch.Tensor) -> float:
    """Equation 1 of Chen et al. 2020, term by term."""
    total = 0.0
    for i, mine in enumerate(projected):
        partner = i + 1 if i % 2 == 0 else i - 1
        scores = [math.exp(F.cosine_similarity(mine, other, dim=0).item() / 0.1) for other in projected]
        total -= math.log(scores[partner] / (sum(scores) - scores[i]))
    return total / len(projected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_loss_is_the_papers(dtype):
    projected = torch.randn(10, 6, generator=torch.Generator().manual_seed(0), dtype=dtype)
    assert contrastive_loss(projected).dtype == dtype
    assert contrastive_loss(projected).item() == pytest.approx(brute_force(projected.double()), rel=1e-5)


def test_the_loss_of_bfloat16_is_taken_in_float32():
    projected = torch.randn(10, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(projected).item()
    assert loss == pytest.approx(brute_force(projected.double()), rel=1e-5)


def test_a_single_image_has_no_others_to_be_told_from():
    assert contrastive_loss(torch.randn(2, 6)).item() == 0


def pictures(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(60, 196, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)


def test_colours_follow_from_a_crops_own_seed():
    images, seeds = pictures(40), torch.arange(40) * 7919
    together = recolored(images, seeds)
    assert together.dtype == torch.uint8
    for index in range(40):
        alone = recolored(images[index : index + 1], seeds[index : index + 1])
        assert torch.equal(alone[0], together[index])
    assert not torch.equal(recolored(images, seeds + 1), together)


def test_as_many_crops_change_and_turn_gray_as_are_said_to():
    count = 4000
    images = pictures(1).expand(count, -1, -1, -1)
    result = recolored(images, torch.arange(count)).float()
    changed = (result != images).flatten(1).any(1)
    gray = (result.amax(1) - result.amin(1)).flatten(1).amax(1) <= 1
    for share, expected in ((changed, RECOLORED), (gray, RECOLORED * GRAY)):
        deviation = math.sqrt(expected * (1 - expected) / count)
        assert share.float().mean().item() == pytest.approx(expected, abs=4 * deviation)
    coloured = result[changed & ~gray]
    brightness = coloured.mean((1, 2, 3)) / images[0].float().mean()
    spread = coloured.std((1, 2, 3)) / images[0].float().std()
    assert brightness.min() < 0.65
    assert 1.35 < brightness.max() < 1.42
    assert spread.min() < 0.5
    assert spread.max() > 1.5


@pytest.mark.parametrize("cache_images", [False, True])
def test_a_batch_has_two_crops_of_each_image_side_by_side(make_tiny_coco, cache_images):
    data = CocoData.open(make_tiny_coco(train=7, val=4, unlabeled=3))
    options = LoaderOptions(crop_pairs=True, cache_images=cache_images)
    wanted = {"mode": "image_only", "shuffle": True, "data": data}
    splits, transform = ["train", "unlabeled"], TrainingTransform(32)
    loader = get_coco_loader(splits, 5, transform, **wanted, options=options)
    plain = get_coco_loader(splits, 5, transform, **wanted)
    for pairs, single in zip(loader, plain, strict=True):
        assert pairs.images.shape == (10, 3, 32, 32)
        assert torch.equal(pairs.images[::2], single.images)  # the first of a pair is the crop as it was
        assert torch.equal(pairs.image_ids[::2], single.image_ids)
        assert torch.equal(pairs.image_ids[::2], pairs.image_ids[1::2])
        assert len(pairs.seeds.unique()) == 10
        for image, image_id, seed in zip(pairs.images, pairs.image_ids.tolist(), pairs.seeds.tolist()):
            split = "train" if image_id in data.image_ids("train") else "unlabeled"
            assert torch.equal(image, load_transformed(data.image_file(split, image_id), transform, seed))
    val = get_coco_loader("val", 4, EvaluationTransform(32), mode="image_only", data=data, options=options)
    assert next(iter(val)).images.shape == (4, 3, 32, 32)


def test_a_pair_that_cannot_be_read_is_left_out_as_a_whole(make_tiny_coco):
    paths = make_tiny_coco(train=6, val=4, unlabeled=0)
    broken = sorted(paths["train_images"].iterdir())[0]
    broken.write_bytes(b"no image")
    options = LoaderOptions(crop_pairs=True, skip_unreadable=True)
    (batch,) = get_coco_loader("train", 6, TrainingTransform(32), mode="image_only", shuffle=True,
                               data=CocoData.open(paths), options=options)  # fmt: skip
    assert batch.images.shape[0] == 10
    assert int(broken.stem) not in batch.image_ids.tolist()
    assert len(batch.unreadable) == 1


def test_the_sum_of_both_losses_in_training_and_reconstruction_alone_in_validation(tmp_path):
    config = load_config(write_config(tmp_path, "mae_config.yaml", contrastive_weight=0.5), MaeConfig)
    torch.manual_seed(0)
    model = ContrastiveAutoEncoder(config)
    batch = ImageBatch(
        pictures(6).repeat_interleave(4, 2).repeat_interleave(4, 3), torch.arange(6), torch.arange(6)
    )
    changed = batch._replace(images=recolored(batch.images, batch.seeds))

    model.train()
    loss, patches = train_encoder.two_task_loss(model, batch, config)
    reconstruction, weight = train_encoder.reconstruction_loss(model, changed, config)
    seen = []
    handle = model.projection.register_forward_hook(lambda module, inputs, output: seen.append(output))
    train_encoder.two_task_loss(model, batch, config)
    handle.remove()
    assert patches == weight
    torch.testing.assert_close(loss, reconstruction + 0.5 * brute_force(seen[0]))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())

    model.eval()
    plain = train_encoder.reconstruction_loss(model, batch, config)
    assert train_encoder.two_task_loss(model, batch, config) == plain


def test_its_steps_make_crops_of_an_image_alike_and_those_of_others_unlike(tmp_path):
    config = load_config(write_config(tmp_path, "mae_config.yaml", contrastive_weight=1.0), MaeConfig)
    torch.manual_seed(0)
    model = ContrastiveAutoEncoder(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    batch = ImageBatch(images, torch.arange(16), torch.arange(16))
    projected = []
    model.projection.register_forward_hook(lambda module, inputs, output: projected.append(output.detach()))
    for _ in range(40):
        train_encoder.two_task_loss(model, batch, config)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    chance = math.log(15)
    assert contrastive_loss(projected[0]) > 0.9 * chance
    assert contrastive_loss(projected[-1]) < 0.2 * chance


def test_what_was_trained_so_reconstructs_and_serves_a_captioner(make_tiny_coco, tmp_path):
    paths = make_tiny_coco(train=12, val=4, unlabeled=3)
    config = write_config(tmp_path, "mae_config.yaml", contrastive_weight=1.0)
    train_mae(paths["data"], tmp_path / "out", config, "--epochs", "1")
    state = state_of(tmp_path / "out", "encoder")
    reconstructor = reconstructor_from_state(state, torch.device("cpu"))
    shown = reconstructor.reconstruct(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert shown.full.shape == (2, 3, 32, 32)
    train_captions(paths["data"], tmp_path / "out", write_config(tmp_path, "captioner_config.yaml"),
                   "-p", "last", "--epochs", "1")  # fmt: skip
    captioner = state_of(tmp_path / "out", "captioner")["model"]
    assert not [name for name in captioner if name.startswith(("projection", "encoder.projection"))]
    with pytest.raises(UsageError, match="contrastive_weight: the checkpoint was trained with"):
        train_mae(paths["data"], tmp_path / "out", config, "-c", "last", "--set", "contrastive_weight=0")
