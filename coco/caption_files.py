"""COCO's caption files: reading them, which may be truncated, damaged, or made by another program; and
making of them the lists that `process_coco.py` leaves in `processed/`: images, their captions, the tokens.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from support.errors import UsageError
from support.files import digest, replacing

HIGHEST_ID = 2**63 - 1  # ids become 64-bit integers
LONGEST_CAPTION = 10_000  # characters; COCO's have 250 at most, and a word's pieces cost its length squared


class Captions(NamedTuple):
    """What a caption file says."""

    image_ids: list[int]  # the images that it lists, or else those that its captions name, ascending
    captions: list[tuple[int, str]]  # (image_id, caption), in the file's order, without blanks around
    blank: list[int]  # image_ids of captions that are blank, null or missing


def read_captions(path: Path) -> Captions:
    """Reads a file in COCO's layout: "images" with their "id", "annotations" with "image_id" and "caption".

    Where there is no list "images", or nothing in it, the images are those that the annotations name.

    Raises:
        UsageError: it cannot be read, is not whole, or is not of this layout.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not whole ({error}): mend it; or, if it is COCO's, remove it and run process_coco.py "
            "again"
        ) from None
    has_list = not isinstance(content, dict) or content.get("images") is not None
    listed = _list(content, "images", path) if has_list else []
    image_ids = {_id(entry, "id", path, "images", place) for place, entry in enumerate(listed)}
    captions, blank = [], []
    for place, entry in enumerate(_list(content, "annotations", path)):
        image_id = _id(entry, "image_id", path, "annotations", place)
        caption = entry.get("caption")
        if not isinstance(caption, str | None):
            raise UsageError(f"{path}: annotations[{place}] has a caption that is no text: {caption!r:.40}")
        # JSON can spell half a character (a lone surrogate), which no file can hold: it becomes "?".
        caption = (caption or "").strip().encode(errors="replace").decode()
        if len(caption) > LONGEST_CAPTION:
            raise UsageError(
                f"{path}: annotations[{place}] has a caption of {len(caption):,} characters, and "
                f"{LONGEST_CAPTION:,} are the most: shorten it"
            )
        if caption:
            captions.append((image_id, caption))
        else:
            blank.append(image_id)
    image_ids = image_ids or {image_id for image_id, _ in captions} | set(blank)
    return Captions(sorted(image_ids), captions, blank)


def digest_of_captions(path: Path) -> str:
    """The digest of a caption file, which changes with its captions; UsageError where there is none."""
    if not path.is_file():
        raise UsageError(
            f"{path} is not there: put it there, or, if it is COCO's, name its split with --splits, without "
            "--captions-only"
        )
    return digest(path)


def plain_id(value: Any) -> int | None:
    """The image id that a file spells as 7, 7.0 (so writes pandas) or "7"; None for all else."""
    if isinstance(value, float):  # from 2 ** 53 on it may stand for its neighbors, too
        value = int(value) if value.is_integer() and value < 2**53 else None
    elif isinstance(value, str):
        value = int(value) if re.fullmatch("[0-9]{1,19}", value, re.ASCII) else None
    return value if type(value) is int and 0 <= value <= HIGHEST_ID else None  # a bool is an int, too


def _list(content: Any, key: str, path: Path) -> list:
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, list):
        raise UsageError(f'{path} has no list "{key}": it is not a caption file in COCO\'s layout')
    return value


def _id(entry: Any, key: str, path: Path, kind: str, place: int) -> int:
    value = entry.get(key) if isinstance(entry, dict) else None
    if (image_id := plain_id(value)) is None:
        raise UsageError(f'{path}: {kind}[{place}] needs a whole number as "{key}", got {value!r:.40}')
    return image_id


