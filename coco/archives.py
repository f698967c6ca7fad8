"""Archives: on a server or in a folder, seen alike, and how their files get to where they belong.

Zip archives are not trusted: inspect, extract to a side folder, rename.

A folder appears under its name only when every wanted file in it is whole.  A process that is killed half-way
leaves `NAME.partial`; the next one keeps those files that have the right size and CRC, and writes the others.
A file of the folder itself is replaced only where nothing is lost: it holds a beginning of the archive's.
"""

import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from re import Pattern

from support import interrupts
from support.errors import RunError, UsageError
from support.files import naming, require_space
from support.progress_bars import progress_bar

BLOCK = 1 << 20  # bytes read at a time
MOST_RATIO = 200  # unpacked to packed; caption files reach about 5, deflate could reach 1,032
HARMLESS = 1 << 20  # bytes that may come of any ratio
LOCAL_HEADER = 30  # bytes before a member's name and data


class BadArchiveError(UsageError):
    """An archive that is damaged, or that tries something."""


def wanted_members(archive: Path, pattern: Pattern[str]) -> list[zipfile.ZipInfo]:
    """The members whose whole name matches `pattern`; nothing is written.

    Raises:
        BadArchiveError: it is no whole zip archive, or a member, wanted or not, looks hostile: a name that
            leads elsewhere, a link, one name twice, data that overlap, far more bytes than were packed.
    """
    with _opened(archive) as file:
        members = file.infolist()
    _check_count(archive, members)
    seen: set[str] = set()
    for member in members:
        _check_name(archive, member)
        name = member.filename.rstrip("/").casefold()  # one file on disks that ignore case
        if name in seen:
            raise BadArchiveError(f"{archive}: {member.filename!r} is there twice")
        seen.add(name)
    _check_overlaps(archive, members)
    wanted = [member for member in members if pattern.fullmatch(member.filename)]
    if streams := [member.filename for member in wanted if ":" in member.filename]:
        raise BadArchiveError(f"{archive}: {streams[0]!r} is no file's name on Windows: nothing was unpacked")
    _check_content(archive, wanted)
    names = {base_name(member) for member in wanted}
    if len(names) < len(wanted):
        raise BadArchiveError(f"{archive}: two folders hold files of one name")
    return wanted


def extract(archive: Path, members: list[zipfile.ZipInfo], folder: Path) -> None:
    """Brings `members` into `folder`, each by its base name; files that are there and whole are kept.

    A file that an interrupted unzip left, which holds a beginning of the archive's, is completed.  All others
    in `folder` stay as they are.  Each member is read to its end, so that its CRC is checked.

    Args:
        archive: the zip archive.
        members: what `wanted_members` gave.
        folder: where they go; a new folder appears whole, by one rename.

    Raises:
        BadArchiveError: a member is damaged.
        UsageError: files of these names are there that are not the archive's; nothing was written.
        RunError: the disk has no room.
        OSError: the folder cannot be written.
    """
    partial = folder.with_name(folder.name + ".partial")
    missing = [member for member in members if not is_whole(folder / base_name(member), member)]
    _require_nothing_lost(archive, missing, folder)
    if missing:
        partial.mkdir(parents=True, exist_ok=True)
        _remove_strangers(partial, {base_name(member) for member in missing})
        unpacked = sum(file.stat().st_size for file in partial.iterdir())
        needed = sum(member.file_size for member in missing) - unpacked
        require_space(folder.parent, needed, f"unpacking {archive.name}")
        _write(archive, missing, partial)
    if partial.exists() and not folder.exists():
        os.replace(partial, folder)
    else:
        for member in missing:
            os.replace(partial / base_name(member), folder / base_name(member))
        shutil.rmtree(partial, ignore_errors=True)
    for member in members:
        path = folder / base_name(member)
        if path.stat().st_size != member.file_size:
            raise RunError(f"{path} has changed since it was unpacked: does another program write here?")


def base_name(member: zipfile.ZipInfo) -> str:
    """A member's name without its folders."""
    return PurePosixPath(member.filename).name


def is_whole(path: Path, member: zipfile.ZipInfo) -> bool:
    """Whether the file has the size and the CRC-32 that the archive says."""
    interrupts.check()
    if not path.is_file() or path.stat().st_size != member.file_size:
        return False
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            crc = zlib.crc32(block, crc)
    return crc == member.CRC


