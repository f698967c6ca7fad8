"""Reading COCO's caption files, which may be cut, damaged, or made by somebody else in another way."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from support.errors import UsageError
from support.files import digest

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
            f"{path} is not there: put it there, run without --captions-only, or change --splits"
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
