"""Reading COCO's caption files, which may be cut, damaged, or made by somebody else in another way."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from support.errors import UsageError

HIGHEST_ID = 2**63 - 1  # ids become 64-bit integers
LONGEST_CAPTION = 10_000  # characters; COCO's have 250 at most, and a word's pieces cost its length squared


class Captions(NamedTuple):
    """What a caption file says."""

    image_ids: list[int]  # the pictures that it lists, ascending
    captions: list[tuple[int, str]]  # (image_id, caption), in the file's order, without blanks around
    blank: list[int]  # image_ids of captions that are blank, null or missing


def read_captions(path: Path) -> Captions:
    """Reads a file in COCO's layout: "images" with their "id", "annotations" with "image_id" and "caption".

    Raises:
        UsageError: it cannot be read, is not whole, or is not of this layout.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not whole ({error}): remove it and run process_coco.py again") from None
    image_ids = {
        _id(entry, "id", path, "images", place) for place, entry in enumerate(_list(content, "images", path))
    }
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
    return Captions(sorted(image_ids), captions, blank)


def captions_are_whole(path: Path) -> bool:
    """Whether the file can be read from end to end."""
    try:
        read_captions(path)
    except UsageError:
        return False
    return True


def _list(content: Any, key: str, path: Path) -> list:
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, list):
        raise UsageError(f'{path} has no list "{key}": it is not a caption file in COCO\'s layout')
    return value


def _id(entry: Any, key: str, path: Path, kind: str, place: int) -> int:
    value = entry.get(key) if isinstance(entry, dict) else None
    if type(value) is not int or not 0 <= value <= HIGHEST_ID:  # a bool is an int, too
        raise UsageError(f'{path}: {kind}[{place}] needs a whole number as "{key}", got {value!r:.40}')
    return value
