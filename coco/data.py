"""A data set in COCO's layout as one object: where it lies, its split, and which images training reads.

And the reading of what `process_coco.py` leaves in `processed/`: the lists of each split, and the tokenizer.
`Ragged` holds such a list in memory that processes share instead of copying.
"""

import hashlib
import itertools
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from coco.caption_files import HIGHEST_ID
from coco.split_file import FOLDERS, SplitFile, folder_splits, read_split_file
from images.image_folders import image_name, picture_ids
from images.resized_copies import resized_folder, size_for_training, with_copies
from support import distributed
from support.errors import UsageError, check_command, prepare_command
from support.files import Record, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MOST_TOKENS = 2**31  # tokens are kept in 32 bits


def load_processed(
    paths: Mapping[str, Path], split: str, what: str, vocabulary_size: int = MOST_TOKENS
) -> list[Any]:
    """One of the lists that `process_coco.py` writes: "tokenized", "im2capts" or "image_ids" of a split.

    Every entry is looked at, in about two seconds for COCO's 591,753 captions, so that a list of an older
    version or of another tokenizer ends here and not, by a traceback, in an epoch's middle.

    Args:
        paths: where the files lie.
        split: "train", "val" or "unlabeled".
        what: which of the lists.
        vocabulary_size: of the tokenizer, where it is known; tokens are less.

    Raises:
        UsageError: the split has no such list, or its file is missing, damaged, empty or holds another thing.
    """
    path, remedy = paths.get(f"{split}_{what}"), f"run `{prepare_command(paths)}`"
    if path is None:
        known = [key.removesuffix(f"_{what}") for key in paths if key.endswith(f"_{what}")]
        raise UsageError(f"the split {split!r} has no {what}; those that have are {', '.join(known)}")
    if not path.exists():
        raise UsageError(f"{path} is missing: {remedy} first")
    try:
        processed = torch.load(path, weights_only=True)
    except Exception as error:  # of whatever kind: a damaged archive breaks its reader in many ways
        raise UsageError(f"{path} is damaged ({type(error).__name__}): remove it and {remedy}") from error
    expected, is_sound = _entry(what, vocabulary_size)
    if type(processed) is not list:
        raise UsageError(f"{path} holds no list: remove the file and {remedy}")
    if not processed:
        things = "captions of its pictures" if what == "tokenized" else "pictures"
        raise UsageError(f"{path} is empty: {remedy} once the {split} split has {things}")
    for number, entry in enumerate(processed):
        if not is_sound(entry):
            raise UsageError(f"{path}: entry {number:,} is not {expected}: remove the file and {remedy}")
    return processed


def load_data_tokenizer(paths: Mapping[str, Path]) -> "Tokenizer":
    """The tokenizer of a data set.

    Raises:
        UsageError: it is missing or damaged.
    """
    from coco.tokenizer import load_tokenizer  # here, for pre-training reads no caption

    path, remedy = paths["tokenizer"], f"run `{prepare_command(paths)}`"
    if not path.exists():
        raise UsageError(f"{path} is missing: {remedy} first")
    try:
        return load_tokenizer(path)
    except UsageError as error:
        raise UsageError(f"{error}: remove it and {remedy}") from None


def _entry(what: str, vocabulary_size: int) -> tuple[str, Callable[[Any], bool]]:
    """What an entry of a list is, in words and as a test.

    Types must match exactly: a bool or a tensor in place of a number means that another program wrote the
    file.
    """

    def is_id(value: Any) -> bool:
        return type(value) is int and 0 <= value <= HIGHEST_ID

    def is_tokenized(entry: Any) -> bool:
        return (
            type(entry) is dict
            and entry.keys() == {"caption", "image_id"}
            and is_id(entry["image_id"])
            and type(tokens := entry["caption"]) is list
            and len(tokens) >= 2  # <SOS> and <EOS>
            and set(map(type, tokens)) == {int}
            and min(tokens) >= 0
            and max(tokens) < vocabulary_size
        )

    def is_captions(entry: Any) -> bool:
        return (
            type(entry) is tuple
            and len(entry) == 2
            and is_id(entry[0])
            and type(entry[1]) is list
            and set(map(type, entry[1])) <= {str}
        )

    tokens = f"at least 2 tokens below {vocabulary_size:,}"
    return {
        "tokenized": (f'{{"caption": [{tokens}], "image_id": an image id}}', is_tokenized),
        "im2capts": ("(image id, [captions])", is_captions),
        "image_ids": ("an image id", is_id),
    }[what]


