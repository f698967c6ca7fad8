"""Reading the lists that `process_coco.py` leaves in `processed/`, by COCO's splits or a split file's."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from coco.caption_files import HIGHEST_ID
from coco.split_file import FOLDERS, SplitFile, read_split_file
from coco.tokenizer import load_tokenizer
from images.image_folders import picture_ids
from support import distributed
from support.errors import UsageError
from support.files import read_json
from support.remedies import prepare_command

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


def load_data_tokenizer(paths: Mapping[str, Path]) -> Tokenizer:
    """The tokenizer of a data set.

    Raises:
        UsageError: it is missing or damaged.
    """
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


def load_split(
    paths: Mapping[str, Path],
    split: str,
    what: str,
    split_file: SplitFile | None = None,
    vocabulary_size: int = MOST_TOKENS,
) -> list[Any]:
    """What `load_processed` loads, of the pictures that a split file gives to a split."""
    if split_file is None or split not in split_file.ids:
        return load_processed(paths, split, what, vocabulary_size)
    image_id_of = {"tokenized": itemgetter("image_id"), "im2capts": itemgetter(0), "image_ids": int}[what]
    members = set(split_file.ids[split].tolist())
    if not members:
        raise UsageError(f"{split_file.name} has no pictures for {split}")
    lists = [load_processed(paths, folder, what, vocabulary_size) for folder in FOLDERS]
    entries = itertools.chain.from_iterable(lists)
    return [entry for entry in entries if image_id_of(entry) in members]


def splits_with_images(paths: Mapping[str, Path], splits: Sequence[str]) -> list[str]:
    """Of the splits that pre-training asks for, those that there are images of.

    Only "unlabeled" may be left out: COCO's is 20 GB, and data of one's own seldom have any.

    Raises:
        UsageError: a machine of this run has unlabeled images, and another has none.
    """
    absent = not paths["unlabeled_image_ids"].exists() and not picture_ids(paths["unlabeled_images"])
    there = [split for split in splits if not (split == "unlabeled" and absent)] or list(splits)
    if len(set(distributed.gathered(tuple(there)))) > 1:
        raise UsageError(
            f"some machines of this run have unlabeled images in {paths['data']} that others lack: bring "
            "them to all, or leave unlabeled out of splits in the configuration"
        )
    return there


def open_split_file(path: Path | None, paths: Mapping[str, Path]) -> SplitFile | None:
    """The split file that `--split-file` names, or the data's own, checked against the data; None without.

    The data's own is what `process_coco.py --own` wrote beside images for test: they must never be taken for
    others because a flag was forgotten.
    """
    if path is None and paths["split_file"].exists() and "own" in read_json(paths["record"], {}):
        path = paths["split_file"]
        if distributed.is_main():
            print(f"splits: those of {path}", flush=True)
    if path is None:
        return None
    return read_split_file(path, *(load_processed(paths, folder, "image_ids") for folder in FOLDERS))
