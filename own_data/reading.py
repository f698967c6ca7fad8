"""What a folder of images and captions holds: which image has which captions, id and split.

Splits come from what the folder says: a column or key of the caption file, the caption file's name, the name
of an image's folder, or lists of names as Flickr8k has.  Where nothing says so, the hash of an image's name
decides, so that the order does not count and an image that is added moves no other.

An image that is of two splits belongs to the more careful one: test before val, val before train.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from coco.caption_files import LONGEST_CAPTION
from images.image_files import HEIC_SUFFIXES, suffixes
from images.image_folders import VAL_FRACTION, by_hash, hash_of
from own_data.caption_formats import SUFFIXES, CaptionFile, read_caption_file, read_split_list
from own_data.caption_tables import split_of_folder, split_of_name
from own_data.folder_index import FolderIndex
from support.errors import UsageError

MADE_IDS = range(10**14, 10**15)  # ids that are made from names: fifteen digits, exact in a float, too
CAREFUL = ("test", "val", "train")


class OwnData(NamedTuple):
    """What `process_coco.py --own` was asked for."""

    folder: Path  # of images and captions; nothing in it is changed
    val_fraction: float = VAL_FRACTION  # of the images that go to val, where nothing says which
    copy: bool = False  # copy the images; else they are linked
    caption_files: Sequence[str] = ()  # in the folder; none: all that are found
    caption_column: str | None = None  # in tables; None: the one that is known by its name


@dataclass
class Image:
    """An image of the folder."""

    name: str  # relative to the folder
    captions: list[str] = field(default_factory=list)
    splits: set[str] = field(default_factory=set)  # all that the folder says of it
    ids: set[int | None] = field(default_factory=set)  # that caption files give it
    image_id: int = -1
    split: str = ""  # train, val or test; without captions unlabeled or test


def read_own_data(own: OwnData, index: FolderIndex) -> list[Image]:
    """All images of a folder, ascending by id; says what is odd about it, a line for each kind.

    Raises:
        UsageError: there are no captions, or too many caption files, or nothing for train or val.
    """
    report("hidden files are left out", index.hidden)
    report("links lead nowhere, and are left out", index.broken)
    report("names differ in case only, and on other systems would be one", index.same_but_case())
    images, unclear = _listed(_caption_files(own, index), index)
    lists = _split_lists(index, images)
    for image in images.values():
        image.splits |= _of_lists(image.name, lists)
        image.split = next((split for split in CAREFUL if split in image.splits), "")
    several = [image.name for image in images.values() if len(image.splits) > 1]
    report("images are of several splits: test counts before val, and val before train", several)
    _deal([image for image in images.values() if image.captions], own.val_fraction)
    in_train = [image.name for image in images.values() if image.split == "train"]
    held_out = [image.name for image in images.values() if image.split in ("val", "test")]
    report("images for train hold the same bytes as others for val or test", index.copies(in_train, held_out))
    others = _others(index, images, unclear)
    for image in others:
        image.splits = (_of_lists(image.name, lists) | {split_of_folder(image.name)}) - {None}
    _place_without_captions([*images.values(), *others])
    images |= {image.name: image for image in others}
    _number(images)
    return sorted(images.values(), key=lambda image: image.image_id)


def report(what: str, names: Iterable[str]) -> None:
    """Says how many there are of a kind and the first five, if there are any."""
    names = list(names)
    if names:
        shown = ", ".join(name.encode(errors="backslashreplace").decode() for name in names[:5])
        print(f"own data: {len(names):,} {what}: {shown}{' ...' * (len(names) > 5)}")


# ------------------------------------------------------------------------------------------ captions


def _caption_files(own: OwnData, index: FolderIndex) -> list[CaptionFile]:
    """The folder's caption files, read: those that were asked for, or all."""
    paths = [path for _, path in sorted(index.files.items()) if path.suffix.lower() in SUFFIXES]
    if own.caption_files:
        paths = [_inside(index, name) for name in own.caption_files]
    files = {path: read_caption_file(path, own.caption_column) for path in paths}
    for path, file in files.items():
        if own.caption_files and file is None:
            raise UsageError(f"{path}: it holds no captions in a form that is known")
    found = [file for file in files.values() if file]
    if not found and own.caption_column:
        raise UsageError(f"--caption-column {own.caption_column}: no table in {own.folder} has such a column")
    if not found:
        packed = next((f"; unpack {name}, which is not read" for name in index.files if _is_packed(name)), "")
        raise UsageError(
            f"{own.folder} holds no caption file that is known: COCO's or Karpathy's JSON, a table with a "
            f"column of file names and one of captions, or metadata.jsonl{packed}"
        )
    return found


