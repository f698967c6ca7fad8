"""`cache_images`: how a loader takes its images from memory, where they are decoded once.

    the cache of                   holds                      a loader worker           the device
    training, in a GPU's memory    images in their own size   draws the crops           crops, resizes, flips
    training, in shared memory     images in their own size   crops, resizes, flips
    evaluation                     squares, in shared memory  takes them as they are

A crop and a flip follow from the sample's seed exactly as they do without a cache, and from shared memory so
do the pixels.  A GPU's differ by a level of 255 or two (images/batched_crops.py).  On a CPU that way is
more than ten times slower than torchvision's resize, which takes 0.15 ms an image, so it is a GPU's alone.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from image_transforms import Crop, EvaluationTransform, TrainingTransform, image_size, load_image
from images.batched_crops import crop_and_resize
from images.image_store import ImageStore, store_images
from support import distributed
from support.errors import RunError
from training.sampling import seeded

GPU_SHARE = 0.7  # of the GPU's free memory, at most: the rest is for the training itself

# Those in use, by what they hold: the two loaders of a validation split share one.
_squares: WeakValueDictionary[object, ImageStore] = WeakValueDictionary()

Transform = Callable[[Tensor], Tensor]


class CachedImages:
    """A data set's images in shared memory, in their own size: the transform is still to come."""

    ready = False  # whether nothing is left to do but to take an image, which is quicker than to have it sent

    def __init__(self, store: ImageStore, transform: Transform):
        self.store = store
        with seeded(0):
            self.stand_in = torch.zeros_like(transform(torch.zeros(3, 64, 64, dtype=torch.uint8)))

    def image(self, number: int, transform: Transform, seed: int) -> Tensor:
        """An image, transformed as its seed says, (3, H, W) uint8; a RunError if it cannot be read."""
        image = self.store[number]
        with seeded(seed):
            return transform(image)


class CachedSquares(CachedImages):
    """The same, but they are transformed already."""

    ready = True

    def image(self, number: int, transform: Transform, seed: int) -> Tensor:
        return self.store[number]


class DrawnCrops:
    """What loader workers know of images in a GPU's memory: no pixels.  An "image" is the crop to make of it.

    That is (6,) int64: the image's number, and a `Crop`.
    """

    ready = False

    def __init__(self, store: ImageStore):
        self.sizes, self.errors = store.sizes, store.errors
        # The one pixel behind the last image, which is black.
        self.stand_in = torch.tensor([len(self.sizes), *Crop(0, 0, 1, 1, flip=False)])

    def image(self, number: int, transform: TrainingTransform, seed: int) -> Tensor:
        if number in self.errors:
            raise RunError(self.errors[number])
        with seeded(seed):
            return torch.tensor([number, *transform.draw(*self.sizes[number].tolist())])


class CropsOnGpu:
    """Makes pixels of the drawn crops of a batch, where the images are: in the memory of one device.

    Args:
        store: the images, to be copied there.
        device: a GPU.
        size: of the crops when they are resized, pixels.
    """

    def __init__(self, store: ImageStore, device: torch.device, size: int):
        pixels = store.shared.bytes
        self.pixels = torch.zeros(len(pixels) + 3, dtype=torch.uint8, device=device)
        self.pixels[:-3] = pixels
        self.starts = torch.cat([store.starts, store.starts.new_tensor([len(pixels)])])
        self.widths = torch.cat([store.sizes[:, 1], store.sizes.new_ones(1)])
        self.size = size

    def __call__(self, batch: NamedTuple) -> NamedTuple:
        """The batch with `images`, (B, 6) of `DrawnCrops`, as (B, 3, size, size) uint8 on the device."""
        numbers, crops = batch.images[:, 0], batch.images[:, 1:]
        starts, widths = self.starts[numbers], self.widths[numbers]
        return batch._replace(images=crop_and_resize(self.pixels, starts, widths, crops, self.size))


class Cache(NamedTuple):
    """Images in memory, from both sides of a loader."""

    images: CachedImages | DrawnCrops  # for the data set, and so for the workers
    finish: CropsOnGpu | None  # what the main process does with a batch


def cache_images(files: Sequence[Path], transform: Transform) -> Cache | None:
    """Decodes images once, into memory; None where they find no room on a machine of the run.

    Either way the main process prints one line.  Every process of the run is to call this.

    Args:
        files: of the images, each once.
        transform: of the data set; of an `EvaluationTransform`, which draws nothing, the results are kept.
    """
    evaluation = isinstance(transform, EvaluationTransform)
    store = _squares_of(files, transform) if evaluation else store_images(files, load_image, image_size)
    if isinstance(store, str):
        _say(f"{store}: they are decoded anew in each epoch")
        return None
    if evaluation:
        _say(f"{store} in shared memory, cropped and resized for evaluation")
        return Cache(CachedSquares(store, transform), None)
    gpu = _gpu()
    if isinstance(transform, TrainingTransform) and gpu is not None:
        needed, free = store.shared.size, _free_on(gpu)
        if all(distributed.gathered(needed <= GPU_SHARE * free)):
            finish = CropsOnGpu(store, gpu, transform.size)
            distributed.wait_for_all()  # what a machine shares goes with its first process's store
            _say(f"{store} in the GPU's memory")
            return Cache(DrawnCrops(store), finish)
    _say(f"{store} in shared memory")
    return Cache(CachedImages(store, transform), None)


def _squares_of(files: Sequence[Path], transform: EvaluationTransform) -> ImageStore | str:
    key = tuple(files), transform
    store = _squares.get(key)
    if store is None:
        store = store_images(files, partial(_square, transform=transform), (transform.size, transform.size))
        if isinstance(store, ImageStore):
            _squares[key] = store
    return store


def _square(file: Path, transform: EvaluationTransform) -> Tensor:
    return transform(load_image(file))


def _gpu() -> torch.device | None:
    """The GPU that this process trains on, if it does."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None


def _free_on(gpu: torch.device) -> int:
    """Bytes that are free in its memory."""
    return torch.cuda.mem_get_info(gpu)[0]


def _say(line: str) -> None:
    if distributed.is_main():
        print(f"cache_images: {line}", flush=True)
