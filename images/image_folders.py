"""The images in a folder of any kind, a camera's or a Mac's, say, and what of it is left out."""

import os
import re
from collections import Counter
from pathlib import Path

from images.image_files import HEIC_SUFFIXES, suffixes

ENDING = re.compile(r"\.\w{1,8}")
LISTED = 6  # endings of names; rarer ones are counted and not listed
HIDDEN, HEIC, FOLDER, LINK, CLOSED = "hidden", "HEIC", "folder", "link", "closed"
WORDS = {  # why something is left out, if it is not for its ending: of one, of many, and what would do
    HIDDEN: ("hidden file or folder", "hidden files and folders", ""),
    HEIC: ("HEIC image", "HEIC images", " (convert to JPEG)"),
    FOLDER: ("sub-folder", "sub-folders", " (--recursive looks inside)"),
    LINK: ("link to a folder", "links to folders", ""),
    CLOSED: ("folder that may not be read", "folders that may not be read", ""),
}


def find_images(folder: Path, recursive: bool = False) -> tuple[list[Path], Counter[str]]:
    """The images in a folder, by the endings of their names.

    Args:
        folder: where to look.
        recursive: whether to look into its sub-folders, too.  Links to folders are not followed: they may
            lead round in a circle, or to the whole disk.

    Returns:
        The files in order of name, and what was left out: how many, by a key of `WORDS` or by their ending.
    """
    found, left_out = [], Counter()
    folders = [folder]
    while folders:
        inside = folders.pop()
        try:
            entries = list(os.scandir(inside))
        except OSError:
            if inside == folder:
                raise
            left_out[CLOSED] += 1
            continue
        for entry in entries:
            reason = _why_not(entry)
            if reason is None:
                found.append(inside / entry.name)
            elif reason == FOLDER and recursive:
                folders.append(inside / entry.name)
            else:
                left_out[reason] += 1
    return sorted(found), left_out


def _why_not(entry: os.DirEntry) -> str | None:
    """Why an entry is no image, as a key of `WORDS` or as the ending of its name; None for an image."""
    if entry.name.startswith("."):  # a Mac leaves `._x.jpg`, which is no image, beside `x.jpg`
        return HIDDEN
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError:  # a link to itself, or to where we may not look
        is_folder = is_file = False
    if is_folder:
        return LINK if entry.is_symlink() else FOLDER
    ending = os.path.splitext(entry.name)[1].lower()
    if ending in HEIC_SUFFIXES:
        return HEIC
    if ending in suffixes() and (is_file or not os.path.exists(entry.path)):
        return None  # a link that leads nowhere is among them: reading it says so
    return ending if ENDING.fullmatch(ending) else "without a usual ending"


def in_words(left_out: Counter[str]) -> str:
    """What was left out of folders, and why, in one line; "" for nothing."""
    parts = []
    others = [(-number, ending) for ending, number in left_out.items() if ending not in WORDS]
    if others:
        number = -sum(count for count, _ in others)
        kinds = [f"{-count} {ending}" for count, ending in sorted(others)[:LISTED]]
        kinds += ["..."] * (len(others) > LISTED)
        parts.append(f"{number:,} file{'s' * (number > 1)} of other kinds ({', '.join(kinds)})")
    for reason, (one, many, advice) in WORDS.items():
        if left_out[reason]:
            parts.append(f"{left_out[reason]:,} {one if left_out[reason] == 1 else many}{advice}")
    return f"left out {', '.join(parts)}" if parts else ""