def _require_nothing_lost(archive: Path, members: list[zipfile.ZipInfo], folder: Path) -> None:
    """Raises UsageError where a member would replace a file that the archive did not bring."""
    there = [member for member in members if os.path.lexists(folder / base_name(member))]
    if not there:
        return
    with _opened(archive) as file:
        foreign = [
            member for member in there if not _is_beginning(folder / base_name(member), archive, file, member)
        ]
    if foreign:
        names = ", ".join(base_name(member) for member in foreign[:5]) + " ..." * (len(foreign) > 5)
        raise UsageError(
            f"{folder} holds files of other content under names of {archive.name}, {len(foreign):,} in all, "
            f"and none is replaced: {names}: name another data root with --data; for images of your own "
            "`python process_coco.py --own DIR` makes one"
        )


def _is_beginning(path: Path, archive: Path, file: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    """Whether a file holds the first bytes of the member, and behind them at most zeros.

    That is what an interrupted unzip leaves; the zeros come from a power cut, or from tools that make room
    beforehand.
    """
    interrupts.check()
    if not path.is_file() or path.stat().st_size > member.file_size:  # a folder, or a link to nowhere
        return False
    with open(path, "rb") as mine:
        for block in _blocks(archive, file, member):
            if (begun := mine.read(len(block))) != block:
                rest = iter(lambda: mine.read(BLOCK), b"")
                return block.startswith(begun.rstrip(b"\0")) and not any(map(any, rest))
    return True


def _write(archive: Path, members: list[zipfile.ZipInfo], partial: Path) -> None:
    """Writes those members that are not yet whole in `partial`."""
    with _opened(archive) as file:
        for member in progress_bar(members, what=f"unpacking {archive.name}", unit="file"):
            path = partial / base_name(member)
            if is_whole(path, member):
                continue
            with naming(path), open(path, "wb") as target:
                for block in _blocks(archive, file, member):
                    target.write(block)
    os.sync()  # once for all files, before a name says that they are whole


def _blocks(archive: Path, file: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """A member's bytes; zipfile stops at the size that was announced, and at the end checks the CRC."""
    count = 0
    with _reading(archive), file.open(member) as source:
        while block := source.read(BLOCK):
            count += len(block)
            yield block
    if count != member.file_size:
        raise BadArchiveError(
            f"{archive}: {member.filename!r} ends after {count:,} of {member.file_size:,} bytes"
        )


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    with _reading(archive):
        file = zipfile.ZipFile(archive)
    with file:
        yield file


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Turns all that zipfile raises on damaged bytes into one error."""
    try:
        yield
    except FileNotFoundError:
        raise UsageError(f"{archive} is not there") from None
    except PermissionError:
        raise UsageError(f"{archive} may not be read by this user") from None
    except (
        zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError,
        NotImplementedError, RuntimeError, ValueError, OverflowError,
    ) as error:  # fmt: skip
        raise BadArchiveError(f"{archive} is not a whole zip archive ({error}): fetch it again") from None


def _check_count(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    """zipfile does not miss members that a damaged length in the directory makes it step over; we do."""
    with open(archive, "rb") as file:
        file.seek(max(0, archive.stat().st_size - 66_000))  # the end record and the longest comment
        end = file.read()
    place = end.rfind(b"PK\x05\x06")
    stated = int.from_bytes(end[place + 10 : place + 12], "little")
    if stated not in (0xFFFF, len(members) % 0x10000):  # 0xFFFF: the count is elsewhere, as it is larger
        raise BadArchiveError(f"{archive} lists {len(members):,} of its {stated:,} members: fetch it again")


def _check_name(archive: Path, member: zipfile.ZipInfo) -> None:
    # orig_filename: zipfile itself cuts a name at a NUL byte and, on some systems, changes separators
    name = member.orig_filename
    parts = PurePosixPath(name).parts
    # A colon after one letter names a drive; in other places it matters only to who writes such a file.
    if not parts or name.startswith("/") or ".." in parts or re.search(r"^[A-Za-z]:|[\\\0]", name):
        raise BadArchiveError(f"{archive}: the name {name!r} leads out of its folder: nothing was unpacked")
    kind = stat.S_IFMT(member.external_attr >> 16)  # zero where the archive was not made on Unix
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise BadArchiveError(f"{archive}: {name!r} is a link or a device: nothing was unpacked")


def _check_overlaps(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    """Members that share bytes are how a small archive becomes a large one without a large ratio.

    zipfile refuses them itself from Python 3.11.8 on, but only when such a member is opened: others are
    written by then, and older Pythons are supported.
    """
    end, last = 0, ""
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.header_offset < end:
            raise BadArchiveError(f"{archive}: {member.filename!r} overlaps {last!r}: nothing was unpacked")
        name_length = len(member.orig_filename)  # at least; in bytes it may be more
        end, last = member.header_offset + LOCAL_HEADER + name_length + member.compress_size, member.filename
    if end > archive.stat().st_size:
        raise BadArchiveError(f"{archive}: {last!r} goes on behind the archive's end: fetch it again")


def _check_content(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadArchiveError(f"{archive}: {member.filename!r} is encrypted, or packed in an unusual way")
    packed, unpacked = archive.stat().st_size, sum(member.file_size for member in members)
    if unpacked > max(HARMLESS, MOST_RATIO * packed):
        raise BadArchiveError(
            f"{archive} would grow from {packed:,} to {unpacked:,} bytes, as bombs do: nothing was unpacked"
        )


def _remove_strangers(folder: Path, names: set[str]) -> None:
    """What an earlier attempt at another archive left."""
    for path in folder.iterdir():
        if path.name not in names:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


class Source:
    """A place that holds archives under known names.

    Args:
        address: a URL prefix, or a local folder, whose archives are read in place and never removed.
        downloads: our own folder, for archives on their way from a server.
        keep: leave them there when their files are unpacked.
    """

    def __init__(self, address: str, downloads: Path, keep: bool = False):
        self.is_remote = address.lower().startswith(("http://", "https://"))
        self.address, self.downloads, self.keep = address.rstrip("/") + "/", downloads, keep
        if not self.is_remote and not Path(address).is_dir():
            raise UsageError(f"--source {address}: no such folder (and an address begins with https://)")

    def size(self, name: str) -> int:
        """The archive's size in bytes, 0 where the server does not say.

        Raises:
            UsageError: it is not there.
        """
        if self.is_remote and self._download(name).exists():
            return self._download(name).stat().st_size
        if self.is_remote:
            from coco.downloads import remote_size  # here, so that only who downloads waits for requests

            return remote_size(self.address + name) or 0
        path = Path(self.address, name)
        if not path.is_file():
            raise UsageError(f"{path} is not there")
        return path.stat().st_size

    def require_room(self, folders: dict[str, Path]) -> None:
        """Asks the source for each archive and the disk for room, before the first byte.

        Args:
            folders: by archive name, the folder where it will be unpacked.
        """
        if not folders:
            return
        packed, unpacked = [0], 0
        for name, folder in folders.items():
            size = self.size(name)
            unpacked += max(
                0, size - _bytes_in(folder) - _bytes_in(folder.with_name(folder.name + ".partial"))
            )
            packed.append(max(0, size - _bytes_in(self.downloads, Path(name).name)) if self.is_remote else 0)
        # An archive of images is about as large as they are, and is removed before the next one comes.
        needed = unpacked + (sum(packed) if self.keep else max(packed))
        require_space(self.downloads.parent, needed, f"what is to come from {self.address}")

    def unpack(
        self, name: str, pattern: Pattern[str], folder: Path, pin: tuple[int, str, str] | None
    ) -> None:
        """Brings the archive's files whose names match `pattern` into `folder`, whole.

        Args:
            name: the archive.
            pattern: of the full names in the archive.
            folder: where the files go, without their folders in the archive.
            pin: size, name of the digest and digest, where they are known.

        Raises:
            BadArchiveError: an archive in a local folder is damaged or hostile.
            RunError: a download is, or it could not be had.
        """
        archive = self._fetch(name, pin)
        try:
            members = wanted_members(archive, pattern)
            if not members:
                raise BadArchiveError(f"{archive} holds no file with a name like {pattern.pattern}")
            extract(archive, members, folder)
        except BadArchiveError as error:
            if not self.is_remote:
                raise
            archive.unlink()
            raise RunError(f"{error} (the download was removed)") from None

    def discard(self, name: str) -> None:
        """Removes a download that is unpacked, unless it is to be kept; never the user's own archive."""
        if self.is_remote and not self.keep:
            self._download(name).unlink(missing_ok=True)

    def _download(self, name: str) -> Path:
        return self.downloads / Path(name).name

    def _fetch(self, name: str, pin: tuple[int, str, str] | None) -> Path:
        if not self.is_remote:
            return Path(self.address, name)
        from coco.downloads import Pin, download

        download(self.address + name, self._download(name), Pin(*pin) if pin else None)
        return self._download(name)


def _bytes_in(folder: Path, beginning: str = "") -> int:
    """The size of the files directly in `folder` whose names begin like this."""
    return sum(path.stat().st_size for path in folder.glob(f"{beginning}*") if path.is_file())
