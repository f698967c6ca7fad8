"""From an image file to the model's pixels: upright RGB, crops, ImageNet statistics.

An image takes three steps, and memory traffic decides where each is done:

1. `load_image` (or `to_tensor`, for an image already opened): upright RGB, (3, h, w) uint8.
2. A transform, in a loader worker: crop, resize, maybe mirror.  Its pixels are still uint8, so that a batch
   is a quarter of the size on its way from worker to device.
3. `normalize`, on the device: scaled down to [0, 1], then normalized by the ImageNet statistics.

Shape letters: B batch, h and w the image's own size, H and W the model's.
"""

import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from images.image_files import JPEGS, describe_error, opened
from images.rgb import to_rgb, turn
from support.errors import RunError, printable

# Mean and standard deviation of ImageNet's training pixels in [0, 1], for red, green and blue.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAE_CROP_SCALE = (0.2, 1.0)  # fraction of the image's area; the write-up's "big variance in scale"

# Each of Pillow's turns: whether rows become columns, and then along which dimensions it is mirrored.
TENSOR_TURNS = {
    Image.Transpose.FLIP_LEFT_RIGHT: (False, (-1,)),
    Image.Transpose.ROTATE_180: (False, (-2, -1)),
    Image.Transpose.FLIP_TOP_BOTTOM: (False, (-2,)),
    Image.Transpose.TRANSPOSE: (True, ()),
    Image.Transpose.ROTATE_270: (True, (-1,)),
    Image.Transpose.TRANSVERSE: (True, (-2, -1)),
    Image.Transpose.ROTATE_90: (True, (-2,)),
}


# ---------------------------------------------------------------------------------------- transforms


class Crop(NamedTuple):
    """A crop of an image, in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


@dataclass(frozen=True)
class TrainingTransform:
    """A random crop of random size and shape, resized to a square, mirrored half of the time.

    Draws from torch's global generator: wrap a call in `training.sampling.seeded` to fix the draw.
    """

    size: int = 224  # side of the result, pixels
    scale: tuple[float, float] = MAE_CROP_SCALE  # least and greatest area of the crop, of the image's
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # least and greatest width / height of the crop
    flip_probability: float = 0.5  # how often it is mirrored

    def __call__(self, image: Tensor | Image.Image) -> Tensor:  # -> (3, H, W) uint8
        image = to_tensor(image)
        *box, flip = self.draw(*image.shape[1:])
        image = resized(F.crop(image, *box), self.size)
        return F.horizontal_flip(image) if flip else image

    def draw(self, height: int, width: int) -> Crop:
        """What to cut out of an image of that size, pixels, and whether to mirror it."""
        shape = torch.empty(()).expand(3, height, width)  # all that torchvision asks of an image
        box = RandomResizedCrop.get_params(shape, self.scale, self.ratio)
        return Crop(*box, flip=bool(torch.rand(()) < self.flip_probability))

    def without_flip(self) -> "TrainingTransform":
        """The same transform, but it never mirrors: for a caption that speaks of left or right."""
        return replace(self, flip_probability=0.0)


@dataclass(frozen=True)
class EvaluationTransform:
    """The largest square in the middle of the image, resized.

    That is the shorter side resized to `size` and a centre crop, in the other order, so that a
    panorama is never blown up before most of it is thrown away.  The customary detour over 256 / 224 of the
    size would show the model 77 % of that square; captions speak of the whole image, so no more is cut
    than must be.
    """

    size: int = 224  # side of the result, pixels

    def __call__(self, image: Tensor | Image.Image) -> Tensor:  # -> (3, H, W) uint8
        return resized(central_square(to_tensor(image)), self.size)


def resized(image: Tensor, size: int) -> Tensor:
    """An image, (3, h, w), as a square of `size` pixels a side, by torchvision's antialiased resize.

    That takes half the time where a pixel's three colours lie side by side in memory.  Decoders leave them
    so, but a crop does not look so to it.  The result lies so, too.
    """
    image = image[None].contiguous(memory_format=torch.channels_last)
    return F.resize(image, [size, size], antialias=True)[0]


def stack_images(images: Sequence[Tensor]) -> Tensor:
    """Pictures, each (3, H, W), as a batch (B, 3, H, W); in memory, colours side by side as in `resized`."""
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def central_square(image: Tensor | Image.Image) -> Tensor | Image.Image:
    """What evaluation sees of an image, in the image's own resolution."""
    return F.center_crop(image, [min(F.get_size(image))] * 2)


