"""Crops of many images at once against the transform that makes them one by one."""

import pytest
import torch
from torch.nn import functional as F

from image_transforms import TrainingTransform
from images import batched_crops
from images.batched_crops import crop_and_resize
from training.sampling import seeded

SIZES = [
    (40, 60),
    (60, 40),
    (33, 33),
    (200, 35),
    (8, 9),
    (1, 1),
    (64, 48),
]  # larger and smaller than the result


@pytest.fixture
def images() -> list[torch.Tensor]:
    """Noise, the worst there is for a resize, and a slope, on which a shift by half a pixel shows."""
    generator = torch.Generator().manual_seed(3)
    noise = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in SIZES]
    slopes = [torch.arange(h * w).view(1, h, w).expand(3, h, w) * 255 // (h * w) for h, w in SIZES]
    return [*noise, *(slope.to(torch.uint8) for slope in slopes)]


def stored(images: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The images side by side in memory, where each begins, and their widths."""
    pixels = torch.cat([image.permute(1, 2, 0).flatten() for image in images])
    ends = torch.tensor([image.numel() for image in images]).cumsum(0)
    return pixels, torch.cat([ends.new_zeros(1), ends[:-1]]), torch.tensor([i.shape[2] for i in images])


@pytest.mark.parametrize("size", [8, 32, 56])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.01, 0.1), (1.0, 1.0)])
def test_a_batch_is_what_the_transform_makes_of_each_image_to_a_level_or_two(images, size, scale):
    """From one seed the same crop and the same flip.  torchvision rounds between its two passes."""
    transform = TrainingTransform(size, scale)
    each, crops = [], []
    for seed, image in enumerate(images):
        with seeded(seed):
            each.append(transform(image))
        with seeded(seed):
            crops.append(transform.draw(*image.shape[1:]))
    assert {crop.flip for crop in crops} == {False, True}
    batch = crop_and_resize(*stored(images), torch.tensor(crops), size)
    assert batch.dtype == torch.uint8
    difference = (batch.int() - torch.stack(each).int()).abs()
    assert difference.max() <= 2
    assert difference.float().mean() < 0.3


def test_without_rounding_in_between_it_is_torch_s_own_resize(images):
    crops = torch.tensor([(0, 0, *image.shape[1:], 0) for image in images])
    batch = crop_and_resize(*stored(images), crops, 24)
    for image, ours in zip(images, batch):
        theirs = F.interpolate(image[None].float(), (24, 24), mode="bilinear", antialias=True)[0]
        assert (ours - theirs).abs().max() <= 0.5 + 1e-3


def test_in_parts_of_the_batch_it_is_the_same(images, monkeypatch):
    crops = torch.tensor([(0, 0, *image.shape[1:], 1) for image in images])
    whole = crop_and_resize(*stored(images), crops, 24)
    monkeypatch.setattr(batched_crops, "ELEMENTS_AT_ONCE", 1)
    assert torch.equal(crop_and_resize(*stored(images), crops, 24), whole)
