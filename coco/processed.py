"""Reading what `process_coco.py` leaves in `processed/`: the lists of each split, and the tokenizer."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from coco.caption_files import HIGHEST_ID
from coco.tokenizer import load_tokenizer
from support.errors import UsageError
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
