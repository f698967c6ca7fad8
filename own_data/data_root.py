"""Makes a data root in COCO's layout of a folder of images and captions, and keeps it up to date.

    ROOT/train2017/, val2017/        the images with captions, under COCO's kind of names
    ROOT/unlabeled2017/, test2017/   those without; test2017/ has what must be kept from training
    ROOT/annotations/                their captions
    ROOT/file_names.json             by id, where in the folder each image came from
    ROOT/splits.json                 a split file, where there are images for test: they lie in val2017/

An image is a hard link to the original: it takes no room, works on Windows, and survives when the original is
moved or removed.  On another disk it is a symbolic link instead, which does not.
"""

import json
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coco.tokenizer_choice import COCO_SPLIT
from images.image_files import describe_error, opened
from images.image_folders import NAME, count_and_size
from own_data.folder_index import FolderIndex
from own_data.reading import Image, OwnData, read_own_data, report
from support import interrupts
from support.errors import UsageError
from support.files import Record, read_json, replacing, require_space
from support.progress_bars import progress_bar

PART = ".tmp"  # behind the name of a file that is being written
FOLDERS = ("train", "val", "test", "unlabeled")


def make_root(own: OwnData, where: Mapping[str, Path], record: Record) -> None:
    """Makes or updates a data root, unless it is there and nothing has changed.

    Args:
        own: the folder, and what to make of it.
        where: the file locations of the root.
        record: of the root; its entry "own" says from which folder it was made.

    Raises:
        UsageError: the root holds other data, or the folder cannot make one; see `read_own_data`.
        RunError: a copy needs more room than there is.
    """
    require_place(own.folder, where, record)
    index = FolderIndex(own.folder)
    asked = {
        "folder": os.path.abspath(own.folder), "files": index.digest(), "val_fraction": own.val_fraction,
        "copy": own.copy, "caption_files": list(own.caption_files), "caption_column": own.caption_column,
    }  # fmt: skip
    if record.agrees("own", asked | {"made": _state(where)}):
        return
    begun = {"folder": asked["folder"]}
    if "own" not in record.entries:
        record.note("own", begun)  # from now on nothing is ever downloaded to this root
    images = read_own_data(own, index)
    record.note("own", begun)
    images = _place_all(images, index, own.copy, where)
    _write_captions(images, where)
    if not any(image.split == "unlabeled" for image in images):
        where["unlabeled_image_ids"].unlink(missing_ok=True)  # a list of images that are gone now
    record.note("own", asked | {"made": _state(where)})


def made_of_folder(where: Mapping[str, Path], record: Record) -> bool:
    """Whether a data root was made of somebody's own folder: nothing is downloaded into it.

    Raises:
        UsageError: the making was interrupted.
    """
    made_of = record.entries.get("own")
    if made_of is not None and "made" not in made_of:
        again = shlex.join(
            ["python", "process_coco.py", "--own", made_of["folder"], "--data", str(where["data"])]
        )
        raise UsageError(f"{where['data']} was not made to its end: run `{again}`")
    return made_of is not None


def split_of_root(where: Mapping[str, Path], record: Record) -> Path | None:
    """The split on whose training captions the tokenizer of a root that was made of a folder learns.

    Returns:
        Its split file; where it has none, `COCO_SPLIT`; None where the root was made in another way.
    """
    if "own" not in record.entries:
        return None
    return where["split_file"] if where["split_file"].exists() else Path(COCO_SPLIT)


def require_place(folder: Path, where: Mapping[str, Path], record: Record) -> None:
    """Raises UsageError unless the root is empty or was made of the folder, which may have been moved."""
    held = [where["annotations"], *(where[f"{split}_images"] for split in FOLDERS)]
    full = [place for place in held if place.is_dir() and any(place.iterdir())]
    made_of = record.entries.get("own", {}).get("folder", "")
    if full and not made_of:
        raise UsageError(f"{full[0]} holds data not made of {folder}: name another root with --data")
    if full and os.path.isdir(made_of) and not os.path.samefile(made_of, folder):
        raise UsageError(f"{where['data']} was made of {made_of}: name another root for {folder} with --data")


def folder_of(image: Image) -> str:
    """The split of COCO in whose folder an image lies: test images with captions lie beside those of val."""
    return "val" if image.split == "test" and image.captions else image.split


# ------------------------------------------------------------------------------------------- images


def _place_all(images: list[Image], index: FolderIndex, copy: bool, where: Mapping[str, Path]) -> list[Image]:
    """Brings the images to their folders, removes what came there earlier; returns those that can be read."""
    ours = _claim(images, index, copy, where)
    if copy:
        require_space(where["data"], sum(index.stamps[i.name].size for i in images), "copying the images")
    for split in {folder_of(image) for image in images}:
        where[f"{split}_images"].mkdir(parents=True, exist_ok=True)
    bad = _bring(images, index, copy, where)
    images = [image for image in images if image.name not in bad]
    for split in ("train", "val"):
        if not any(image.split == split and image.captions for image in images):
            raise UsageError(f"no image with captions for {split} can be read")
    _remove_others(images, ours, where)
    _write_names(where, {image.image_id: image.name for image in images})
    return images


def _claim(images: list[Image], index: FolderIndex, copy: bool, where: Mapping[str, Path]) -> set[int]:
    """Writes down, before the first link, all ids whose files are ours, now or from an earlier run.

    Raises:
        UsageError: somebody else's image has one of the names.
    """
    names = {int(key): name for key, name in read_json(where["file_names"], {}).items() if key.isdecimal()}
    for image in images:
        target = _target(image, where)
        known = image.image_id in names or not target.exists()
        if not known and not _is_there(index.files[image.name], target, copy):
            raise UsageError(f"{target} was not made of {index.folder}: move it elsewhere")
    names |= {image.image_id: image.name for image in images}
    _write_names(where, names)
    return set(names)


