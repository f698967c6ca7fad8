"""Whose the tokenizer of a data root is, ours or the user's own; from which captions; and which runs it fits.

A tokenizer is trained on the training captions only.  Which these are is up to the split: COCO's own, or that
of a split file, whose test captions may lie in train2017.
"""

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coco.caption_files import digest_of_captions, read_captions
from images.image_folders import picture_ids
from support.command_line import VOCABULARY_SIZES
from support.errors import UsageError, offline_command
from support.files import Record, digest, replacing

if TYPE_CHECKING:
    from coco.split_file import SplitFile  # which takes torch's time to import

COCO_SPLIT = "coco"  # in a split file's place: COCO's own split
FOLDERS = ("train", "val")  # of COCO, which split files deal out anew

Where = Mapping[str, Path]
Facts = dict[str, Any]  # what a tokenizer was made from


def made_from(record: Record) -> Facts:
    """What our tokenizer was made from, and the digest of its "file"; nothing where none is ours."""
    known = record.facts("tokenizer")
    return known if "file" in known else {}


def is_own_tokenizer(tokenizer: Path, record: Record) -> bool:
    """Whether a tokenizer is there that is not ours; an empty file is nobody's."""
    if not tokenizer.is_file() or not tokenizer.stat().st_size:
        return False
    return made_from(record).get("file") != digest(tokenizer)


def keep_own(tokenizer: Path, record: Record, asked_for: bool) -> None:
    """Keeps a tokenizer of the user's own, after a look at whether it can be used, and says so once.

    Args:
        tokenizer: its file.
        record: what is done.
        asked_for: the command line asks for a tokenizer of ours, by its size or its captions.

    Raises:
        UsageError: it would have to be replaced, or it cannot be used.
    """
    if asked_for:
        raise UsageError(
            f"{tokenizer} was not made here, and is not replaced: move it away, and run this again"
        )
    if record.agrees("tokenizer", {"own": digest(tokenizer)}):
        return
    from coco.tokenizer import EOS, SOS, SPECIAL_TOKENS, load_tokenizer

    try:
        own = load_tokenizer(tokenizer)
        tokens = own.encode("a").tokens
        if tokens[:1] != [SOS] or tokens[-1:] != [EOS]:
            raise UsageError(f"{tokenizer} does not put {SOS} before a caption and {EOS} behind it")
        if any(token in own.decode(own.encode("a").ids) for token in SPECIAL_TOKENS):
            raise UsageError(f"{tokenizer} does not leave {SOS} and {EOS} out of the text that it decodes")
    except UsageError as error:
        raise UsageError(
            f"{error}; it was not made here: mend it, or move it away to have one trained"
        ) from None
    record.note("tokenizer", {"own": digest(tokenizer)})
    print(
        f"tokenizer: {tokenizer} was not made here: it is kept and used ({own.get_vocab_size():,} pieces); "
        "move it away to have one trained"
    )


def write_ours(text: str, tokenizer: Path, facts: Facts, record: Record) -> None:
    """Writes a tokenizer; whoever is killed meanwhile leaves a file that is known to be ours, or none."""
    tokenizer.unlink(missing_ok=True)  # ours too: `keep_own` keeps others
    record.note("tokenizer", facts | {"file": hashlib.sha256(text.encode()).hexdigest()})
    with replacing(tokenizer) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def require_split_file(path: Path) -> None:
    """Raises UsageError where a file is no split file, before any work is done."""
    from coco.split_file import listed_ids

    listed_ids(path)


def training_split(where: Where, record: Record, split_file: Path | None) -> Facts:
    """Which captions a tokenizer is to be trained on.

    Args:
        where: the file locations.
        record: what is done.
        split_file: the split whose training captions these are; `COCO_SPLIT` for COCO's own; None for the
            split of the last tokenizer of ours, at first COCO's own.

    Returns:
        "captions", the digest of the caption files, and, unless it is COCO's own, the "split_file".

    Raises:
        UsageError: a caption file is not there.
    """
    if split_file is None:
        split = made_from(record).get("split_file")
    elif str(split_file) == COCO_SPLIT:
        split = None
    else:
        split = {"path": str(split_file.resolve()), "sha256": digest(split_file)}
    digests = [
        digest_of_captions(where[f"{folder}_captions"]) for folder in FOLDERS[: 1 if split is None else 2]
    ]
    return {"captions": digests[0]} if split is None else {"captions": digests, "split_file": split}


