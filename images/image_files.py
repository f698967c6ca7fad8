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
        Exception: decoders raise all kinds of errors; `describe_error` puts them in words.
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
    if jpeg_is_cut(file):
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


def describe_error(error: Exception) -> str:
    """Why an image cannot be read, in one line."""
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


JPEG_START = b"\xff\xd8\xff"  # of every JPEG
END_OF_IMAGE = b"\xff\xd9"
START_OF_SCAN = 0xDA
# Between and after the scans of an image: tables, comments, further scans, and the end.
IN_IMAGE = frozenset(b"\xc4\xcc\xd9\xda\xdb\xdc\xdd\xfe" + bytes(range(0xE0, 0xF0)))
# A scan's data hold FF only before 00, or before a restart marker (D0 to D7).
MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)


def jpeg_is_cut(file: BinaryIO) -> bool:
    """Whether the end of the image is missing, as in the file at which an unzip was interrupted.

    The markers are walked from the front, since what lies behind the image says nothing: phones append a
    video, cameras zeros or a second image, and any of them may hold the bytes of a marker.

    A file that ends like a JPEG is not read: once a scan has begun, none of its bytes look like an end.  This
    makes it two short reads for nearly every file.

    Args:
        file: a JPEG, opened for reading; it is left at any place.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(2)
    if not _skip_to_scan(file) or file.tell() > size - len(END_OF_IMAGE):
        return True
    scans = file.tell()
    file.seek(-len(END_OF_IMAGE), os.SEEK_END)
    if file.read() == END_OF_IMAGE:
        return False
    file.seek(scans)
    return not _has_end(file.read())


def _skip_to_scan(file: BinaryIO) -> bool:
    """Goes behind the header of the first scan; False where the file ends before.

    Segments are passed over by their length: one of them may hold a thumbnail, with markers of its own.
    """
    while byte := file.read(1):
        if byte != b"\xff":  # stray bytes between segments, which decoders pass over, too
            continue
        while byte == b"\xff":
            byte = file.read(1)
        if byte in (b"", b"\0") or 0xD0 <= byte[0] <= 0xD9:  # without a length
            continue
        length = file.read(2)
        file.seek(max(0, int.from_bytes(length, "big") - 2), os.SEEK_CUR)
        if byte[0] == START_OF_SCAN:
            return len(length) == 2
    return False


def _has_end(data: bytes) -> bool:
    """Whether the image ends in what follows the header of its first scan."""
    place = 0
    while marker := MARKER.search(data, place):
        code = marker[1][0]
        if code not in IN_IMAGE:  # no longer the image: a hole of zeros, say, and then what lies behind
            return False
        if code == END_OF_IMAGE[1]:
            return True
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return False