@dataclass(frozen=True)
class CocoData:
    """A data set that `process_coco.py` has prepared.

    Args:
        paths: every file location, as `paths.locations` makes it.
        split_file: deals the images of train2017 and val2017 out anew; None is COCO's own split.
        resized_to: the pixels of the copies' shorter side that are read instead of the images; None reads the
            images themselves.
    """

    paths: Mapping[str, Path]
    split_file: SplitFile | None = None
    resized_to: int | None = None

    @classmethod
    def open(cls, paths: Mapping[str, Path], split_file: Path | None = None) -> Self:
        """The data with the split file that `--split-file` names, or with their own, checked against them.

        The data's own is what `process_coco.py --own` wrote beside images for test: they must never be taken
        for others because a flag was forgotten.

        Raises:
            UsageError: the split file cannot be read or does not fit the data.
        """
        if split_file is None and paths["split_file"].exists() and "own" in read_json(paths["record"], {}):
            split_file = paths["split_file"]
            if distributed.is_main():
                print(f"splits: those of {split_file}", flush=True)
        if split_file is None:
            return cls(paths)
        image_ids = (load_processed(paths, folder, "image_ids") for folder in FOLDERS)
        return cls(paths, read_split_file(split_file, *image_ids))

    def for_training(
        self, splits: Sequence[str], image_size: int, checkpoint: Mapping[str, Any] | None = None
    ) -> Self:
        """The data with resized copies in place of the images, if there are any that will do.

        Copies change pixels a little, so that they are for training only; figures come from the originals.

        Args:
            splits: which are trained on.
            image_size: the model's, pixels.
            checkpoint: the one that is resumed, if one is: it keeps to what it began with.

        Raises:
            UsageError: the run was begun with copies that are gone, or its machines hold different ones.
        """
        folders = folder_splits(splits, self.split_file)
        size = size_for_training(folders, image_size, self.paths, Record(self.paths["record"]), checkpoint)
        sizes = set(distributed.gathered(size))
        if len(sizes) > 1:
            command = prepare_command(self.paths, "--resize", max(filter(None, sizes)))
            raise UsageError(
                f"some machines of this run have copies of the pictures in {self.paths['data']} that others "
                f"lack: run `{command}` on each"
            )
        return replace(self, resized_to=size)

    def originals(self) -> Self:
        """The data without resized copies."""
        return replace(self, resized_to=None)

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data that it was trained on."""
        return {
            "split_file": self.split_file and self.split_file.facts(),
            "resized_to": self.resized_to,
            **self.identity(),
        }

    def identity(self) -> dict[str, dict[str, str]]:
        """By what data are told from others: a root by the ids of its train2017, wherever it lies.

        No path is in it, for it stays in what is published of a captioner.
        """
        ids = np.array(load_processed(self.paths, "train", "image_ids"), "<i8")
        words = f"{len(ids):,} training images of {self.paths['data'].resolve().name}"
        return {"root": {"words": words, "sha256": hashlib.sha256(np.sort(ids).tobytes()).hexdigest()}}

    def image_kind(self) -> str:
        """Which images are read, in words."""
        return f"copies of {self.resized_to} pixels" if self.resized_to else "originals of full size"

    def how_to_mend(self) -> str:
        """What to do about images that cannot be read, in words."""
        return f"list them with `{check_command(self.paths)}`, put whole files in their places"

    def image_file(self, split: str, image_id: int) -> Path:
        """The file of an image of a split."""
        if self.split_file is not None:
            split = self.split_file.folder_split(split, image_id)
        folder = self.paths[f"{split}_images"]
        if self.resized_to is not None:
            folder = resized_folder(folder, self.resized_to)
        return folder / image_name(image_id)

    def image_ids(self, split: str) -> list[int]:
        """The ids of a split's images; errors as in `coco.data.load_processed`."""
        return self._load(split, "image_ids", int)

    def captions(self, split: str) -> list[tuple[int, list[str]]]:
        """(image id, its captions) of each image of a split; errors as in `coco.data.load_processed`."""
        return self._load(split, "im2capts", itemgetter(0))

    def tokenized(self, split: str, vocabulary_size: int = MOST_TOKENS) -> list[dict[str, Any]]:
        """{"caption": [ids], "image_id": int} of each caption of a split.

        Args:
            split: "train", "val", or "test" of a split file.
            vocabulary_size: of the tokenizer; a token that is not below it is an error.

        Raises:
            UsageError: as in `coco.data.load_processed`.
        """
        return self._load(split, "tokenized", itemgetter("image_id"), vocabulary_size)

    def splits_with_images(self, splits: Sequence[str]) -> list[str]:
        """Of the splits that pre-training asks for, those that there are images of.

        Only "unlabeled" may be left out: COCO's is 20 GB, and data of one's own seldom have any.

        Raises:
            UsageError: a machine of this run has unlabeled images, and another has none.
        """
        paths = self.paths
        # A list alone is of no use, for images may be taken away later on; copies of them are.
        absent = not any(map(picture_ids, with_copies(paths["unlabeled_images"])))
        there = [split for split in splits if not (split == "unlabeled" and absent)] or list(splits)
        if len(set(distributed.gathered(tuple(there)))) > 1:
            raise UsageError(
                f"some machines of this run have unlabeled images in {paths['data']} that others lack: bring "
                "them to all, or leave unlabeled out of splits in the configuration"
            )
        return there

    def _load(
        self, split: str, what: str, image_id_of: Callable[[Any], int], vocabulary_size: int = MOST_TOKENS
    ) -> list[Any]:
        """What `load_processed` loads, of the images that the split file gives to a split."""
        if self.split_file is None or split not in self.split_file.ids:
            return load_processed(self.paths, split, what, vocabulary_size)
        members = set(self.split_file.ids[split].tolist())
        if not members:
            raise UsageError(f"{self.split_file.name} has no pictures for {split}")
        lists = [load_processed(self.paths, folder, what, vocabulary_size) for folder in FOLDERS]
        return [entry for entry in itertools.chain.from_iterable(lists) if image_id_of(entry) in members]


class Ragged:
    """A read-only list of rows of integers, held as one tensor of values and one of offsets.

    A Python list of 591,753 captions would be copied, page by page, into every loader worker, because merely
    reading an object writes its reference count.  A tensor's values have none and stay shared.

    Args:
        rows: the rows, each of any length.
        typecode: how a value is stored, as in Python's `array`: "i" 32 bits, "B" a byte.
    """

    def __init__(self, rows: Iterable[Sequence[int]], typecode: str = "i"):
        values, offsets = array(typecode), array("q", [0])
        for row in rows:
            values.extend(row)
            offsets.append(len(values))
        self.values = torch.from_numpy(np.array(values))
        self.offsets = torch.from_numpy(np.array(offsets))  # row i is values[offsets[i] : offsets[i + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """(rows,) int64."""
        return self.offsets.diff()

    def __getitem__(self, row: int) -> Tensor:
        start, end = self.offsets[row : row + 2].tolist()
        return self.values[start:end]
