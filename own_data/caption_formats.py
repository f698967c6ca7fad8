"""Reading the caption files that data sets come with: each in its own form, told apart by looking.

    COCO             {"images": [{"id", "file_name"}, ...], "annotations": [{"image_id", "caption"}, ...]}
    Karpathy's JSON  {"images": [{"filename", "filepath", "split", "sentences": [{"raw"}, ...]}, ...]}
    rows             tables and JSON objects: see `own_data.caption_tables`

Text is UTF-8, with or without a byte order mark, or UTF-16 with one; anything else is read as Windows-1252.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from coco.caption_files import plain_id
from own_data.caption_tables import Entry, entries_of_rows, entries_of_text, split_of_name, split_of_value
from support.errors import UsageError

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".token")  # of files that may hold captions
OTHERS = re.compile(  # COCO's other annotations, and Flickr8k's captions as word stems
    r"(instances|person_keypoints|stuff|panoptic|image_info)_.*|.*\.lemma\..*", re.IGNORECASE
)
HIGHEST_ID = 10**18 - 1  # file names in COCO's layout have 18 digits at most


class CaptionFile(NamedTuple):
    """A caption file, read."""

    path: Path
    form: str  # in a few words, for messages
    entries: list[Entry]
    notes: list[str]  # what was odd about it, a line each


def read_caption_file(path: Path, column: str | None = None) -> CaptionFile | None:
    """Reads a file if it is a caption file.

    Args:
        path: of the file.
        column: the name of the captions' column in a table or in JSON rows; None finds it.

    Returns:
        What it holds, or None if it is no caption file.

    Raises:
        UsageError: it is one, but is not whole, or its captions may be in several columns.
        OSError: the system does not let it be read.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES or OTHERS.fullmatch(path.name):
        return None
    text, notes = decoded_text(path)
    if suffix == ".json":
        found = _read_json(path, text, column)
    elif _begins_with_object(text) or (suffix != ".txt" and text.lstrip().startswith("{")):
        found = "JSON rows", entries_of_rows(path, list(_json_lines(path, text)), column)
    else:
        found = entries_of_text(path, text, column, notes)
    return CaptionFile(path, *found, notes) if found and found[1] else None


def _begins_with_object(text: str) -> bool:
    """Whether the first line is a JSON object: a text of another kind may begin with a brace, too."""
    try:
        return isinstance(json.loads(text.lstrip().partition("\n")[0]), dict)
    except (ValueError, RecursionError):
        return False


def decoded_text(path: Path) -> tuple[str, list[str]]:
    """A file's text with its lines ending in "\\n", and a note where its encoding had to be guessed."""
    content, notes = path.read_bytes(), []
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
        notes = [f"{path} is not UTF-8: it was read as Windows-1252, which is like Latin-1"]
    return text.replace("\r\n", "\n").replace("\r", "\n"), notes


def read_split_list(path: Path) -> tuple[str, list[str]] | None:
    """A split and the file's lines, if it may be a list of its images: a name a line, as Flickr8k's are."""
    split = split_of_name(path.stem)
    if path.suffix.lower() != ".txt" or split is None:
        return None
    return split, [line.strip() for line in decoded_text(path)[0].split("\n") if line.strip()]


def _read_json(path: Path, text: str, column: str | None) -> tuple[str, list[Entry] | None] | None:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        if str(error).startswith("Extra data") and text.lstrip().startswith("{"):  # an object a line
            return "JSON rows", entries_of_rows(path, list(_json_lines(path, text)), column)
        if split_of_name(path.stem) or "caption" in path.name.lower():
            raise UsageError(f"{path} is not whole ({error!s:.80}): mend it, or take it away") from None
        return None
    if isinstance(content, list):
        return "JSON rows", entries_of_rows(path, [row for row in content if isinstance(row, dict)], column)
    images = content.get("images") or [] if isinstance(content, dict) else None
    if not isinstance(images, list):
        return None
    if any("sentences" in image for image in images if isinstance(image, dict)):
        return "Karpathy's JSON", [_of_karpathy(path, place, image) for place, image in enumerate(images)]
    notes = content.get("annotations")
    if isinstance(notes, list) and any("caption" in note for note in notes if isinstance(note, dict)):
        return "COCO", _of_coco(path, images, notes)
    return None


def _of_karpathy(path: Path, place: int, image: Any) -> Entry:
    try:
        name = "/".join(filter(None, (image.get("filepath"), image["filename"])))
        captions = [str(sentence["raw"]) for sentence in image["sentences"]]
    except (KeyError, TypeError, AttributeError):
        raise UsageError(f'{path}: images[{place}] needs "filename" and "sentences" with "raw"') from None
    return Entry(name, captions, split_of_value(path, image.get("split")), _whole(_id(image.get("cocoid"))))


def _of_coco(path: Path, images: list[Any], annotations: list[Any]) -> list[Entry]:
    """An entry for each image; where captions are of an image that is not listed, its id is its name."""
    names: dict[int | str, str] = {}
    captions: dict[int | str, list[str]] = {}
    for place, image in enumerate(images):
        key = _id(image.get("id")) if isinstance(image, dict) else None
        name = image.get("file_name") if isinstance(image, dict) else None
        if key is None or not isinstance(name, str) or not name:
            raise UsageError(f'{path}: images[{place}] needs "id" and "file_name"')
        if names.setdefault(key, name) != name:
            raise UsageError(f"{path}: images[{place}], {name!r}, has the id of {names[key]!r}, {key!r:.40}")
        captions[key] = []
    for place, annotation in enumerate(annotations):
        key = _id(annotation.get("image_id")) if isinstance(annotation, dict) else None
        if key is None:
            raise UsageError(f'{path}: annotations[{place}] needs "image_id" and "caption"')
        caption = annotation.get("caption")
        if not isinstance(caption, str | None):
            raise UsageError(f"{path}: annotations[{place}] has a caption that is no text: {caption!r:.40}")
        captions.setdefault(key, []).append(caption or "")
    return [
        Entry(names.get(key, f"image {key}"), texts, None, _whole(key)) for key, texts in captions.items()
    ]


def _id(value: Any) -> int | str | None:
    """An id as it can be compared: 7, 7.0 and "7" are the same, and "left-7" is another; a bool is none."""
    number = plain_id(value)
    return value if number is None and type(value) in (int, str) and value != "" else number


def _whole(key: int | str | None) -> int | None:
    return key if isinstance(key, int) and 0 <= key <= HIGHEST_ID else None


def _json_lines(path: Path, text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}: line {number} is no JSON object ({error!s:.80})") from None
        if isinstance(row, dict):
            yield row