def training_captions(where: Where, split: Facts | None) -> list[str]:
    """The captions to train a tokenizer on: those of train2017, or of a split file's training images.

    Raises:
        UsageError: there are none, or the split file is gone, has changed, or is of other data.
    """
    if split is None:
        captions = [caption for _, caption in read_captions(where["train_captions"]).captions]
        if not captions:
            raise UsageError(
                f"{where['train_captions']} holds no caption, and the tokenizer is trained on them"
            )
        return captions
    from coco.split_file import read_split_file

    path = Path(split["path"])
    if not path.is_file() or digest(path) != split["sha256"]:
        raise UsageError(
            f"the tokenizer is to be trained anew, and its split file {path} is gone or has changed: name "
            f"one with --split-file, or go back to COCO's own split with --split-file {COCO_SPLIT}"
        )
    read = [read_captions(where[f"{folder}_captions"]) for folder in FOLDERS]
    there = [picture_ids(where[f"{folder}_images"]) for folder in FOLDERS]
    known = [ids or captions.image_ids for ids, captions in zip(there, read)]
    members = set(read_split_file(path, *known).ids["train"].tolist())
    captions = [caption for file in read for image_id, caption in file.captions if image_id in members]
    if not captions:
        raise UsageError(
            f"no image that {path} gives to train has a caption, and the tokenizer is trained on them"
        )
    return captions


def tokenized_by_another(split: str, paths: Where, record: Record) -> bool:
    """Whether a split's captions were tokenized by another tokenizer than is there now."""
    made_by = record.facts(split).get("tokenizer")
    return made_by is not None and made_by != digest(paths["tokenizer"])


def require_same_tokenizer(paths: Where) -> None:
    """Raises UsageError where the processed captions are of another tokenizer than is there now."""
    record = Record(paths["record"])
    for split in FOLDERS:
        if tokenized_by_another(split, paths, record):
            raise UsageError(
                f"{paths[f'{split}_tokenized']} was made by another tokenizer than {paths['tokenizer']}: run "
                f"`{offline_command(paths)}`"
            )


def require_tokenizer_of(split_file: "SplitFile | None", path: Path | None, paths: Where) -> None:
    """Sees to it that a tokenizer has not learned from captions that a run is to be tested on.

    Of a tokenizer of the user's own nobody knows; beside a split file a note says so.

    Args:
        split_file: the run's split, None for COCO's own.
        path: the file that it was read from.
        paths: the file locations.

    Raises:
        UsageError: the tokenizer was trained on another split's training captions.
    """
    from coco.split_file import split_name
    from support import distributed

    facts = split_file and split_file.facts()
    known = made_from(Record(paths["record"]))
    if not paths["tokenizer"].is_file():
        return  # whoever loads it says so
    if known.get("file") != digest(paths["tokenizer"]):
        if facts and distributed.is_main():
            print(
                f"note: {paths['tokenizer']} was not made here; to be strict, it must not have learned from "
                f"captions that {split_name(facts)} keeps for val and test",
                file=sys.stderr,
            )
        return
    learned_from = known.get("split_file")
    if (learned_from and learned_from["sha256"]) != (facts and facts["sha256"]):
        of = split_name(learned_from and {"name": Path(learned_from["path"]).name})
        command = offline_command(paths, "--split-file", path or COCO_SPLIT)
        raise UsageError(
            f"{paths['tokenizer']} was trained on the training captions of {of}, and this run is on "
            f"{split_name(facts)}: run `{command}`"
        )


def smaller_tokenizer(paths: Where, size: int) -> str:
    """How to have a tokenizer of at most `size` pieces, as an error's end; empty where none can be had."""
    if size < VOCABULARY_SIZES[0]:
        return ""
    move = "move this tokenizer, which was not made here, away and "
    own = is_own_tokenizer(paths["tokenizer"], Record(paths["record"]))
    return f", or {move * own}run `{offline_command(paths, '--vocabulary-size', size)}`"
