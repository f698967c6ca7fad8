"""The one rule for all that read an image file: training, copies, `--check`, evaluation, caption.py.

It says which kinds are read, how many pixels an image may have, and that a file which is cut is no image.
`images.rgb` goes on from there, and says how an opened image becomes upright RGB.
"""

import functools
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from images import jpeg
from support.errors import RunError

if TYPE_CHECKING:
    from PIL import Image

# Photographs, and what web pages show.  Others are not opened: for EPS, Pillow starts Ghostscript, which
# runs the program that the file is; TGA has no signature, so that any bytes may look like one.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MORE_FORMATS = {"AVIF": "avif", "JPEG2000": "jpg_2000"}  # read where Pillow was built with a library for it
JPEGS = ("JPEG", "MPO")  # an MPO is a JPEG and more of them behind it, as stereo cameras and phones write

# Phones reach 200 megapixels.  On its way to RGB an image takes 14 bytes a pixel (measured), the worst kind,
# grey of floats, 21: at this limit 3.5 GB, and 5.
MOST_PIXELS = 250_000_000
# Above this, a JPEG is decoded at a half, a quarter or an eighth of its size, its shorter side still at least
# REDUCED_SIDE, twice that of the largest copies: 200 megapixels take 0.2 GB.  Other kinds come in full.
FULL_PIXELS = 89_000_000
REDUCED_SIDE = 2048  # pixels
PIXELS_IN_BYTE = 512  # of a JPEG, at most: a block of 8 by 8 pixels takes a bit or more

HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})  # in its first bytes


@functools.cache
def formats() -> tuple[str, ...]:
    """The kinds that are read, by Pillow's names."""
    from PIL import features

    return (*FORMATS, *(kind for kind, library in MORE_FORMATS.items() if features.check(library)))


@functools.cache
def suffixes() -> frozenset[str]:
    """The endings of the names of such files, in lower case, with the dot."""
    from PIL import Image

    kinds = {*formats(), *JPEGS}
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in kinds)


@contextmanager
def opened(file: BinaryIO) -> Iterator["Image.Image"]:
    """An image whose header is read and whose pixels are not.  Within, no library prints a warning.

    Args:
        file: at its start; it can seek.

    Raises:
        RunError: it is no image of a kind that is read here, it is too large, or its end is missing.
        Exception: decoders raise all kinds of errors; `explained` puts them in words.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with _our_limit(), Image.open(file, formats=formats()) as image:
            if image.format in JPEGS:
                _prepare_jpeg(image, file)
            yield image
    except UnidentifiedImageError:
        raise RunError(_unidentified(file)) from None
    except Image.DecompressionBombError as error:
        number = re.search("[0-9]+", str(error))
        pixels = f"{int(number[0]):,}" if number else "more"
        raise RunError(
            f"it has {pixels} pixels, and at most {MOST_PIXELS:,} are read: scale it down"
        ) from None


@contextmanager
def _our_limit() -> Iterator[None]:
    """Has Pillow refuse what is above our limit, before it takes memory for pixels, and warn of nothing.

    This holds for the whole process while it lasts: images are read in several processes, not in threads.
    """
    from PIL import Image

    theirs = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # it warns above this, and refuses above twice this
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = theirs


def _prepare_jpeg(image: "Image.Image", file: BinaryIO) -> None:
    """Refuses a file that lacks data, for which decoders may put grey; sets the size to decode at."""
    place = file.tell()
    if jpeg.is_cut(file):
        raise RunError("its end is missing")
    size, pixels = file.seek(0, os.SEEK_END), image.width * image.height
    if pixels > size * PIXELS_IN_BYTE:
        claim = f"{image.width:,} × {image.height:,}"
        raise RunError(f"its {size:,} bytes cannot hold the {claim} pixels it claims")
    file.seek(place)
    if pixels > FULL_PIXELS:
        image.draft(image.mode, (REDUCED_SIDE, REDUCED_SIDE))


def _unidentified(file: BinaryIO) -> str:
    """Why Pillow sees no image in a file."""
    file.seek(0)
    head = file.read(64)
    if not head:
        return "it is empty"
    if head[4:8] == b"ftyp" and HEIC_BRANDS & {head[place : place + 4] for place in range(8, len(head), 4)}:
        return "it is a HEIC image, which cannot be read here: convert it to JPEG"
    return f"it is damaged, or no image of a kind that is read here ({', '.join(formats())})"


def explained(error: Exception) -> str:
    """Why an image cannot be read, in one line."""
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
