"""Reading the lists that `process_coco.py` leaves in `processed/`, by COCO's splits or a split file's."""

from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from support.errors import UsageError
from support.split_file import FOLDERS, SplitFile, read_split_file


def load_processed(paths: Mapping[str, Path], split: str, what: str) -> list[Any]:
    """One of the lists that `process_coco.py` writes: "tokenized", "im2capts" or "image_ids" of a split.

    Raises:
        UsageError: the split has no such list, or its file is missing, damaged or empty.
    """
    path, remedy = paths.get(f"{split}_{what}"), f"run `python process_coco.py --data {paths['data']}`"
    if path is None:
        known = [key.removesuffix(f"_{what}") for key in paths if key.endswith(f"_{what}")]
        raise UsageError(f"the split {split!r} has no {what}; those that have are {', '.join(known)}")
    if not path.exists():
        raise UsageError(f"{path} is missing: {remedy} first")
    try:
        processed = torch.load(path, weights_only=True)
    except Exception as error:  # of whatever kind: a damaged archive breaks its reader in many ways
        raise UsageError(f"{path} is damaged ({type(error).__name__}): remove it and {remedy}") from error
    if not processed:
        raise UsageError(f"{path} is empty: {remedy} on a data set that has {split} pictures")
    return processed


def load_split(
    paths: Mapping[str, Path], split: str, what: str, split_file: SplitFile | None = None
) -> list[Any]:
    """What `load_processed` loads, of the pictures that a split file gives to a split."""
    if split_file is None or split not in split_file.ids:
        return load_processed(paths, split, what)
    image_id_of = {"tokenized": itemgetter("image_id"), "im2capts": itemgetter(0), "image_ids": int}[what]
    members = set(split_file.ids[split].tolist())
    if not members:
        raise UsageError(f"{split_file.name} has no pictures for {split}")
    entries = [entry for folder in FOLDERS for entry in load_processed(paths, folder, what)]
    return [entry for entry in entries if image_id_of(entry) in members]


def open_split_file(path: Path | None, paths: Mapping[str, Path]) -> SplitFile | None:
    """The split file that `--split-file` names, checked against the data; None if it names none."""
    if path is None:
        return None
    return read_split_file(path, *(load_processed(paths, folder, "image_ids") for folder in FOLDERS))
