"""What is there of a data root, images and caption files, whether it is whole, and the download of the rest.

The captions come first, then each split's images: fetched, unpacked, proven whole, and noted in the record
with their number and size, so that the next run need only see whether these are the same.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from coco.archives import Source
from coco.caption_files import read_captions
from coco.own_root import (
    COCO_IMAGES,
    images_listed,
    is_own_root,
    require_captions,
    require_images,
    require_no_broken_links,
    require_no_strangers,
)
from images.image_folders import count_and_size, image_name, is_cut, picture_ids
from support.errors import UsageError
from support.files import Record

COCO = "https://s3.amazonaws.com/images.cocodataset.org/"  # the well-known host's certificate is not valid
ARCHIVES = {
    "annotations": "annotations/annotations_trainval2017.zip",
    "train": "zips/train2017.zip",
    "val": "zips/val2017.zip",
    "test": "zips/test2017.zip",
    "unlabeled": "zips/unlabeled2017.zip",
}
PINS = {  # bytes and digest of COCO's own archives; another source's may differ
    "annotations": (252907541, "sha256", "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268"),
    "train": (19336861798, "sha256", "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"),
    "val": (815585330, "sha256", "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"),
    "test": (6646970404, "sha256", "c7908c3c9f94ba2f3340ebbeec58c25db6be8774f18d68c2f15d0e369d95baba"),
    "unlabeled": (20126613414, "md5", "7ebc562819fdb32847aab79530457326"),
}
UNLISTED_PICTURES = {"test": 40_670, "unlabeled": 123_403}  # COCO's numbers; no caption file lists these


class Inventory:
    """What is there of a data root's images.

    Args:
        where: the file locations.
        record: what is done.
        splits: of which there may be images.

    Attributes:
        found: by split, the number of images and their bytes, as they are on the disk.
    """

    def __init__(self, where: Mapping[str, Path], record: Record, splits: Sequence[str]):
        require_no_broken_links([where[f"{split}_images"] for split in splits])
        self.where, self.record = where, record
        self.found = {split: count_and_size(where[f"{split}_images"]) for split in splits}

    def changed(self, splits: Sequence[str]) -> list[str]:
        """The splits whose images are not as the record has them."""
        return [split for split in splits if not self.record.agrees(f"{split}_images", self.found[split])]

    def note(self, split: str) -> None:
        """Notes in the record what is there now of a split, which is whole."""
        number, size = self.found[split] = count_and_size(self.where[f"{split}_images"])
        self.record.note(f"{split}_images", [number, size])
        print(f"{split}: {number:,} pictures, {size / 1e6:,.0f} MB")

    def is_own(self) -> bool:
        """Whether the data are somebody's own, in COCO's layout; see `is_own_root`."""
        return is_own_root(self.where, self.record)

    def take_own(self, splits: list[str]) -> None:
        """Takes what is there of a data set of one's own; nothing is downloaded into it."""
        require_captions(splits, self.where)
        changed = self.changed(splits)
        for split in changed:
            if split in COCO_IMAGES:
                require_images(split, self.where)
        there = [split for split in changed if self.found[split][0]]
        if there:
            annotations = self.where["annotations"]
            print(f"{annotations}: not COCO's captions: what is there is taken, and nothing is downloaded")
        for split in there:
            self.note(split)

    def download(self, splits: list[str], source: Source) -> None:
        """Brings the caption files and the splits' images, as far as they are not there."""
        pins = PINS if source.address == COCO else {}
        if not self.captions_are_there(splits):
            # Images that the user unpacked can be judged once the captions, which list them, are there.
            empty = [split for split in splits if not self.found[split][0]]
            self._require_archives(["annotations", *empty], splits, source)
            name = ARCHIVES["annotations"]  # it stays, and so do in it the annotations that are no captions
            wanted = re.compile(r"annotations/captions_(train|val)2017\.json")
            source.unpack(name, wanted, self.where["annotations"], pins.get("annotations"))
            if not self.captions_are_there(splits):
                raise UsageError(f"{source.address}{name} lacks a whole caption file: name another --source")
        lacking = [split for split in splits if not self.are_there(split, official=bool(pins))]
        for split in lacking:
            if pins and split in COCO_IMAGES:
                require_no_strangers(split, self.where)
        self._require_archives(lacking, splits, source)
        for split in lacking:
            wanted = re.compile(rf"{split}2017/[0-9]{{12,18}}\.jpg")
            source.unpack(ARCHIVES[split], wanted, self.where[f"{split}_images"], pins.get(split))
            self.note(split)
            source.discard(ARCHIVES[split])

    def captions_are_there(self, splits: Sequence[str]) -> bool:
        """Whether the caption files are there and whole; train's always, the tokenizer learns from it."""
        files = [self.where[f"{split}_captions"] for split in COCO_IMAGES if split in {"train", *splits}]
        if not all(file.is_file() for file in files):
            return False
        try:
            return all(images_listed(file, self.record) >= 0 for file in files)
        except UsageError:
            return False

    def are_there(self, split: str, official: bool) -> bool:
        """Whether a split's images are there and whole, unpacked by us or by the user.

        That there is a folder says nothing: an interrupted unzip leaves some of the files, the last one cut.

        Args:
            split: of COCO.
            official: they are COCO's own, of which there is a known number.
        """
        folder = self.where[f"{split}_images"]
        if not self.found[split][0] or not self.changed([split]):
            return self.found[split][0] > 0
        ids = picture_ids(folder)
        if split in COCO_IMAGES:
            listed = read_captions(self.where[f"{split}_captions"]).image_ids
            complete = bool(listed) and set(listed) <= set(ids)
        else:
            complete = official and len(ids) >= UNLISTED_PICTURES[split]
        if not complete or any(is_cut(folder / image_name(image_id)) for image_id in ids):
            return False
        self.note(split)
        return True

    def _require_archives(self, parts: list[str], splits: list[str], source: Source) -> None:
        """Looks, before the first byte, whether the archives and room for what they hold are there."""
        folders = {part: "annotations" if part == "annotations" else f"{part}_images" for part in parts}
        try:
            source.require_room({ARCHIVES[part]: self.where[folder] for part, folder in folders.items()})
        except UsageError as error:
            others = [split for split in splits if ARCHIVES[split] not in str(error)]
            dispensable = bool(others) and any(ARCHIVES[split] in str(error) for split in UNLISTED_PICTURES)
            leave_out = f"leave it out with --splits {' '.join(others)}"
            raise UsageError(f"{error}: {leave_out if dispensable else 'name another --source'}") from None
