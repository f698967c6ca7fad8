"""Captions in rows: tables with column names, JSON objects with the same keys, and lines without names.

image,caption                                        Flickr8k's captions.txt, a hub data set's metadata.csv
image_name| comment_number| comment                  Flickr30k's results.csv
{"file_name": "0001.png", "text": "..."}             metadata.jsonl
1000268201_693b08cb0e.jpg#0<TAB>A child ...          Flickr8k.token.txt, results_20130124.token

And the words by which data sets name their splits, in a column, in a file's name and in a folder's.
"""

import csv
import json
import re
from ast import literal_eval
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from support.errors import UsageError

DELIMITERS = {"\t": "tabs", "|": "bars", ",": "commas", ";": "semicolons"}
IMAGE_NAME = r"[^\t|,;\"]+\.(?:jpe?g|jfif|png|webp|gif|bmp|tiff?|avif|jp2)(?:\.\d+)?(?:#\d+)?"
FILE_COLUMNS = (  # in order of preference
    "file_name", "filename", "image_name", "image_file", "image_path", "image", "img", "file", "path",
    "age_name",  # what copies of Flickr30k's results.csv say that lost their first letters
)  # fmt: skip
CAPTION_COLUMNS = ("caption", "captions", "comment", "text", "description", "sentence", "sentences", "raw")
NUMBERED_CAPTIONS = re.compile(r"captions?[_ ]?\d+")  # columns that hold one caption each of an image
LONGEST_FIELD = 10**7  # characters; the csv module's own limit is too low for long lists


class Entry(NamedTuple):
    """What a caption file says of one image in one place; a table says it in several rows."""

    name: str  # of the image's file, as it stands there
    captions: list[str]  # some may be blank
    split: str | None = None  # train, val or test, where the file says so
    image_id: int | None = None


def entries_of_text(
    path: Path, text: str, wanted: str | None, notes: list[str]
) -> tuple[str, list[Entry]] | None:
    """Reads a table with column names, or lines of a name and a caption.

    Args:
        path: of the file, for messages.
        text: its content; lines end in "\\n".
        wanted: the name of the captions' column; None finds it.
        notes: takes a line about rows that are left out.

    Returns:
        The file's form in words, and its entries; None if it holds no captions.
    """
    first = next((line for line in text.split("\n") if line.strip()), "")
    for delimiter, word in DELIMITERS.items():
        columns = [name.strip().strip('"').strip() for name in first.split(delimiter)]
        if len(columns) > 1 and _first_of(FILE_COLUMNS, columns):
            rows = list(_table_rows(path, text, delimiter, columns, wanted, notes))
            entries = entries_of_rows(path, rows, wanted, columns)
            return entries and (f"table with {word}", entries)
        if re.match(rf"\s*\"?{IMAGE_NAME}\"?\s*{re.escape(delimiter)}", first, re.IGNORECASE):
            entries = _entries_of_lines(path, text, delimiter, notes)
            return entries and (f"lines with {word}", entries)
    return None


def entries_of_rows(
    path: Path, rows: Sequence[Mapping[str, Any]], wanted: str | None, columns: Iterable[str] = ()
) -> list[Entry] | None:
    """Entries from rows whose fields have names; None if they have no names of images, or no captions.

    Raises:
        UsageError: the captions may be in several columns, or it is a metadata file and they are in none.
    """
    columns = list(dict.fromkeys(columns or (str(name) for row in rows for name in row)))
    file_column = _first_of(FILE_COLUMNS, columns)
    captions_of = file_column and _caption_reader(path, [c for c in columns if c != file_column], wanted)
    if not captions_of:
        return None
    split_column = _first_of(["split"], columns)
    return [
        Entry(str(row[file_column]).strip(), captions_of(row), split_of_value(path, row.get(split_column)))
        for row in rows
        if row.get(file_column)
    ]


def split_of_value(path: Path, value: Any) -> str | None:
    """The split that a field names; None where it is empty.

    Raises:
        UsageError: it is no split.
    """
    if value is None or not str(value).strip():
        return None
    split = split_of_word(str(value))
    if split is None:
        raise UsageError(f"{path}: {value!r:.40} is no split: take {', '.join(SPLIT_NAMES)}")
    return split


