"""Pre-resized copies of images: small JPEGs beside the originals, which training may read instead.

A copy's shorter side is the size asked for, or the original's where that is shorter.  It is upright RGB, a
JPEG of quality 95 with its colours at half resolution (4:2:0), and its time of change is the original's.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from images.image_files import describe_error
from images.image_folders import count_and_size, decoded, is_cut, picture_files
from support.errors import RunError, UsageError, prepare_command
from support.files import Record, naming, require_space

QUALITY, SUBSAMPLING = 95, "4:2:0"
BYTES = 0.7  # of a copy on average, for each pixel of a square as high as its shorter side: 46 KB at 256

Where = Mapping[str, Path]


def resized_folder(originals: Path, size: int) -> Path:
    """The folder of the copies of `size` pixels, beside that of the originals."""
    return originals.with_name(f"{originals.name}_{size}")


def with_copies(originals: Path) -> list[Path]:
    """The folder of the originals and those of their copies, of whatever size."""
    return [originals, *originals.parent.glob(f"{originals.name}_*")]


def with_resized(where: Where, size: int) -> dict[str, Path]:
    """The same locations, but the folders of images are those of their copies of `size` pixels."""
    folders = {key: path for key, path in where.items() if key.endswith("_images")}
    return {**where, **{key: resized_folder(path, size) for key, path in folders.items()}}


def make_copies(splits: Iterable[str], size: int, originals: Where, copies: Where, record: Record) -> None:
    """Makes what is missing of the copies of some splits, and notes in the record which are complete.

    Args:
        splits: whose images; the record has noted how many these are.
        size: of a copy's shorter side, pixels.
        originals: the file locations; `originals["train_images"]` is a folder of pictures.
        copies: the same, these folders being those of the copies.
        record: what is done.

    Raises:
        RunError: there is no room on the disk, or images cannot be read; all others are copied.
    """
    splits = [split for split in splits if not are_complete(split, size, copies, record)]
    lacking = [record.entries[f"{s}_images"][0] - count_and_size(copies[f"{s}_images"])[0] for s in splits]
    needed = sum(max(0, number) for number in lacking) * BYTES * size**2
    require_space(copies["data"], int(needed), f"copying pictures to {size} pixels")
    bad = 0
    for split in splits:
        bad_here = copy_folder(originals[f"{split}_images"], copies[f"{split}_images"], size)
        if not bad_here:
            record.note(_name(split, size), _state(split, copies, record))
        bad += bad_here
    if bad:
        total = sum(record.entries[f"{split}_images"][0] for split in splits)
        raise RunError(
            f"{bad:,} of {total:,} pictures cannot be read, all others are copied: mend or remove them, "
            "and run this again"
        )


def are_complete(split: str, size: int, copies: Where, record: Record) -> bool:
    """Whether all copies of a split are there, by the record and by a look into their folder."""
    return record.agrees(_name(split, size), _state(split, copies, record))


def size_for_training(
    splits: Sequence[str],
    image_size: int,
    originals: Where,
    record: Record,
    checkpoint: Mapping[str, Any] | None,
) -> int | None:
    """Which images a run trains on: copies as large as it needs, if there are such of all its splits.

    A run that goes on keeps to what it began with, so that it equals one that was never stopped.

    Args:
        splits: of COCO, in whose folders the images lie.
        image_size: the model's, pixels; smaller copies would have to be enlarged.
        originals: the file locations.
        record: what is done.
        checkpoint: the one that the run resumes, or None.

    Returns:
        The copies' size, the smallest that will do; None for the originals.

    Raises:
        UsageError: the run was begun with copies that are not there any more.
    """
    names = (re.fullmatch(rf"{splits[0]}_images_([0-9]+)", name) for name in record.entries)
    known = sorted(int(name[1]) for name in names if name)
    if checkpoint is not None:
        known = [checkpoint["resized_to"]] if checkpoint.get("resized_to") else []
    for size in known:
        complete = (are_complete(split, size, with_resized(originals, size), record) for split in splits)
        if size >= image_size and all(complete):
            return size
    if checkpoint is not None and known:
        raise UsageError(
            f"this run was begun with copies of {known[0]} pixels, and not all of them are there: make them "
            f"with `{prepare_command(originals, '--resize', known[0])}`"
        )
    return None


def copy_folder(originals: Path, copies: Path, size: int) -> int:
    """Copies each image of a folder that has no copy yet; lists and counts those that cannot be read."""
    from support.parallel import on_all_cores  # here, for training reads copies and makes none

    pictures = picture_files(originals)
    copies.mkdir(parents=True, exist_ok=True)
    work = partial(copy_picture, folder=copies, size=size)
    bad = 0
    for picture, reason in on_all_cores(work, pictures, f"copying {originals.name}", "picture"):
        if reason:
            bad += 1
            print(f"{picture}: {reason}")
    os.sync()  # once for all files, before the record says that they are whole
    return bad


def copy_picture(original: Path, folder: Path, size: int) -> str | None:
    """Copies one image, unless its copy is there; returns why it cannot be read, or None."""
    from PIL import Image

    from images.rgb import to_rgb

    copy = folder / original.name
    try:
        changed = original.stat().st_mtime_ns
        if copy.exists() and copy.stat().st_mtime_ns == changed and not is_cut(copy):
            return None
        with decoded(original) as image:
            image = to_rgb(image)
    except Exception as error:
        return describe_error(error)
    scale = min(1, size / min(image.size))
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    temporary = copy.with_name(copy.name + ".tmp")  # always the same: the next run overwrites it
    with naming(temporary):
        image.save(temporary, "JPEG", quality=QUALITY, subsampling=SUBSAMPLING)
    os.utime(temporary, ns=(changed, changed))
    os.replace(temporary, copy)
    return None


def _name(split: str, size: int) -> str:
    return f"{split}_images_{size}"


def _state(split: str, copies: Where, record: Record) -> dict[str, list[int] | None]:
    """What the record holds of a split's copies: number and size of the originals, as noted, and theirs."""
    return {
        "originals": record.entries.get(f"{split}_images"),
        "copies": count_and_size(copies[f"{split}_images"]),
    }