def normalize(images: Tensor) -> Tensor:
    """Scales pixels down to [0, 1] and normalizes them by the ImageNet statistics, on the device they are on.

    Args:
        images: (..., 3, H, W) uint8, as the loaders deliver them.

    Returns:
        (..., 3, H, W) float32, about 0 on average with standard deviation 1.

    Raises:
        TypeError: the pixels are not uint8, so they may have been normalized before.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"normalize expects uint8 pixels in 0..255, got {images.dtype}: normalized already?")
    # The loaders' batches have their colours side by side; the models are given one plane a colour.
    normalized = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD)):
        # Plain numbers, not a tensor of three: its copy to the device would make the host wait.
        normalized[..., channel, :, :].sub_(mean).div_(std)
    return normalized


def denormalize(images: Tensor) -> Tensor:
    """Undoes `normalize`, for showing a reconstruction: (..., 3, H, W) float to uint8, clipped to 0..255."""
    statistics = {"dtype": torch.float32, "device": images.device}
    mean = torch.tensor(IMAGENET_MEAN, **statistics)[:, None, None]
    std = torch.tensor(IMAGENET_STD, **statistics)[:, None, None]
    return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


# ------------------------------------------------------------------------------------------- reading


def load_image(path: str | Path) -> Tensor:
    """Reads an image file as upright RGB.

    Returns:
        (3, h, w) uint8.

    Raises:
        RunError: the file is missing, empty, cut, no image, or above the limit of `images.image_files`.
    """
    return image_from(Path(path).read_bytes, path)


def image_from(read: Callable[[], bytes], name: str | Path) -> Tensor:
    """The same, of what `read` gives; `name` is for messages."""
    try:
        return _decode(read())
    except Exception as error:  # damage makes decoders raise a zoo: OSError, SyntaxError, struct.error, ...
        raise RunError(f"cannot read the picture {printable(name)}: {describe_error(error)}") from error


def _decode(data: bytes) -> Tensor:
    """The bytes of an image file as (3, h, w) uint8.

    Ordinary JPEGs are decoded by torchvision, a quarter faster than by Pillow and to the same pixels.
    Whatever is odd, in kind or by damage, goes to Pillow, which knows more kinds and words its errors better.
    What the orientation is, Pillow says of all: torchvision reads no XMP.
    """
    with opened(io.BytesIO(data)) as image:
        reduced = bool(image.decoderconfig)  # torchvision cannot decode at a part of the size
        if image.format in JPEGS and image.mode in ("L", "RGB") and not reduced:
            with suppress(RuntimeError):
                encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                return _turned(decode_image(encoded, ImageReadMode.RGB), turn(image))
        return to_tensor(image)


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of what `load_image` makes of a file, by its header alone; raises as that does."""
    try:
        with open(path, "rb") as file, opened(file) as image:
            # Of a TIFF, Pillow gives the upright size, and turns the pixels as it loads them.
            transpose = None if image.format == "TIFF" else turn(image)
            width, height = image.size
    except Exception as error:
        raise RunError(f"cannot read the picture {printable(path)}: {describe_error(error)}") from error
    swapped = transpose is not None and TENSOR_TURNS[transpose][0]
    return (width, height) if swapped else (height, width)


def _turned(image: Tensor, transpose: Image.Transpose | None) -> Tensor:
    """An image, (3, h, w), turned as Pillow would turn it."""
    if transpose is None:
        return image
    transposed, flipped = TENSOR_TURNS[transpose]
    image = image.mT if transposed else image
    return image.flip(flipped) if flipped else image


def to_tensor(image: Tensor | Image.Image) -> Tensor:
    """Any Pillow image as upright RGB, (3, h, w) uint8.  A tensor is taken to be that already."""
    return image if isinstance(image, Tensor) else F.pil_to_tensor(to_rgb(image))