def _bring(images: list[Image], index: FolderIndex, copy: bool, where: Mapping[str, Path]) -> dict[str, str]:
    """Links or copies what is not there yet; returns the names of what cannot be read, and why."""
    bad: dict[str, str] = {}
    ways: Counter[str] = Counter()
    for image in progress_bar(images, what="copying" if copy else "linking", unit="image"):
        interrupts.check()
        source, target = index.files[image.name], _target(image, where)
        if _is_there(source, target, copy):
            continue
        reason = header_error(source)
        if reason:
            bad[image.name] = reason
        else:
            ways[_place(source, target, copy)] += 1
    if ways["symbolic links"]:
        print(
            f"own data: {ways['symbolic links']:,} images are symbolic links, as no hard link reaches them: "
            "they are lost when the originals move, unless you copy them with --copy"
        )
    if ways["copies"] and not copy:
        print(f"own data: {ways['copies']:,} images are copied, as they cannot be linked")
    report("files cannot be read as images, and are left out", (f"{n} ({why})" for n, why in bad.items()))
    return bad


def _target(image: Image, where: Mapping[str, Path]) -> Path:
    return where[f"{folder_of(image)}_images"] / f"{image.image_id:012d}.jpg"


def header_error(path: Path) -> str | None:
    """Why a file is no image, by its first bytes, or None; `--check` decodes the whole of it."""
    try:
        with open(path, "rb") as file, opened(file):
            return None
    except Exception as error:
        return describe_error(error)


def _is_there(source: Path, target: Path, copy: bool) -> bool:
    """Whether an image was brought before, and has not changed since."""
    try:
        here, there = os.stat(source), os.stat(target)
    except FileNotFoundError:
        return False
    linked = os.path.samestat(here, there)
    equal = (here.st_size, here.st_mtime_ns) == (there.st_size, there.st_mtime_ns)
    return equal and not linked if copy else linked or equal


def _place(source: Path, target: Path, copy: bool) -> str:
    """Links or copies an image, whole or not at all; returns how."""
    temporary = target.with_name(target.name + PART)
    temporary.unlink(missing_ok=True)
    original = os.path.realpath(source)
    way = "copies"
    if not copy:
        way = next((way for way, link in LINKS.items() if _linked(link, original, temporary)), way)
    if way == "copies":
        shutil.copy2(original, temporary)
    os.replace(temporary, target)
    return way


LINKS = {"hard links": os.link, "symbolic links": os.symlink}  # in the order in which they are tried


def _linked(link: Any, original: str, target: Path) -> bool:
    try:
        link(original, target)
    except OSError:  # another disk, a file system without links, too many, not permitted
        return False
    return True


def _remove_others(images: list[Image], ours: set[int], where: Mapping[str, Path]) -> None:
    """Removes our links and copies that no image of the folder stands behind any more, or in this split."""
    wanted = {(folder_of(image), image.image_id) for image in images}
    for split in FOLDERS:
        folder = where[f"{split}_images"]
        for entry in list(os.scandir(folder)) if folder.is_dir() else []:
            name = NAME.fullmatch(entry.name.removesuffix(PART))
            unfinished = entry.name.endswith(PART)
            if name and int(name[1]) in ours and (unfinished or (split, int(name[1])) not in wanted):
                os.unlink(entry.path)


# ----------------------------------------------------------------------------------------- captions


def _write_captions(images: list[Image], where: Mapping[str, Path]) -> None:
    """Writes the caption files and, where there are images for test, the split file."""
    for split in ("train", "val"):
        here = [image for image in images if image.captions and folder_of(image) == split]
        pairs = [(image.image_id, caption) for image in here for caption in image.captions]
        _write(
            where[f"{split}_captions"],
            {
                "info": {"description": "Made by process_coco.py --own"},
                "images": [{"id": image.image_id, "file_name": image.name} for image in here],
                "annotations": [
                    {"id": number, "image_id": image_id, "caption": caption}
                    for number, (image_id, caption) in enumerate(pairs, start=1)
                ],
            },
        )
    captioned = [image for image in images if image.captions]
    splits = {
        split: [i.image_id for i in captioned if i.split == split] for split in ("train", "val", "test")
    }
    numbers = ", ".join(f"{len(ids):,} images for {split}" for split, ids in splits.items())
    if splits["test"]:
        print(f"own data: {numbers}, which lie in val2017/ and are told apart by {where['split_file']}")
        _write(where["split_file"], splits)
    else:
        print(f"own data: {numbers}")
        where["split_file"].unlink(missing_ok=True)


def _write_names(where: Mapping[str, Path], names: Mapping[int, str]) -> None:
    _write(where["file_names"], {str(image_id): name for image_id, name in sorted(names.items())})


def _write(path: Path, value: Any) -> None:
    """Writes JSON, unless the file has just this content: what was made from it stays good then."""
    content = json.dumps(value).encode()
    if not path.is_file() or path.read_bytes() != content:
        with replacing(path) as temporary:
            temporary.write_bytes(content)


def _state(where: Mapping[str, Path]) -> dict[str, Any]:
    """How the root looks: what changes when something of it is lost."""
    files = ("train_captions", "val_captions", "split_file", "file_names")
    sizes = {file: where[file].stat().st_size if where[file].exists() else 0 for file in files}
    try:
        return sizes | {split: count_and_size(where[f"{split}_images"]) for split in FOLDERS}
    except FileNotFoundError:  # a symbolic link whose original is gone
        return {}
