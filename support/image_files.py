"""The one rule for all that read an image file: training, copies, `--check`, evaluation, caption.py.

It says which kinds are read, and that a file which is cut is no image.  `support.rgb` goes on from there, and
says how an opened image becomes upright RGB.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from support import jpeg
from support.errors import RunError

if TYPE_CHECKING:
    from PIL import Image

# Photographs, and what web pages show.  Others are not opened: for EPS, Pillow starts Ghostscript, which
# runs the program that the file is; TGA has no signature, so that any bytes may look like one.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
JPEGS = ("JPEG", "MPO")  # an MPO is a JPEG and more of them behind it, as stereo cameras and phones write


@contextmanager
def opened(file: BinaryIO) -> Iterator["Image.Image"]:
    """An image whose header is read and whose pixels are not.  Within, no library prints a warning.

    Args:
        file: at its start; it can seek.

    Raises:
        RunError: it is no image of a kind that is read here, or its end is missing.
        Exception: decoders raise all kinds of errors; `explained` puts them in words.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=FORMATS) as image:
            if image.format in JPEGS:
                _prepare_jpeg(image, file)
            yield image
    except UnidentifiedImageError:
        raise RunError(_unidentified(file)) from None


def _prepare_jpeg(image: "Image.Image", file: BinaryIO) -> None:
    """Refuses a file that is cut, which decoders may take for a grey part."""
    place = file.tell()
    if jpeg.is_cut(file):
        raise RunError("its end is missing")
    file.seek(place)


def _unidentified(file: BinaryIO) -> str:
    """Why Pillow sees no image in a file."""
    file.seek(0)
    if not file.read(1):
        return "it is empty"
    return f"it is damaged, or no image of a kind that is read here ({', '.join(FORMATS)})"


def explained(error: Exception) -> str:
    """Why an image cannot be read, in one line."""
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
