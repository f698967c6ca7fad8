"""Random crops of many images at once, resized on the device that holds the images.

An antialiased bilinear resize is linear and works on rows and columns apart, so a crop, its resize and its
flip are two matrix products: (S, h) @ (h, w) @ (w, S).  Crops of different sizes go into one batched product,
padded to the largest; the padding has weight zero.

Shape letters: B batch, S side of the result, h and w sides of the largest crop, pixels.
"""

import torch
from torch import Tensor

ELEMENTS_AT_ONCE = 2**24  # pixel values gathered at a time: 16 bytes each of working memory
ROUND_UP = 32  # the crops' sides, so that buffers of few different sizes come and go


def crop_and_resize(pixels: Tensor, starts: Tensor, widths: Tensor, crops: Tensor, size: int) -> Tensor:
    """Crops images out of one flat buffer and resizes each to a square.

    Args:
        pixels: (bytes,) uint8, of all images: row by row, a pixel's three colors side by side.
        starts: (B,) int64 on the CPU, where in `pixels` each image begins.
        widths: (B,) int64 on the CPU, of the images.
        crops: (B, 5) int64 on the CPU, each `image_transforms.Crop`.
        size: S.

    Returns:
        (B, 3, S, S) uint8 on the device of `pixels`.  torchvision's antialiased resize rounds between its two
        passes, this one does not: they differ by a level of 255 or two.
    """
    height, width = (-(-int(side) // ROUND_UP) * ROUND_UP for side in crops[:, 2:4].amax(dim=0))
    at_once = max(1, ELEMENTS_AT_ONCE // (3 * height * width))
    # One copy for all, from pinned memory: the host need not wait.
    where = torch.cat([starts[:, None], widths[:, None], crops], dim=1)  # (B, 7)
    if pixels.is_cuda:
        where = where.pin_memory().to(pixels.device, non_blocking=True)
    parts = [_crop_and_resize(pixels, part, height, width, size) for part in where.split(at_once)]
    return torch.cat(parts)


def _crop_and_resize(pixels: Tensor, where: Tensor, height: int, width: int, size: int) -> Tensor:
    starts, widths, tops, lefts, heights_in, widths_in, flips = where[:, :, None].unbind(dim=1)  # (B, 1) each
    device = pixels.device
    # Beyond a crop's end its last row or column is read again; it has weight zero.
    rows = tops + torch.arange(height, device=device).minimum(heights_in - 1)  # (B, h)
    columns = lefts + torch.arange(width, device=device).minimum(widths_in - 1)  # (B, w)
    values = (3 * columns[:, :, None] + torch.arange(3, device=device)).flatten(1)  # (B, 3w)
    places = (starts + 3 * widths * rows)[:, :, None] + values[:, None, :]  # (B, h, 3w)
    images = pixels[places].float()

    down = resize_weights(heights_in, height, size)  # (B, S, h)
    across = resize_weights(widths_in, width, size)  # (B, S, w)
    across = torch.where(flips[:, :, None] > 0, across.flip(1), across)
    images = (down @ images).unflatten(2, (width, 3))  # (B, S, w, 3)
    images = images.permute(0, 3, 1, 2).flatten(1, 2) @ across.mT  # (B, 3S, S)
    return images.unflatten(1, (3, size)).round_().clamp_(0, 255).to(torch.uint8)


def resize_weights(lengths: Tensor, longest: int, size: int) -> Tensor:
    """How much each pixel of a side counts for each of the result, in an antialiased bilinear resize.

    The triangle of linear interpolation, as wide as a pixel of the result where that is the larger one: as in
    Pillow's `resize` and torchvision's.

    Args:
        lengths: (B, 1), pixels of the side, at most `longest`.
        longest: pixels that the weights are for; those beyond `lengths` get zero.
        size: S, pixels of the result's side.

    Returns:
        (B, S, longest) float32; the weights of a pixel of the result add up to 1.
    """
    lengths = lengths[:, :, None].float()  # (B, 1, 1)
    scale = lengths / size
    places = torch.arange(longest, device=lengths.device) + 0.5
    centers = (torch.arange(size, device=lengths.device)[:, None] + 0.5) * scale  # (B, S, 1)
    weights = (1 - (places - centers).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * (places < lengths)
    return weights / weights.sum(dim=2, keepdim=True)
