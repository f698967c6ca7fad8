"""Telling a data root of one's own, in COCO's layout, from COCO's: into one's own nothing is downloaded.

What tells them apart is the number of images that the caption files list.  A half-finished download of COCO
has whole caption files, as they come first, or a cut one; somebody's own lists another number of images.
"""

from collections.abc import Mapping
from pathlib import Path

from coco.caption_files import read_captions
from images.image_folders import picture_ids
from support.errors import UsageError
from support.files import Record

COCO_IMAGES = {"train": 118_287, "val": 5_000}  # listed in COCO 2017's caption files
COCO_BEGINS = b'{"info": {"description": "COCO 2017 Dataset"'  # each of its caption files
WAY_ON = "`python process_coco.py --own DIR` makes a data root of images and captions in other layouts"

Where = Mapping[str, Path]


def images_listed(captions: Path, record: Record) -> int:
    """How many images a caption file lists; it is read from end to end unless the record knows it.

    Raises:
        UsageError: it is not whole.
    """
    known, size = record.facts(captions.name), captions.stat().st_size
    if known.get("bytes") == size:
        return known["images"]
    number = len(read_captions(captions).image_ids)
    record.note(captions.name, {"bytes": size, "images": number})
    return number


def is_own_root(where: Where, record: Record) -> bool:
    """Whether a data root is somebody's own: a caption file is there that is not COCO's.

    Raises:
        UsageError: a caption file is not whole, and it is not one of COCO's that an unzip left cut.
    """
    for split, number in COCO_IMAGES.items():
        captions = where[f"{split}_captions"]
        try:
            if captions.is_file() and images_listed(captions, record) != number:
                return True
        except UsageError:
            with open(captions, "rb") as file:
                begun = file.read(len(COCO_BEGINS)).rstrip(b"\0")
            if not COCO_BEGINS.startswith(begun):
                raise
    return False


def require_captions(splits: list[str], where: Where) -> None:
    """Raises UsageError where one's own data lack a caption file of a split; train's is always needed."""
    for split in COCO_IMAGES:
        captions = where[f"{split}_captions"]
        if split in {"train", *splits} and not captions.is_file():
            others = [other for other in splits if other != split]
            dispensable = split != "train" and others
            leave_out = f", or leave {split} out with --splits {' '.join(others)}" if dispensable else ""
            raise UsageError(
                f"{captions} is not there, and as the captions beside it are not COCO's, it is not fetched: "
                f"put it there{leave_out}. Training needs images and captions of train and of val; {WAY_ON}"
            )


def require_images(split: str, where: Where) -> None:
    """Raises UsageError where a captioned split of one's own has none of the images that it lists."""
    folder, captions = where[f"{split}_images"], where[f"{split}_captions"]
    listed = read_captions(captions).image_ids
    if not listed:
        raise UsageError(f"{captions} lists no image and holds no caption. {WAY_ON}")
    if not set(listed) & set(picture_ids(folder)):
        raise UsageError(
            f"{folder} holds none of the {len(listed):,} images that {captions} lists: {names_of(listed)}: "
            f"put them there under these names, or name their archives with --source. {WAY_ON}"
        )


def require_no_strangers(split: str, where: Where) -> None:
    """Raises UsageError where a folder into which COCO's images are to come holds others."""
    folder, captions = where[f"{split}_images"], where[f"{split}_captions"]
    strangers = sorted(set(picture_ids(folder)) - set(read_captions(captions).image_ids))
    if strangers:
        raise UsageError(
            f"{folder} holds {len(strangers):,} images that are not COCO's: {names_of(strangers)}: they are "
            f"not mixed with COCO's; name another data root with --data. {WAY_ON}"
        )


def require_no_broken_links(folders: list[Path]) -> None:
    """Raises UsageError where a folder of images is a link to nowhere, as to a drive that is not mounted."""
    for folder in folders:
        if folder.is_symlink() and not folder.exists():
            raise UsageError(
                f"{folder} is a link to {folder.readlink()}, which is not there: mount it, or remove the link"
            )


def names_of(image_ids: list[int]) -> str:
    """The file names of the first five images."""
    return ", ".join(f"{image_id:012d}.jpg" for image_id in image_ids[:5]) + " ..." * (len(image_ids) > 5)
