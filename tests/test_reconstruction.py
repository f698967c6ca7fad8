"""What a run has to show: reconstructions are of the right patches, examples of the right captions."""

import pytest
import torch
from torch import nn

from evaluation_report import examples
from image_captioner import patchify, random_masking
from image_transforms import EvaluationTransform, load_image, normalize
from images.image_folders import image_name
from reconstruction import Reconstructor, clearest_hidden_patch, reconstructor_from_state
from support.errors import UsageError
from tests.captioner_cases import random_captioner
from tests.training_cases import train_mae, write_config
from training import checkpoints


class Oracle(nn.Module):
    """An autoencoder that knows its pictures; with normalized targets, as it would be asked for them."""

    patch_size = 8

    def __init__(self, normalized: bool, error: float = 0.0):
        super().__init__()
        self.normalized, self.error = normalized, error

    def forward(self, pixels, kept):
        patches = patchify(pixels, self.patch_size) + self.error
        if self.normalized:
            mean, deviation = patches.mean(dim=2, keepdim=True), patches.var(dim=2, keepdim=True).sqrt()
            return (patches - mean) / deviation
        return patches


def reconstructor(model: nn.Module, normalized: bool = False) -> Reconstructor:
    return Reconstructor(model, EvaluationTransform(32), 0.75, normalized, torch.device("cpu"))


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.randint(
        0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )


@pytest.mark.parametrize("normalized", [False, True])
def test_a_perfect_model_gives_the_picture_back_also_from_normalized_targets(normalized, pictures):
    shown = reconstructor(Oracle(normalized), normalized).reconstruct(pictures)
    for view in (shown.original, shown.filled, shown.full):
        assert (view.int() - pictures.int()).abs().max() <= 1


def test_only_hidden_patches_are_greyed_and_filled(pictures):
    shown = reconstructor(Oracle(False, error=0.7)).reconstruct(pictures, seeds=[5, 6])
    _, hidden = random_masking(torch.tensor([5, 6]), 16, 0.75)
    assert torch.equal(shown.hidden, hidden)
    true, masked, filled, full = (patchify(view, 8).int() for view in shown[:4])
    for image in range(2):
        for place in range(16):
            is_hidden = place in hidden[image].tolist()
            assert (masked[image, place].float().view(-1, 3).std(dim=0).max() == 0) == is_hidden
            assert torch.equal(filled[image, place], (full if is_hidden else true)[image, place])
            assert not torch.equal(full[image, place], true[image, place])


def test_a_model_is_shown_without_dropout_and_left_as_it_was_also_after_an_error(pictures):
    model = Oracle(False)
    model.learns, model.frozen = nn.Dropout(), nn.Dropout().eval()
    seen = []
    model.register_forward_pre_hook(lambda *_: seen.append([module.training for module in model.modules()]))
    reconstructor(model).reconstruct(pictures)
    assert [module.training for module in model.modules()] == [True, True, False]
    model.error = "no number"
    with pytest.raises(TypeError):
        reconstructor(model).reconstruct(pictures)
    assert [module.training for module in model.modules()] == [True, True, False]
    assert seen == [[False] * 3] * 2


def test_the_clearest_hidden_patch_is_the_hidden_one_that_varies_most(pictures):
    model = Oracle(False)
    shown = reconstructor(model).reconstruct(pictures)
    place = int(shown.hidden[1, 4])
    row, column = 8 * (place // 4), 8 * (place % 4)
    board = ((torch.arange(8)[:, None] + torch.arange(8)) % 2 * 255).to(torch.uint8)
    pictures[1, :, row : row + 8, column : column + 8] = board
    true, predicted = clearest_hidden_patch(reconstructor(model).reconstruct(pictures), 8, index=1)
    assert torch.equal(true, board.expand(3, 8, 8))
    assert (predicted.int() - true.int()).abs().max() <= 1


def test_a_checkpoint_alone_shows_what_its_model_predicts(tiny_coco, tmp_path, pictures):
    config = write_config(tmp_path, "mae_config.yaml")
    train_mae(tiny_coco["data"], tmp_path / "out", config, "--epochs", "1")
    _, state = checkpoints.load_named(tmp_path / "out" / "encoder", "last", "encoder")
    shown = reconstructor_from_state(state, torch.device("cpu"))
    seen = shown.reconstruct(pictures, seeds=[5, 6])
    kept, hidden = random_masking(torch.tensor([5, 6]), 16, 0.75)
    predicted = shown.model(normalize(pictures), kept, hidden)
    patches = torch.gather(patchify(normalize(seen.filled), 8), 1, hidden[:, :, None].expand_as(predicted))
    reachable = predicted.clamp(normalize(torch.zeros(3, 1, 1, dtype=torch.uint8)).max(), 2.2)
    assert (patches - reachable).abs().median() < 0.02
    state["model"].popitem()
    with pytest.raises(UsageError, match="do not fit"):
        reconstructor_from_state(state, torch.device("cpu"))


def test_a_caption_as_long_as_the_decoder_writes_can_be_shown(make_tiny_coco):
    """An untrained model stutters up to its limit, and its text may take more tokens than it wrote."""
    paths = make_tiny_coco(val=1)
    captioner = random_captioner()
    references = dict(torch.load(paths["val_im2capts"], weights_only=True))
    (image_id,) = references
    image = captioner.transform(load_image(paths["val_images"] / image_name(image_id)))
    [[best, *_]] = captioner.decode(image[None])
    found = examples(
        captioner, lambda i: paths["val_images"] / image_name(i), references, {image_id: captioner.text(best)}
    )
    assert [found[kind][0].image_id for kind in found] == [image_id] * 3
    assert found["best"][0].attention.words == captioner.text(best).split()


def test_examples_are_the_best_the_middle_and_the_worst_by_cider(make_tiny_coco):
    paths = make_tiny_coco(val=7)
    captioner = random_captioner()
    ids = sorted(dict(torch.load(paths["val_im2capts"], weights_only=True)))
    texts = ("a red mat", "a cat sits", "near a road", "a dog runs", "on a cat", "a road", "a mat")
    references = {image_id: [text] for image_id, text in zip(ids, texts)}
    captions = dict(zip(ids, texts))  # right
    captions[ids[2]] = "a dog"  # wrong
    captions[ids[4]] = "on a cat, near a dog"  # half right
    references[ids[6]] = []  # nothing to compare with
    found = examples(captioner, lambda i: paths["val_images"] / image_name(i), references, captions, count=2)
    assert {kind: len(group) for kind, group in found.items()} == {"best": 2, "median": 2, "worst": 2}
    assert [example.image_id for example in found["worst"]] == [ids[4], ids[2]]
    worst = found["worst"][1]
    assert worst.figures["BLEU-2"] < 1e-6
    assert worst.caption == "a dog"
    assert worst.references == references[ids[2]]
    assert worst.picture.size == (320, 320)
    assert worst.attention.words == ["a", "dog"]
    figures = [example.figures["CIDEr"] for kind in ("best", "median", "worst") for example in found[kind]]
    assert figures == sorted(figures, reverse=True)
