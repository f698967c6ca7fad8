"""The files of a folder and all folders in it, and which of them a caption file means by a name."""

import filecmp
import hashlib
import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from own_data.caption_tables import split_of_folder
from support import interrupts


class Stamp(NamedTuple):
    """By what a changed file is told."""

    size: int  # bytes
    changed: int  # nanoseconds since 1970


class FolderIndex:
    """What lies in a folder, looked at once.

    Names are relative to the folder, with "/" between, in Unicode's composed form: a caption file may spell
    an accent in one way and a file system in the other.

    Args:
        folder: the folder; hidden files and folders in it are left out, links to folders are followed.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.hidden: list[str] = []
        self.broken: list[str] = []  # links to nothing, or to themselves
        self.files: dict[str, Path] = {}
        self.stamps: dict[str, Stamp] = {}
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._look(folder, "", set())
        for name in sorted(self.files):
            self._by_name[posixpath.basename(name).casefold()].append(name)

    def name_of(self, path: Path) -> str:
        """The name of a file by its path, one of `files`."""
        return next(name for name, file in self.files.items() if file == path)

    def digest(self) -> str:
        """Another one when a file is added, lost, renamed or changed."""
        stamps = sorted(self.stamps.items())
        return hashlib.sha256(repr(stamps).encode(errors="surrogateescape")).hexdigest()

    def same_but_case(self) -> list[str]:
        """Files whose names in the same folder differ in case only: other systems take them for one."""
        by_case = defaultdict(list)
        for name in self.files:
            by_case[name.casefold()].append(name)
        return sorted(name for names in by_case.values() if len(names) > 1 for name in names)

    def find(self, name: str, base: str, split: str | None) -> list[str]:
        """The file that a caption file calls `name`.

        It is looked for beside the caption file, then in the folder, then in all folders within: there the
        file wins whose path agrees most with the name, then one in the split's folder.

        Args:
            name: as it stands in the caption file.
            base: the folder of the caption file, relative to this one.
            split: of the image, where it is known.

        Returns:
            One file; none; or several, among which nothing decides and which are not all the same.
        """
        name = unicodedata.normalize("NFC", name.replace("\\", "/"))
        for beside in (posixpath.normpath(posixpath.join(base, name)), posixpath.normpath(name)):
            if beside in self.files:
                return [beside]
        parts = posixpath.normpath(name).split("/")
        found = self._by_name.get(parts[-1].casefold(), [])
        found = [file for file in found if posixpath.basename(file) == parts[-1]] or found
        most = max((_common_end(file.split("/"), parts) for file in found), default=0)
        found = [file for file in found if _common_end(file.split("/"), parts) == most]
        found = [file for file in found if split and split_of_folder(file) == split] or found
        if len(found) > 1 and all(self._same(found[0], other) for other in found[1:]):
            return found[:1]
        return found

    def copies(self, names: Iterable[str], originals: Iterable[str]) -> list[str]:
        """Which of the files hold the same bytes as one of the originals."""
        names, originals = list(names), list(originals)
        sizes = {self.stamps[name].size for name in names} & {self.stamps[name].size for name in originals}
        of_originals = {self._digest(name) for name in originals if self.stamps[name].size in sizes}
        return [
            name for name in names if self.stamps[name].size in sizes and self._digest(name) in of_originals
        ]

    def _digest(self, name: str) -> bytes:
        interrupts.check()
        with open(self.files[name], "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    def _same(self, first: str, second: str) -> bool:
        return filecmp.cmp(self.files[first], self.files[second], shallow=False)

    def _look(self, folder: Path, inside: str, seen: set[str]) -> None:
        real = os.path.realpath(folder)
        if real in seen:  # a link in a circle
            return
        seen.add(real)
        for entry in os.scandir(folder):
            name = unicodedata.normalize("NFC", inside + entry.name)
            if entry.name.startswith((".", "__MACOSX")) or entry.name in ("Thumbs.db", "desktop.ini"):
                self.hidden.append(name)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                self.broken.append(name)
            elif entry.is_dir():
                self._look(Path(entry.path), f"{name}/", seen)
            elif entry.is_file():
                status = entry.stat()
                self.files[name] = Path(entry.path)
                self.stamps[name] = Stamp(status.st_size, status.st_mtime_ns)


def _common_end(first: list[str], second: list[str]) -> int:
    """How many parts two paths share at their ends, case aside."""
    pairs = zip(reversed(first), reversed(second))
    return next(
        (n for n, (a, b) in enumerate(pairs) if a.casefold() != b.casefold()), min(len(first), len(second))
    )
