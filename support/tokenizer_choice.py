"""Whose the tokenizer of a data root is, ours or the user's own, and which training it fits."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.command_line import VOCABULARY_SIZES
from support.errors import UsageError
from support.files import Record, digest, replacing

Facts = dict[str, Any]  # what a tokenizer was made from


def made_from(record: Record) -> Facts:
    """What our tokenizer was made from, and the digest of its "file"; nothing where none is ours."""
    known = record.facts("tokenizer")
    return known if "file" in known else {}


def is_own(tokenizer: Path, record: Record) -> bool:
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
    from support.tokenizer import EOS, SOS, SPECIAL_TOKENS, load_tokenizer

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


def tokenized_by_another(split: str, paths: Mapping[str, Path], record: Record) -> bool:
    """Whether a split's captions were tokenized by another tokenizer than is there now."""
    made_by = record.facts(split).get("tokenizer")
    return made_by is not None and made_by != digest(paths["tokenizer"])


def require_same_tokenizer(paths: Mapping[str, Path]) -> None:
    """Raises UsageError where the processed captions are of another tokenizer than is there now."""
    record = Record(paths["record"])
    for split in ("train", "val"):
        if tokenized_by_another(split, paths, record):
            raise UsageError(
                f"{paths[f'{split}_tokenized']} was made by another tokenizer than {paths['tokenizer']}: run "
                f"`python process_coco.py --captions-only --data {paths['data']}`"
            )


def smaller_tokenizer(paths: Mapping[str, Path], size: int) -> str:
    """How to have a tokenizer of at most `size` pieces, as an error's end; empty where none can be had."""
    if size < VOCABULARY_SIZES[0]:
        return ""
    own = is_own(paths["tokenizer"], Record(paths["record"]))
    return (
        f", or {'move this tokenizer, which was not made here, away and ' * own}run `python process_coco.py "
        f"--captions-only --vocabulary-size {size} --data {paths['data']}`"
    )