def caption_structures(split: str, where: Mapping[str, Path], pictures: list[int]) -> Sequence[list]:
    """A split's three structures.

    Args:
        split: train or val.
        where: the file locations.
        pictures: ids of the images that are there, ascending; where none is, the caption file says which.

    Returns:
        The image ids; `(image_id, [captions])` for each of them; `{"caption": [ids], "image_id": id}` for
        each caption, whole, from <SOS> to <EOS>.

    Raises:
        UsageError: no caption is left.
    """
    from coco.tokenizer import load_tokenizer, losing_accents

    read = read_captions(where[f"{split}_captions"])
    pictures = pictures or read.image_ids
    im2capts: dict[int, list[str]] = {image_id: [] for image_id in pictures}
    kept = [(image_id, caption) for image_id, caption in read.captions if image_id in im2capts]
    if not kept:
        raise UsageError(_why_none(split, where, read))
    for image_id, caption in kept:
        im2capts[image_id].append(caption)
    tokenizer, tokenized = load_tokenizer(where["tokenizer"]), []
    for start in range(0, len(kept), 10_000):  # an encoding holds far more than the ids that we keep
        batch = kept[start : start + 10_000]
        encodings = tokenizer.encode_batch_fast([caption for _, caption in batch])
        tokenized += [
            {"caption": code.ids, "image_id": image_id} for code, (image_id, _) in zip(encodings, batch)
        ]
    print(f"{split}: {len(pictures):,} pictures, {len(kept):,} captions")
    if losing := losing_accents(tokenizer, [caption for _, caption in kept]):
        print(f"{split}: {len(losing):,} captions lose their accents; with --keep-accents they keep them")
    report_losses(split, read, im2capts)
    return pictures, list(im2capts.items()), tokenized


def _why_none(split: str, where: Mapping[str, Path], read: Captions) -> str:
    captions, folder = where[f"{split}_captions"], where[f"{split}_images"]
    if not read.captions:
        return f"{captions} holds no caption: add some, or leave {split} out with --splits"
    ids = ", ".join(str(image_id) for image_id, _ in read.captions[:5]) + " ..." * (len(read.captions) > 5)
    return (
        f"none of the {len(read.captions):,} captions in {captions} is of an image in {folder}: they are of "
        f"images {ids}, and the file of image 7 is 000000000007.jpg: rename the files, or let "
        "`python process_coco.py --own DIR` make a data root"
    )


def report_losses(split: str, read: Captions, im2capts: dict[int, list[str]]) -> None:
    """Says what the caption file holds that is not used."""
    missing = [image_id for image_id in read.image_ids if image_id not in im2capts]
    losses = {
        "captions are blank; they are of the pictures": read.blank,
        "captions are of pictures that are not there": [i for i, _ in read.captions if i not in im2capts],
        "pictures are listed but not there": missing,
    }
    for what, ids in losses.items():
        if ids:
            print(f"{split}: {len(ids):,} {what}: {', '.join(map(str, ids[:5]))}{' ...' * (len(ids) > 5)}")
    if missing:
        names = ", ".join(f"{image_id:012d}.jpg" for image_id in missing[:5]) + " ..." * (len(missing) > 5)
        print(
            f"warning: {split}: {len(missing):,} of {len(read.image_ids):,} images that the captions list "
            f"are not there: {names}: training goes on without them; put them there, or remove their entries",
            file=sys.stderr,
        )


def require_ours(structures: Sequence[list], files: Sequence[Path], lengths: Sequence[int] | None) -> None:
    """Checks, before lists are written, whether files of these names were made by another program.

    Args:
        structures: what is to be written.
        files: where.
        lengths: of the files as we left them, bytes; None where we were about to write them.

    Raises:
        UsageError: a file of another length holds something else.
    """
    for structure, file, length in zip(structures, files, lengths or []):
        if file.exists() and file.stat().st_size not in (0, length) and not _holds(file, structure):
            raise UsageError(
                f"{file} was not made here, and is not replaced: move it away, and run this again"
            )


def _holds(file: Path, structure: list) -> bool:
    import torch

    try:
        return torch.load(file, weights_only=True) == structure
    except Exception:  # of whatever kind: a damaged archive breaks its reader in many ways
        return False


def save(structure: list, path: Path) -> None:
    import torch  # here, because it takes seconds to import and a second run need not wait for them

    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save(structure, file)
