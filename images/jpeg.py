"""Whether a JPEG file holds its image to the end."""

import os
import re
from typing import BinaryIO

START = b"\xff\xd8\xff"  # of every JPEG
END_OF_IMAGE = b"\xff\xd9"
START_OF_SCAN = 0xDA
# Between and after the scans of an image: tables, comments, further scans, and the end.
IN_IMAGE = frozenset(b"\xc4\xcc\xd9\xda\xdb\xdc\xdd\xfe" + bytes(range(0xE0, 0xF0)))
# A scan's data hold FF only before 00, or before a restart marker (D0 to D7).
MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)


def is_cut(file: BinaryIO) -> bool:
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
