"""Custom splits: which images of train2017 and val2017 are used for training, validation and test.

Two kinds of file are read:

    {"train": [9, 25, ...], "val": [...], "test": [...]}          image ids; "test" may be left out
    {"images": [{"split": "restval", "cocoid": 9, ...}, ...]}     Karpathy's dataset_coco.json (Karpathy and
                                                                  Fei-Fei 2015); restval counts as train

Much of the literature reports on Karpathy's split, of 113,287 images for training and 5,000 each for
validation and test.  Its file gives the folders and file names of COCO 2014; 2017 holds the same images
under the same ids, dealt to other folders.  So only the id counts, and an image lies where COCO 2017 put it,
whatever its split.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coco.caption_files import plain_id
from support.errors import UsageError
from support.files import digest

SPLITS = ("train", "val", "test")
FOLDERS = ("train", "val")  # of COCO 2017, which these splits deal out anew


@dataclass(frozen=True)
class SplitFile:
    """A split of the captioned images, and where each lies."""

    name: str  # of the file
    sha256: str
    ids: dict[str, Tensor]  # of each of `SPLITS`, ascending, int64
    in_val: Tensor  # the ids of the images that lie in val2017, ascending, int64

    def folder_split(self, split: str, image_id: int) -> str:
        """The COCO split in whose folder an image lies."""
        if split not in SPLITS:
            return split
        place = int(torch.searchsorted(self.in_val, image_id))
        return "val" if place < len(self.in_val) and int(self.in_val[place]) == image_id else "train"

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: enough to tell whether an image was trained on."""
        return {"name": self.name, "sha256": self.sha256, "train": self.ids["train"]}


def read_split_file(path: Path, train2017: Iterable[int], val2017: Iterable[int]) -> SplitFile:
    """Reads and checks a split file.

    Args:
        path: the file.
        train2017: the ids of the images in the data's train folder.
        val2017: the same of val.

    Raises:
        UsageError: it cannot be read, is of neither kind, has an image twice or one that the data lack, or
            nothing for train or val.
    """
    in_val = set(val2017)
    in_train = set(train2017)
    if both := in_val & in_train:
        raise UsageError(f"{path} tells pictures by their ids, but {min(both)} is in train2017 and val2017")
    known = in_val | in_train
    lists = listed_ids(path)
    first: dict[int, str] = {}
    for split, values in lists.items():
        for place, value in enumerate(values):
            if (image_id := plain_id(value)) is None:
                raise UsageError(f"{path}: {split}: an image id is a whole number, not {value!r:.40}")
            values[place] = image_id
            if image_id in first:
                raise UsageError(
                    f"{path}: picture {image_id} is in {first[image_id]} and again in {split}; "
                    "the splits must not overlap"
                )
            first[image_id] = split
    if missing := sorted(first.keys() - known):
        raise UsageError(
            f"{path}: {len(missing):,} of its {len(first):,} pictures are in neither train2017 nor val2017, "
            f"the first is {missing[0]}; is this the file for these data?"
        )
    for split in FOLDERS:
        if not lists[split]:
            raise UsageError(f"{path}: it has no pictures for {split}")
    tensors = {split: torch.tensor(sorted(ids), dtype=torch.int64) for split, ids in lists.items()}
    return SplitFile(path.name, digest(path), tensors, torch.tensor(sorted(in_val), dtype=torch.int64))


def trained_on(ids: Tensor, facts: dict[str, Any] | None, train2017: Iterable[int]) -> Tensor:
    """Which of the images a captioner was trained on.

    Args:
        ids: of the pictures.
        facts: of the split file that it was trained with, None for COCO's own split.
        train2017: the ids of COCO's own train split.
    """
    seen = torch.tensor(list(train2017), dtype=torch.int64) if facts is None else facts["train"]
    return ids[torch.isin(ids, seen)]


def split_name(facts: dict[str, Any] | None) -> str:
    """A split in words."""
    return "COCO's 2017 split" if facts is None else f"the split file {facts['name']}"


def folder_splits(splits: Iterable[str], split_file: SplitFile | None) -> list[str]:
    """The COCO splits in whose folders the images of some splits lie."""
    dealt_out = set() if split_file is None else set(SPLITS) & set(splits)
    return sorted(set(splits) - dealt_out | (set(FOLDERS) if dealt_out else set()))


def same_split(checkpoint: dict[str, Any], split_file: SplitFile | None) -> bool:
    """Whether a checkpoint was trained with this split; one that says nothing was with COCO's own."""
    facts = checkpoint.get("split_file")
    return (facts and facts["sha256"]) == (split_file and split_file.sha256)


def require_same_split(checkpoint: dict[str, Any], split_file: SplitFile | None) -> None:
    """Raises UsageError where a run would go on with other splits than it began with."""
    facts = checkpoint.get("split_file")
    if same_split(checkpoint, split_file):
        return
    if facts and split_file and facts["name"] == split_file.name:
        raise UsageError(
            f"{split_file.name} is not what it was when this run was begun, sha256 {facts['sha256'][:12]}: "
            "bring that back, or start a new run"
        )
    raise UsageError(
        f"this run was begun with {split_name(facts)}, not with "
        f"{split_name(split_file and split_file.facts())}: it goes on with the same --split-file only"
    )


def warn_of_other_split(encoder: dict[str, Any], split_file: SplitFile | None) -> None:
    """Says so where the encoder may have seen, without captions, what is now for validation or test."""
    if not same_split(encoder, split_file):
        print(
            f"note: the encoder was pre-trained with {split_name(encoder.get('split_file'))}, which is "
            "another split than this: it may have seen pictures of val and test, without captions; to be "
            "strict, pre-train it with this split",
            file=sys.stderr,
        )


def listed_ids(path: Path) -> dict[str, list[Any]]:
    """The ids of each split, as the file gives them; UsageError where it is no split file."""
    try:
        content = json.loads(path.read_bytes(), object_hook=_without_captions)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no JSON: {error!s:.80}") from None
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        return _karpathys(path, content["images"])
    if not isinstance(content, dict) or not {"train", "val"} <= content.keys() <= set(SPLITS):
        raise UsageError(
            f'{path} is no split file: it needs lists of image ids "train", "val" and maybe "test"'
        )
    lists = {split: content.get(split, []) for split in SPLITS}
    for split, ids in lists.items():
        if not isinstance(ids, list):
            raise UsageError(f"{path}: {split} is no list of image ids")
    return lists


def _without_captions(entry: dict[str, Any]) -> dict[str, Any]:
    """What counts here of an object, as soon as it is read: captions are nine tenths of Karpathy's file."""
    return {key: entry.get(key) for key in ("split", "cocoid")} if "cocoid" in entry else entry


def _karpathys(path: Path, images: list[Any]) -> dict[str, list[Any]]:
    lists: dict[str, list[Any]] = {split: [] for split in SPLITS}
    for place, image in enumerate(images):
        split = image.get("split") if isinstance(image, dict) else None
        split = "train" if split == "restval" else split
        if split not in SPLITS or "cocoid" not in image:
            raise UsageError(
                f'{path}: images[{place}] needs a "cocoid" and a "split": train, restval, val or test'
            )
        lists[split].append(image["cocoid"])
    return lists
