"""Images in a GPU's memory: the batches are those that files give, to a level or two of 255."""

import pytest
import torch

import image_cache
from coco.data import CocoData
from coco_loader import LoaderOptions, get_coco_loader
from image_transforms import TrainingTransform
from images.batched_crops import crop_and_resize
from tests.training_cases import assert_same, record_steps, stage_runner, state_of


@pytest.fixture(autouse=True)
def cache_device(device, monkeypatch):
    """As a toy, the CPU's memory stands in for the GPU's."""
    if device.type == "cpu":
        monkeypatch.setattr(image_cache, "_gpu", lambda: device)
        monkeypatch.setattr(image_cache, "_free_on", lambda gpu: 10**9)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_cropped_on_the_gpu_as_the_transform_crops_them(make_tiny_coco, device, workers):
    paths = make_tiny_coco(train=24, size=(320, 240))
    options = {"transform": TrainingTransform(224), "mode": "image_only", "shuffle": True}
    options["data"] = CocoData(paths)
    plain = get_coco_loader("train", 8, **options)
    cached_options = LoaderOptions(cache_images=True)
    with get_coco_loader("train", 8, num_workers=workers, options=cached_options, **options) as cached:
        for ours, theirs in zip(cached, plain, strict=True):
            assert ours.images.device.type == device.type
            assert (ours.images.cpu().int() - theirs.images.int()).abs().max() <= 2
            assert_same(ours._replace(images=0), theirs._replace(images=0))


@pytest.mark.parametrize("stage", ["encoder", "captioner"])
def test_a_run_stopped_in_an_epoch_goes_on_as_if_it_never_was(make_tiny_coco, tmp_path, stage):
    """And with another number of workers: crops are drawn in them, and made on the GPU."""
    run = stage_runner(make_tiny_coco(train=12, val=4, unlabeled=4)["data"], tmp_path)
    with pytest.MonkeyPatch.context() as context:
        whole = record_steps(context)
        run(stage, "whole", "--epochs", "2", cache_images=True, num_workers=2)
    with pytest.MonkeyPatch.context() as context:
        parts = record_steps(context, stop_after=2)
        with pytest.raises(BaseException, match="SIGTERM"):
            run(stage, "parts", cache_images=True)
    with pytest.MonkeyPatch.context() as context:
        rest = record_steps(context)
        run(stage, "parts", "-c", "last", "--epochs", "2", cache_images=True)
    assert parts + rest == pytest.approx(whole, rel=1e-3)
    assert state_of(tmp_path / "parts", stage)["progress"]["updates"] == len(whole)


@pytest.mark.gpu_only
def test_images_beyond_the_first_4_gigabytes_are_found(device):
    """An index of 32 bits would not reach them."""
    image = torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8)
    crop, width = torch.tensor([[5, 6, 30, 40, 1]]), torch.tensor([64])
    expected = crop_and_resize(image.flatten(), torch.tensor([0]), width, crop, 24)
    beyond = 2**32 + 12
    pixels = torch.zeros(beyond + image.numel(), dtype=torch.uint8, device=device)
    pixels[beyond:] = image.flatten().to(device)
    batch = crop_and_resize(pixels, torch.tensor([beyond]), width, crop, 24).cpu()
    assert (batch.int() - expected.int()).abs().max() <= 1
