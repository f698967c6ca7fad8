"""Archives are looked through before anything is written, and unpacked whole or not at all."""

import random
import re
import signal
import stat
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from coco import archives
from coco.archives import BadArchiveError, extract, wanted_members
from support.errors import RunError, UsageError

WANTED = re.compile(r"val2017/[0-9]{12,18}\.jpg")
FILES = {f"{number:012d}.jpg": random.Random(number).randbytes(3000 + number) for number in range(8)}


def make_archive(
    path: Path, members: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED
) -> Path:
    members = {f"val2017/{name}": content for name, content in FILES.items()} if members is None else members
    with zipfile.ZipFile(path, "w", method) as file:
        file.mkdir("val2017")
        for name, content in members.items():
            file.writestr(name, content)
    return path


def unpack(archive: Path, folder: Path) -> None:
    extract(archive, wanted_members(archive, WANTED), folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_extract_brings_the_wanted_files_and_no_others(tmp_path: Path, method: int) -> None:
    others = {
        "val2017/readme.txt": b"no",
        "val2017/deep/000000000001.jpg": b"no",
        "other/000000000001.jpg": b"no",
        "notes/shot at 12:30.txt": b"no",  # where nobody writes it, a colon does no harm
    }
    members = {f"val2017/{name}": content for name, content in FILES.items()}
    archive = make_archive(tmp_path / "val.zip", members | others, method)
    unpack(archive, tmp_path / "val2017")
    assert contents(tmp_path / "val2017") == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["val.zip", "val2017"]


def test_extract_completes_a_folder_and_keeps_what_is_whole(tmp_path: Path) -> None:
    """An interrupted unzip left half a JPEG, and whoever counted the files was content."""
    archive, folder = make_archive(tmp_path / "val.zip"), tmp_path / "val2017"
    folder.mkdir()
    names = list(FILES)
    (folder / names[0]).write_bytes(FILES[names[0]])
    (folder / names[1]).write_bytes(FILES[names[1]][:100])  # cut
    (folder / names[2]).write_bytes(bytes(len(FILES[names[2]])))  # of the right size, but zeros
    (folder / "notes.txt").write_bytes(b"the user's")
    partial = tmp_path / "val2017.partial"
    partial.mkdir()
    (partial / names[3]).write_bytes(FILES[names[3]])
    (partial / names[4]).write_bytes(FILES[names[4]][:-1])
    (partial / "stranger.jpg").write_bytes(b"of another archive")
    kept = (folder / names[0]).stat().st_mtime_ns, (partial / names[3]).stat().st_ino
    unpack(archive, folder)
    assert contents(folder) == FILES | {"notes.txt": b"the user's"}
    assert kept == ((folder / names[0]).stat().st_mtime_ns, (folder / names[3]).stat().st_ino)
    assert not partial.exists()


def link_to_nowhere(path: Path, theirs: bytes) -> None:
    path.symlink_to("/a drive/that is not mounted.jpg")


FOREIGN = {
    "another picture": lambda path, theirs: path.write_bytes(b"\xff\xd8" + bytes(range(100))),
    "one bit of difference": lambda path, theirs: path.write_bytes(bytes([theirs[0] ^ 1]) + theirs[1:]),
    "a bit, after a beginning": lambda path, theirs: path.write_bytes(theirs[:50] + bytes(20) + b"x"),
    "theirs and more": lambda path, theirs: path.write_bytes(theirs + b"a film"),
    "theirs and zeros": lambda path, theirs: path.write_bytes(theirs + bytes(9)),
    "a folder": lambda path, theirs: path.mkdir(),
    "a link to nowhere": link_to_nowhere,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_no_file_that_the_archive_did_not_bring_is_replaced(tmp_path: Path, kind: str) -> None:
    """One's own pictures, numbered as COCO's are, were gone after a download that ended well."""
    archive, folder = make_archive(tmp_path / "val.zip"), tmp_path / "val2017"
    folder.mkdir()
    (folder / "000000000001.jpg").write_bytes(
        FILES["000000000001.jpg"][:100]
    )  # this alone would be completed
    FOREIGN[kind](folder / "000000000003.jpg", FILES["000000000003.jpg"])
    before = {path: path.lstat() for path in tmp_path.rglob("*")}
    with pytest.raises(UsageError, match=r"1 in all, and none is replaced: 000000000003\.jpg: .*--data"):
        unpack(archive, folder)
    after = {path: path.lstat() for path in tmp_path.rglob("*")}
    assert {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in after.items()} == {
        path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in before.items()
    }


def test_of_many_files_in_the_way_five_are_named(tmp_path: Path) -> None:
    archive, folder = make_archive(tmp_path / "val.zip"), tmp_path / "val2017"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"8 in all.* 000000000004\.jpg \.\.\.: ") as error:
        unpack(archive, folder)
    assert "000000000005" not in str(error.value)


@pytest.mark.parametrize("left", ["beginning", "beginning and zeros", "zeros", "nothing"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_an_interrupted_unzip_left_is_completed(tmp_path: Path, left: str, method: int) -> None:
    """Larger than a block that is read at a time, too."""
    whole = random.Random(0).randbytes(archives.BLOCK + 5000)
    name = "000000000001.jpg"
    archive = make_archive(tmp_path / "val.zip", {f"val2017/{name}": whole}, method)
    folder = tmp_path / "val2017"
    for length in (300, archives.BLOCK - 1, archives.BLOCK + 300):
        content = b"" if left in ("zeros", "nothing") else whole[:length]
        if left.endswith("zeros"):
            content = content.ljust(length + 200, b"\0")
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        unpack(archive, folder)
        assert contents(folder) == {name: whole}


def test_killed_extraction_is_completed(tmp_path: Path) -> None:
    """Real processes, killed at random moments: never a folder under its name that is not whole."""
    content = {
        f"val2017/{number:012d}.jpg": random.Random(number).randbytes(100_000) for number in range(150)
    }
    archive, folder = make_archive(tmp_path / "val.zip", content), tmp_path / "val2017"
    code = (
        "import os, re, sys; from pathlib import Path; from coco.archives import extract, wanted_members\n"
        "archive = Path(sys.argv[1]); os.nice(5)\n"
        f"extract(archive, wanted_members(archive, re.compile(r'{WANTED.pattern}')), Path(sys.argv[2]))"
    )
    for files_first in (1, 60):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(archive), str(folder)],
            cwd=Path(__file__).parent.parent,
            stderr=subprocess.DEVNULL,
        )
        partial = tmp_path / "val2017.partial"
        while process.poll() is None and not (
            partial.exists() and len(list(partial.iterdir())) >= files_first
        ):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if folder.exists():  # it was faster than the signal
            assert len(list(folder.iterdir())) == len(content)
    unpack(archive, folder)
    assert {f"val2017/{name}": data for name, data in contents(folder).items()} == content
    assert not partial.exists()


def rename(old: bytes, new: bytes) -> Callable[[Path], None]:
    """Changes a member's name in both headers."""
    assert len(old) == len(new)
    return lambda path: path.write_bytes(path.read_bytes().replace(old, new))


def add(name: str, content: bytes = b"x", mode: int = 0) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        member = zipfile.ZipInfo(name)
        member.external_attr = mode << 16
        with zipfile.ZipFile(path, "a") as file:
            file.writestr(member, content)

    return change


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("val2017/000000000099.jpg", bytes(30_000_000))


def overlap(path: Path) -> None:
    """The last entry of the directory points to the first one's data (Fifield's bomb is made of such)."""
    content = bytearray(path.read_bytes())
    last = content.rfind(b"PK\1\2")
    content[last + 42 : last + 46] = struct.pack("<I", content.find(b"PK\3\4", 30))
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def flip(path: Path) -> None:
    """One bit of one picture."""
    content = bytearray(path.read_bytes())
    content[content.find(FILES["000000000005.jpg"]) + 1000] ^= 4
    path.write_bytes(content)


def encrypt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.rfind(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)


def odd_method(path: Path) -> None:
    make_archive(path, method=zipfile.ZIP_BZIP2)


def no_archive(path: Path) -> None:
    path.write_bytes(b"<html>not found</html>")


HOSTILE = {
    "parent": rename(b"val2017/000000000003.jpg", b"val2017/../000000003.jpg"),
    "absolute": rename(b"val2017/000000000003.jpg", b"/al2017/000000000003.jpg"),
    "backslash": rename(b"val2017/000000000003.jpg", b"..\\..17/000000000003.jpg"),
    "drive": rename(b"val2017/000000000003.jpg", b"C:l2017/000000000003.jpg"),
    "NUL": rename(b"val2017/000000000003.jpg", b"val2017/000000000003.jp\0"),
    "link": add("val2017/000000000098.jpg", b"/etc/passwd", stat.S_IFLNK | 0o777),
    "twice": rename(b"val2017/000000000003.jpg", b"val2017/000000000002.jpg"),
    "twice but for case": add("VAL2017/000000000003.jpg"),
    "bomb": bomb,
    "overlap": overlap,
    "cut": cut,
    "encrypted": encrypt,
    "odd method": odd_method,
    "no archive": no_archive,
}


def test_a_colon_in_a_name_that_is_wanted_is_refused(tmp_path: Path) -> None:
    """On Windows what follows it is the name of a hidden stream of the file before it."""
    archive = make_archive(tmp_path / "val.zip", {"val2017/1.jpg:hidden": b"x"})
    with pytest.raises(BadArchiveError, match=r"val\.zip: 'val2017/1\.jpg:hidden' is no file's name"):
        wanted_members(archive, re.compile(r"val2017/.*"))


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_archives_are_refused_before_writing(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "data" / "val2017"
    folder.parent.mkdir()
    archive = make_archive(tmp_path / "val.zip")
    HOSTILE[kind](archive)
    with pytest.raises(BadArchiveError, match=re.escape(str(archive))):
        unpack(archive, folder)
    assert not list(folder.parent.iterdir())
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["data", "val.zip"]


def test_damage_inside_leaves_no_folder(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "val.zip")
    flip(archive)
    with pytest.raises(BadArchiveError, match="CRC"):
        unpack(archive, tmp_path / "val2017")
    assert not (tmp_path / "val2017").exists()
    unpack(make_archive(tmp_path / "val.zip"), tmp_path / "val2017")
    assert contents(tmp_path / "val2017") == FILES


def test_mutated_archives_give_the_right_files_or_an_error(tmp_path: Path) -> None:
    """300 archives with changed bytes, most of them in headers: no other exception, no other bytes."""
    draw, archive = random.Random(0), make_archive(tmp_path / "val.zip", method=zipfile.ZIP_DEFLATED)
    original = archive.read_bytes()
    headers = [match.start() for match in re.finditer(rb"PK", original)]
    outcomes = {"error": 0, "files": 0}
    for number in range(300):
        content = bytearray(original)
        for _ in range(draw.randrange(1, 4)):
            in_header = draw.choice(headers) + draw.randrange(60)
            place = in_header if draw.random() < 0.8 else draw.randrange(len(content))
            content[min(place, len(content) - 1)] = draw.randrange(256)
        archive.write_bytes(content)
        folder = tmp_path / "data" / str(number)
        try:
            unpack(archive, folder)
        except (UsageError, RunError):
            outcomes["error"] += 1
            assert not folder.exists()
            continue
        outcomes["files"] += 1
        found = contents(folder)  # a changed name may have left the pattern, no more than that
        assert all(FILES.get(name) == data for name, data in found.items() if name in FILES)
        assert len(found) >= len(FILES) - 3
    assert min(outcomes.values()) > 20, outcomes
    assert {path.name for path in tmp_path.iterdir()} == {"val.zip", "data"}


def test_no_room_is_said_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_archive(tmp_path / "val.zip")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("support.files.shutil.disk_usage", lambda _: usage)
    with pytest.raises(RunError, match=r"needs 0\.00 GB free"):
        unpack(archive, tmp_path / "val2017")
    assert not list((tmp_path / "val2017.partial").iterdir())
    assert archives.MOST_RATIO == 200
