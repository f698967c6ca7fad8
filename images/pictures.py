"""Looking through folders of pictures: how many, how large, and which cannot be read."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from images.image_files import JPEG_START, explained, jpeg_is_cut, opened
from support.errors import RunError
from support.parallel import on_all_cores

if TYPE_CHECKING:
    from PIL import Image

# COCO's names: the id in twelve digits, more where the id has more
NAME = re.compile(r"([0-9]{12,18})\.jpg")


def census(folder: Path) -> list[int]:
    """[number of pictures, their bytes]: what changes when a file is lost, added, cut or emptied."""
    if not folder.is_dir():
        return [0, 0]
    sizes = [entry.stat().st_size for entry in os.scandir(folder) if NAME.fullmatch(entry.name)]
    return [len(sizes), sum(sizes)]


def picture_ids(folder: Path) -> list[int]:
    """The ids of the pictures in a folder, ascending; none where there is no folder."""
    if not folder.is_dir():
        return []
    names = (NAME.fullmatch(entry.name) for entry in os.scandir(folder))
    return sorted(int(name[1]) for name in names if name)


def picture_files(folder: Path) -> list[Path]:
    """The pictures in a folder, in ascending order of their ids."""
    return [folder / f"{image_id:012d}.jpg" for image_id in picture_ids(folder)]


def is_cut(path: Path) -> bool:
    """Whether a picture's end is missing, as in the file at which an unzip was interrupted.

    Only of a JPEG is this seen without decoding it.  A PNG, say, may bear the name of one, too.
    """
    with open(path, "rb") as file:
        if file.read(len(JPEG_START)) == JPEG_START:
            return jpeg_is_cut(file)
    return trouble(path) is not None


@contextmanager
def decoded(path: Path) -> Iterator["Image.Image"]:
    """A picture, every pixel of it decoded, as `Image.verify()` does not do.

    Raises:
        Exception: it cannot be read; decoders raise all kinds of errors, and `explained` puts them in words.
    """
    with open(path, "rb") as file, opened(file) as image:
        image.load()
        yield image


def trouble(path: Path) -> str | None:
    """Why the picture cannot be read, or None."""
    try:
        with decoded(path):
            return None
    except Exception as error:
        return explained(error)


def check_pictures(folders: list[Path]) -> None:
    """Decodes every picture in the folders, and lists those that cannot be read.

    Raises:
        RunError: there are such.
    """
    paths = [path for folder in folders for path in picture_files(folder)]
    bad = 0
    for path, reason in on_all_cores(trouble, paths, "checking", "picture"):
        if reason:
            bad += 1
            print(f"{path}: {reason}")
    if bad:
        raise RunError(f"{bad:,} of {len(paths):,} pictures cannot be read: remove them, and run this again")
    print(f"all {len(paths):,} pictures can be read")