def _is_packed(name: str) -> bool:
    return name.lower().endswith((".zip", ".tar", ".gz", ".parquet", ".arrow"))


def _inside(index: FolderIndex, name: str) -> Path:
    """A caption file that the user names, by its name in the folder or by a path."""
    for path in filter(Path.is_file, (index.folder / name, Path(name))):
        for file in index.files.values():
            if file.suffix == path.suffix and file.samefile(path):
                return file
    raise UsageError(f"--caption-files {name}: there is no such file in {index.folder}")


def _listed(files: list[CaptionFile], index: FolderIndex) -> tuple[dict[str, Image], set[str]]:
    """The images that the caption files list and the folder holds.

    Returns:
        These, by name; and the files of which nobody can tell which one a caption file means.
    """
    images: dict[str, Image] = {}
    by_file = [_read_into(images, file, index) for file in files]
    unclear = {name: found for lookups in by_file for name, found in lookups.items() if len(found) > 1}
    missing = dict.fromkeys(name for lookups in by_file for name, found in lookups.items() if not found)
    of_file = [{found[0] for found in lookups.values() if len(found) == 1} for lookups in by_file]
    _require_apart(files, of_file)
    for file, names in zip(files, of_file):
        for note in file.notes:
            print(f"own data: {note}")
        captions = sum(len(entry.captions) for entry in file.entries)
        print(f"own data: {file.path} ({file.form}): {captions:,} captions, {len(names):,} images found")
    report("images are listed and not there", missing)
    report("names stand for several different files, and are left out", unclear)
    if not any(image.captions for image in images.values()):
        raise UsageError(f"{index.folder} holds none of the images that have captions in {files[0].path}")
    return images, {name for found in unclear.values() for name in found} - images.keys()


def _read_into(images: dict[str, Image], file: CaptionFile, index: FolderIndex) -> dict[str, list[str]]:
    """Adds what a caption file says; returns, by the names in it, the files that these may stand for."""
    place = PurePosixPath(index.name_of(file.path))
    file_split = split_of_name(place.stem) or split_of_folder(str(place))
    lookups: dict[str, list[str]] = {}
    blank = []
    for entry in file.entries:
        split = entry.split or file_split
        if entry.name not in lookups:
            found = index.find(entry.name, str(place.parent), split)
            if not found and entry.image_id is not None:  # in COCO's layout the ids are names enough
                found = index.find(f"{entry.image_id:012d}.jpg", str(place.parent), split)
            lookups[entry.name] = found
        if len(lookups[entry.name]) != 1:
            continue
        (name,) = lookups[entry.name]
        image = images.setdefault(name, Image(name))
        captions = [_tidy(text, entry.name, file.path) for text in entry.captions]
        image.captions += filter(None, captions)
        image.splits |= {split or split_of_folder(name)} - {None}
        image.ids.add(entry.image_id)
        blank += [name for text in captions if not text]
    report("captions are blank, of", blank)
    return lookups


def _tidy(caption: str, name: str, path: Path) -> str:
    caption = " ".join(caption.strip().splitlines())
    if len(caption) > LONGEST_CAPTION:
        raise UsageError(
            f"{path}: a caption of {name!r:.80} has {len(caption):,} characters, and {LONGEST_CAPTION:,} are "
            "the most: shorten it"
        )
    return caption


def _require_apart(files: list[CaptionFile], images: list[set[str]]) -> None:
    """Raises UsageError where two files caption the same images: nobody can tell which is meant."""
    for (first, of_first), (second, of_second) in combinations(zip(files, images), 2):
        if len(of_first & of_second) * 2 > min(len(of_first), len(of_second)):
            raise UsageError(
                f"{first.path} ({first.form}) and {second.path} ({second.form}) hold captions of the same "
                f"images: choose with --caption-files {first.path.name} or {second.path.name}"
            )


# -------------------------------------------------------------------------------------- splits and ids


