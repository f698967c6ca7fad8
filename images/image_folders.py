"""Folders of images: a camera's or a Mac's, with what is left out of them, and COCO's, whose files bear ids.

Of COCO's: how many images, how large, and why one of them cannot be read.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from images.image_files import HEIC_SUFFIXES, JPEG_START, describe_error, jpeg_is_cut, opened, suffixes

if TYPE_CHECKING:
    from PIL import Image

VAL_FRACTION = 0.1  # of the images of a folder that go to val, where nothing says which
ENDING = re.compile(r"\.\w{1,8}")
LISTED = 6  # endings of names; rarer ones are counted and not listed
HIDDEN, HEIC, FOLDER, LINK, CLOSED = "hidden", "HEIC", "folder", "link", "closed"
WORDS = {  # why something is left out, if it is not for its ending: of one, of many, and what would do
    HIDDEN: ("hidden file or folder", "hidden files and folders", ""),
    HEIC: ("HEIC image", "HEIC images", " (convert to JPEG)"),
    FOLDER: ("sub-folder", "sub-folders", " (--recursive looks inside)"),
    LINK: ("link to a folder", "links to folders", ""),
    CLOSED: ("folder that may not be read", "folders that may not be read", ""),
}


def find_images(folder: Path, recursive: bool = False) -> tuple[list[Path], Counter[str]]:
    """The images in a folder, by the endings of their names.

    Args:
        folder: where to look.
        recursive: whether to look into its sub-folders, too.  Links to folders are not followed: they may
            lead round in a circle, or to the whole disk.

    Returns:
        The files in order of name, and what was left out: how many, by a key of `WORDS` or by their ending.
    """
    left_out = Counter()
    return sorted(map(Path, walk(folder, recursive, left_out))), left_out


def walk(folder: Path, recursive: bool, left_out: Counter[str]) -> Iterator[str]:
    """The paths of the images in a folder, in any order; counts the rest, all as `find_images`."""
    folders = [os.fspath(folder)]
    while folders:
        inside = folders.pop()
        try:
            entries = list(os.scandir(inside))
        except OSError:
            if inside == os.fspath(folder):
                raise
            left_out[CLOSED] += 1
            continue
        for entry in entries:
            reason = _why_not(entry)
            if reason is None:
                yield entry.path
            elif reason == FOLDER and recursive:
                folders.append(entry.path)
            else:
                left_out[reason] += 1


def _why_not(entry: os.DirEntry) -> str | None:
    """Why an entry is no image, as a key of `WORDS` or as the ending of its name; None for an image."""
    if entry.name.startswith("."):  # a Mac leaves `._x.jpg`, which is no image, beside `x.jpg`
        return HIDDEN
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError:  # a link to itself, or to where we may not look
        is_folder = is_file = False
    if is_folder:
        return LINK if entry.is_symlink() else FOLDER
    ending = os.path.splitext(entry.name)[1].lower()
    if ending in HEIC_SUFFIXES:
        return HEIC
    if ending in suffixes() and (is_file or not os.path.exists(entry.path)):
        return None  # a link that leads nowhere is among them: reading it says so
    return ending if ENDING.fullmatch(ending) else "without a usual ending"


def in_words(left_out: Counter[str]) -> str:
    """What was left out of folders, and why, in one line; "" for nothing."""
    parts = []
    others = [(-number, ending) for ending, number in left_out.items() if ending not in WORDS]
    if others:
        number = -sum(count for count, _ in others)
        kinds = [f"{-count} {ending}" for count, ending in sorted(others)[:LISTED]]
        kinds += ["..."] * (len(others) > LISTED)
        parts.append(f"{number:,} file{'s' * (number > 1)} of other kinds ({', '.join(kinds)})")
    for reason, (one, many, advice) in WORDS.items():
        if left_out[reason]:
            parts.append(f"{left_out[reason]:,} {one if left_out[reason] == 1 else many}{advice}")
    return f"left out {', '.join(parts)}" if parts else ""


def by_hash(name: str) -> float:
    """A number in [0, 1) that follows from a name alone: dealt to val by it, images stay when more come."""
    return int(hash_of(f"split {name}")[:13], 16) / 16**13


def hash_of(text: str) -> str:
    """The SHA-256 of a name that need not be Unicode, in hexadecimal digits."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


# COCO's names: the id in twelve digits, more where the id has more
NAME = re.compile(r"([0-9]{12,18})\.jpg")


def image_name(image_id: int) -> str:
    """COCO's file name of an image: its id in twelve digits."""
    return f"{image_id:012d}.jpg"


def count_and_size(folder: Path) -> list[int]:
    """[number of images, their bytes]: what changes when a file is lost, added, cut or emptied."""
    if not folder.is_dir():
        return [0, 0]
    sizes = [entry.stat().st_size for entry in os.scandir(folder) if NAME.fullmatch(entry.name)]
    return [len(sizes), sum(sizes)]


def picture_ids(folder: Path) -> list[int]:
    """The ids of the images in a folder, ascending; none where there is no folder."""
    if not folder.is_dir():
        return []
    names = (NAME.fullmatch(entry.name) for entry in os.scandir(folder))
    return sorted(int(name[1]) for name in names if name)


def picture_files(folder: Path) -> list[Path]:
    """The images in a folder, in ascending order of their ids."""
    return [folder / image_name(image_id) for image_id in picture_ids(folder)]


def is_cut(path: Path) -> bool:
    """Whether an image's end is missing, as in the file at which an unzip was interrupted.

    Only of a JPEG is this seen without decoding it.  A PNG, say, may bear the name of one, too.
    """
    with open(path, "rb") as file:
        if file.read(len(JPEG_START)) == JPEG_START:
            return jpeg_is_cut(file)
    return decoding_error(path) is not None


@contextmanager
def decoded(path: Path) -> Iterator["Image.Image"]:
    """An image, every pixel of it decoded, as `Image.verify()` does not do.

    Raises:
        Exception: it cannot be read; decoders raise all kinds of errors; see `describe_error`.
    """
    with open(path, "rb") as file, opened(file) as image:
        image.load()
        yield image


def decoding_error(path: Path) -> str | None:
    """Why the image cannot be read, or None."""
    try:
        with decoded(path):
            return None
    except Exception as error:
        return describe_error(error)
