"""What a loader of COCO brings, sample by sample and in batches, and what its data sets share.

Images leave a loader as uint8, (B, 3, H, W); `image_transforms.normalize` makes floats of them on the device.

Shape letters: B batch, T caption tokens, H and W the model's image size.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from coco.data import CocoData
from image_transforms import EvaluationTransform, TrainingTransform, load_image, stack_images
from support.errors import RunError
from training.loading import samples_or_errors
from training.sampling import Key, mix, seeded

if TYPE_CHECKING:
    from image_cache import CachedImages, DrawnCrops

# From an image as it is, (3, h, w) uint8, to one of the model's size, (3, H, W) uint8.
Transform = TrainingTransform | EvaluationTransform | Callable[[Tensor], Tensor]


class CaptionBatch(NamedTuple):
    images: Tensor  # (B, 3, H, W) uint8
    tokens: Tensor  # (B·C, T) int64: <SOS> ... <EOS>, then <PAD>; C captions of an image, 1 for pairs
    image_ids: Tensor  # (B,) int64
    seeds: Tensor  # (B,) int64, each sample's own
    unreadable: tuple[str, ...] = ()  # why samples were left out: training skips them


class ReferenceBatch(NamedTuple):
    images: Tensor  # (B, 3, H, W) uint8
    captions: list[list[str]]  # B lists, usually of five; empty where an image has no caption
    image_ids: Tensor  # (B,) int64


class ImageBatch(NamedTuple):
    images: Tensor  # (B, 3, H, W) uint8; of pairs of crops, both of each image side by side
    image_ids: Tensor  # (B,) int64
    seeds: Tensor  # (B,) int64, each sample's own
    unreadable: tuple[str, ...] = ()  # why samples were left out: training skips them


class CaptionSample(NamedTuple):
    image: Tensor  # (3, H, W) uint8
    tokens: Tensor  # (T,) int64, or (C, T) padded
    image_id: int
    seed: int


class ReferenceSample(NamedTuple):
    image: Tensor  # (3, H, W) uint8
    captions: list[str]
    image_id: int


class ImageSample(NamedTuple):
    image: Tensor  # (3, H, W) uint8
    image_id: int
    seed: int


Sample = CaptionSample | ReferenceSample | ImageSample
Batch = CaptionBatch | ReferenceBatch | ImageBatch


class CocoDataset(Dataset):
    """What the three data sets share.

    Each has its own `sample(index, seed)` and `collate(samples)`; those for training also `stand_in()`, a
    sample with a black image, which no loss counts: the batch where none of its own could be read.
    """

    split: str  # its name; the names of several, joined by +
    image_ids: Tensor  # (samples,) int64, the image of each sample
    data: CocoData
    transform: Transform
    unit = "images"  # what a sample is
    images_per_sample = 1  # of the model's size
    skip_unreadable = False  # True, for training only: a batch leaves out what cannot be read, and says so
    cached: "CachedImages | DrawnCrops | None" = None  # the images where they are kept in memory
    cached_numbers: Tensor  # (samples,) int64, which of these is each sample's

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, key: int | Key) -> Sample:
        """The sample of a key (index, seed); a plain index has a fixed seed.

        Raises:
            RunError: its image cannot be read.
        """
        index, seed = key if isinstance(key, tuple) else (key, mix(0, 0, key))
        return self.sample(range(len(self))[index], seed)

    def __getitems__(self, keys: Sequence[Key]) -> list[Sample | RunError]:
        """The samples of a batch, as a `Loader` asks for them."""
        return samples_or_errors(self, keys)

    def describe(self) -> str:
        """Which images it reads and how many samples it has, for the first line of a run."""
        return f"{self.split} {len(self):,} {self.unit}, {self.data.image_kind()}"

    def files(self) -> tuple[list[Path], Tensor]:
        """The files of the images, each once, and (samples,) int64, which of them is each sample's."""
        image_ids, numbers = self.image_ids.unique(return_inverse=True)
        return [self.data.image_file(self.split, image_id) for image_id in image_ids.tolist()], numbers

    def keep_in_memory(self) -> Callable[[Batch], Batch] | None:
        """Decodes the images once, if there is room; returns what is then to be done with a batch."""
        from image_cache import cache_images  # here, for it is needed with `cache_images` only

        files, numbers = self.files()
        cache = cache_images(files, self.transform)
        if cache is None:
            return None
        self.cached, self.cached_numbers = cache.images, numbers
        return cache.finish

    def file_of(self, index: int) -> Path:
        """Where a sample's image lies."""
        return self.data.image_file(self.split, int(self.image_ids[index]))

    def image(self, index: int, transform: Transform, seed: int) -> Tensor:
        """A sample's image, transformed as its seed says, (3, H, W) uint8; of a GPU's cache, its crop."""
        if self.cached is None:
            return load_transformed(self.file_of(index), transform, seed)
        return self.cached.image(int(self.cached_numbers[index]), transform, seed)

    def black_image(self) -> Tensor:
        """What stands in for an image that cannot be read."""
        return black(self.transform) if self.cached is None else self.cached.stand_in

    def sample_bytes(self) -> int:
        """What the images of a sample take in a batch."""
        return self.images_per_sample * self.black_image().nbytes

    def batch(self, samples: Sequence[Sample | RunError]) -> Batch | RunError:
        """The batch of some samples; or, unless they are to be skipped, the first error among them."""
        errors = [sample for sample in samples if isinstance(sample, RunError)]
        if errors and not self.skip_unreadable:
            return errors[0]
        readable = [sample for sample in samples if not isinstance(sample, RunError)]
        batch = self.collate(readable or [self.stand_in()])
        return batch._replace(unreadable=tuple(map(str, errors))) if errors else batch


def load_transformed(path: Path, transform: Transform, seed: int) -> Tensor:
    """An image, read and transformed; what is random about it follows from `seed` alone."""
    image = load_image(path)
    with seeded(seed):
        return transform(image)


def black(transform: Transform) -> Tensor:
    """A black image of the size that `transform` makes, to stand in where nothing can be read."""
    with seeded(0):
        return transform(torch.zeros(3, 64, 64, dtype=torch.uint8))


def batched(images: Sequence[Tensor]) -> Tensor:
    """Images as a batch by `stack_images`; drawn crops, (6,) each, as (B, 6)."""
    return stack_images(images) if images[0].dim() == 3 else torch.stack(list(images))