def _split_lists(index: FolderIndex, images: dict[str, Image]) -> dict[str, str]:
    """By the names of images, the split of whose list they are; lists of other names are passed over."""
    captioned = {word for name in images for word in _names_in_lists(name)}
    there = {word for name in index.files for word in _names_in_lists(name)}
    lists: dict[str, str] = {}
    for path in sorted(index.files.values()):
        split, names = read_split_list(path) or ("", [])
        if not captioned.isdisjoint(names):
            print(f"own data: {path}: {len(names):,} images for {split}")
            report("of these are not there", [name for name in names if name not in there])
            for name in names:
                lists[name] = min(lists.get(name, split), split, key=CAREFUL.index)
    return lists


def _of_lists(name: str, lists: dict[str, str]) -> set[str]:
    return {lists[word] for word in _names_in_lists(name) if word in lists}


def _names_in_lists(name: str) -> tuple[str, str, str]:
    """How a list may call an image: by its path, its file name, or that without its suffix."""
    return name, PurePosixPath(name).name, PurePosixPath(name).stem


def _deal(captioned: list[Image], val_fraction: float) -> None:
    """Gives a split to the images that have captions and none; images for val are taken from those for train.

    Where some images are for train, those without a split stay without: a protocol leaves them out.
    """
    if not any(image.split == "train" for image in captioned):
        for image in captioned:
            image.split = image.split or "train"
    for_train = [image for image in captioned if image.split == "train"]
    if not for_train:
        raise UsageError(
            f"all {len(captioned):,} images with captions are for val or test, by what the folder says, and "
            "none for train: is a caption file missing?"
        )
    without = [image.name for image in captioned if not image.split]
    report("images have captions but no split, unlike others: their captions are left out", without)
    if any(image.split == "val" for image in captioned):
        return
    for image in for_train:
        image.split = "val" if by_hash(image.name) < val_fraction else "train"
    _require_both(for_train, val_fraction)
    print(f"own data: nothing says what is for val: a hash of the names takes {val_fraction:g} of the images")


def _require_both(dealt: list[Image], val_fraction: float) -> None:
    """Raises UsageError if the hash leaves nothing for train or for val."""
    if len(dealt) < 2:
        raise UsageError("only one image has captions: there must be one for train and one for val at least")
    if len({image.split for image in dealt}) == 1:
        hashes = sorted(by_hash(image.name) for image in dealt)
        if dealt[0].split == "val":
            hashes.reverse()
        raise UsageError(
            f"all {len(dealt):,} images fall to {dealt[0].split} at a fraction of {val_fraction:g}: take "
            f"--val-fraction {(hashes[0] + hashes[1]) / 2:.4g}, or more images"
        )


def _others(index: FolderIndex, images: dict[str, Image], unclear: set[str]) -> list[Image]:
    """The images that no caption file lists, but for copies of those: one of test would be trained on."""
    endings = tuple(suffixes() | HEIC_SUFFIXES)
    names = [name for name in index.files if name.lower().endswith(endings)]
    names = sorted(set(names) - images.keys() - unclear)
    copies = index.copies(names, images)
    report("files are copies of images that captions list, and are left out", copies)
    return [Image(name) for name in names if name not in copies]


def _place_without_captions(images: list[Image]) -> None:
    """Images without captions serve pre-training, but for those of val or test."""
    for image in images:
        if not image.captions or not image.split:
            held_out = not image.splits.isdisjoint({"val", "test"})
            image.captions, image.split = [], "test" if held_out else "unlabeled"
    unlabeled = [image.name for image in images if image.split == "unlabeled"]
    report("images have no captions: they serve pre-training, in unlabeled2017/", unlabeled)
    held_out = [image.name for image in images if image.split == "test" and not image.captions]
    report("images of val or test have no captions: they are kept from training, in test2017/", held_out)


def _number(images: dict[str, Image]) -> None:
    """Gives each image its id: the caption files' if all have one of their own, else from its name.

    Raises:
        UsageError: two images come to the same one.
    """
    given = [image.ids for image in images.values() if image.ids]
    numbers = [number for ids in given for number in ids]
    unique = None not in numbers and all(len(ids) == 1 for ids in given) and len({*numbers}) == len(numbers)
    if not unique and set(numbers) != {None}:
        print("own data: the caption files do not give one id to each image: ids are made from the names")
    taken: dict[int, str] = {}
    for name, image in sorted(images.items()):
        (own_id,) = image.ids if unique and image.ids else [None]
        made = MADE_IDS[int(hash_of(f"id {name}"), 16) % len(MADE_IDS)]
        image.image_id = made if own_id is None else own_id
        first = taken.setdefault(image.image_id, name)
        if first != name:
            raise UsageError(f"{first} and {name} both get the id {image.image_id}: rename one of them")