def texts_of(path: Path, value: Any) -> list[str]:
    """The captions that a field holds: one, or a list of them, which in a table is written as JSON or Python.

    Raises:
        UsageError: it holds something else.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        for read in (json.loads, literal_eval):
            with suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                value = read(value)
                break
    if isinstance(value, list):
        return [text for item in value for text in texts_of(path, item)]
    if isinstance(value, dict):  # as Karpathy's sentences
        value = next((value[key] for key in CAPTION_COLUMNS if key in value), value)
    if value is None or value != value:  # not a number: a blank, as pandas writes it
        return [""]
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise UsageError(f"{path}: a caption is no text: {value!r:.60}")
    return [str(value)]


def _caption_reader(
    path: Path, columns: list[str], wanted: str | None
) -> Callable[[Mapping[str, Any]], list[str]] | None:
    """A function from a row to its captions; None where no column is known to hold them."""
    found = [name for name in columns if NUMBERED_CAPTIONS.fullmatch(name.lower())]
    found = [name for name in columns if name.lower() in CAPTION_COLUMNS] or found
    if wanted is not None:
        found = [name for name in columns if name.lower() == wanted.lower()]
    elif len(found) > 1 and not NUMBERED_CAPTIONS.fullmatch(found[0].lower()):
        raise UsageError(f"{path} may hold its captions in {', '.join(found)}: choose with --caption-column")
    if not found and path.stem.lower() == "metadata":
        raise UsageError(
            f"{path}: which of its columns holds the captions, {', '.join(columns)}? "
            "Name it with --caption-column"
        )
    return (lambda row: [text for name in found for text in texts_of(path, row.get(name))]) if found else None


def _table_rows(
    path: Path, text: str, delimiter: str, columns: list[str], wanted: str | None, notes: list[str]
) -> Iterator[dict[str, str]]:
    """The rows below the column names, each with its fields by column."""
    captions = _first_of([wanted.lower()] if wanted else CAPTION_COLUMNS, columns)
    place = columns.index(captions) if captions else len(columns) - 1
    odd = []
    for fields in _all_fields(text, delimiter)[1:]:
        number = re.fullmatch(r"\s*(\d+)\s+(.+)", fields[-1]) if delimiter == "|" else None
        if number and len(fields) == len(columns) - 1:  # in Flickr30k one row lacks its second bar
            fields = [*fields[:-1], *number.groups()]
        if len(fields) > len(columns):  # a caption that nobody has quoted
            end = place + 1 + len(fields) - len(columns)
            fields = [*fields[:place], delimiter.join(fields[place:end]), *fields[end:]]
        if len(fields) == len(columns):
            yield dict(zip(columns, fields))
        else:
            odd.append(delimiter.join(fields))
    _note_odd(path, odd, notes)


def _all_fields(text: str, delimiter: str) -> list[list[str]]:
    """All rows that are not empty, in fields.

    Quoted fields may hold line ends.  Where quotation marks are just what somebody said, one that is never
    closed would swallow the rows below: each line is a row then.
    """
    csv.field_size_limit(LONGEST_FIELD)
    next_row = re.compile(rf"\n\s*\"?{IMAGE_NAME}\"?\s*{re.escape(delimiter)}", re.IGNORECASE)

    def parsed(lines: Iterable[str]) -> list[list[str]]:
        rows = csv.reader((line + "\n" for line in lines), delimiter=delimiter, strict=True)
        return [row for row in rows if any(field.strip() for field in row)]

    lines = text.split("\n")
    with suppress(csv.Error):
        rows = parsed(lines)
        if not any("\n" in field and next_row.search(field) for row in rows for field in row):
            return rows
    rows = []
    for line in filter(str.strip, lines):
        try:
            rows += parsed([line])
        except csv.Error:
            rows.append(line.split(delimiter))
    return rows


def _entries_of_lines(path: Path, text: str, delimiter: str, notes: list[str]) -> list[Entry] | None:
    """A name and a caption a line; None where the second is a caption's name, as in ratings of captions."""
    entries, odd = [], []
    for line in filter(str.strip, text.split("\n")):
        name, separator, caption = line.partition(delimiter)
        if re.match(rf"{IMAGE_NAME}{re.escape(delimiter)}", caption, re.IGNORECASE):
            return None
        if delimiter == "|":
            caption = re.sub(r"^\s*\d+\s*\|", "", caption)  # the caption's number
        quoted = re.fullmatch(r'\s*"(.*)"\s*', caption) if delimiter == "," else None
        if separator:
            caption = quoted[1].replace('""', '"') if quoted else caption
            entries.append(Entry(re.sub(r"#\d+$", "", name.strip().strip('"')), [caption]))
        else:
            odd.append(line)
    _note_odd(path, odd, notes)
    return entries


def _note_odd(path: Path, odd: list[str], notes: list[str]) -> None:
    if odd:
        notes.append(
            f"{path}: {len(odd):,} rows lack a field and are left out, such as {odd[0].strip()!r:.80}"
        )


def _first_of(names: Iterable[str], columns: Iterable[str]) -> str | None:
    lower = {column.lower(): column for column in columns}
    return next((lower[name] for name in names if name in lower), None)


SPLIT_NAMES = {
    "train": "train", "training": "train", "restval": "train", "val": "val", "valid": "val",
    "validation": "val", "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
IN_NAME = re.compile(
    r"(?<![a-z])(?:(?P<train>train(?:ing)?)|(?P<val>val(?:id(?:ation)?)?|dev)|(?P<test>test(?:ing)?))"
    r"(?:images?)?(?![a-z])"
)


def split_of_word(word: str) -> str | None:
    """train, val or test, for any of the words in use; None for another word."""
    return SPLIT_NAMES.get(word.strip().lower())


def split_of_name(name: str) -> str | None:
    """The split that a file's name speaks of: `captions_val2014.json`, `Flickr_8k.trainImages.txt`, ..."""
    found = {match.lastgroup for match in IN_NAME.finditer(name.lower())}
    return found.pop() if len(found) == 1 else None


def split_of_folder(path: str) -> str | None:
    """The split whose folder a relative path leads through: `train/`, `validation/`, `val2014/`, ..."""
    for folder in reversed(path.split("/")[:-1]):
        split = split_of_word(re.sub(r"[_-]?\d{4}$", "", folder))
        if split:
            return split
    return None
