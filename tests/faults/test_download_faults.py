"""Downloads and extraction at full length: 200 schedules of a hostile server, and real processes killed."""

import builtins
import hashlib
import io
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coco import archives, downloads
from coco.downloads import Pin, download
from support.errors import RunError, UsageError
from tests import hostile_server as hostile
from tests.checkpoint_cases import forked
from tests.hostile_server import HostileServer, cut_after, ignore_range_and_cut_after, skip_waits
from tests.test_archives import contents, make_archive, unpack

pytestmark = pytest.mark.timeout(600)
CHUNK = 4096
CONTENT = b"PK" + random.Random(0).randbytes(100_000)
PIN = Pin(len(CONTENT), "sha256", hashlib.sha256(CONTENT).hexdigest())
PAGE = len(b"<html>please log in</html>")
# Answers that cost no byte of the file, and answers that may cost all of it.
PATIENT = [hostile.hang_up, hostile.nothing, hostile.busy(), hostile.busy("5"), hostile.refuse(404)]
PATIENT += [hostile.refuse(418), hostile.html, hostile.disguised_html]
WASTEFUL = [hostile.wrong_offset, hostile.too_much, hostile.change, hostile.shrink]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileServer]:
    monkeypatch.setattr(downloads, "CHUNK", CHUNK)
    skip_waits(monkeypatch)
    server = HostileServer(CONTENT)
    yield server
    server.shutdown()
    server.server_close()


def test_200_schedules_end_in_the_right_bytes_or_a_clear_error(server: HostileServer, tmp_path: Path) -> None:
    """Run after run; half of the schedules waste nothing, and there only a chunk is asked for twice."""
    draw = random.Random(3)
    errors = finished = 0
    for number in range(200):
        target = tmp_path / f"{number}.zip"
        server.content, server.etag, server.sent, server.unasked = CONTENT, '"first"', 0, 0
        thrifty = number % 2 == 0
        cuts = [cut_after(draw.randrange(60_000)) for _ in range(8)]
        cuts += [ignore_range_and_cut_after(draw.randrange(100_000)) for _ in range(4)]
        kinds = [*PATIENT, *cuts, hostile.ignore_range, *([] if thrifty else WASTEFUL)]
        server.script = draw.choices(kinds, k=draw.randrange(1, 10))
        broken = sum(behaviour in cuts for behaviour in server.script)
        for _ in range(12):
            try:
                download(server.url, target)
                break
            except (RunError, UsageError) as error:
                errors += 1
                line = str(error)
            assert "\n" not in line
            assert server.url in line
            assert not target.exists()
        assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(server.content).digest(), number
        assert [path.name for path in tmp_path.glob(f"{number}.zip*")] == [target.name]
        if thrifty:
            asked = server.sent - server.unasked
            assert asked <= len(CONTENT) + broken * CHUNK + 10 * PAGE, (number, asked)
        finished += 1
    print(f"{finished} schedules ended in the right bytes, after {errors} clear errors on the way")
    assert errors > 50


def slowly(handler: hostile.Handler) -> None:
    """The rest of the file, a chunk every five milliseconds."""
    start, content = handler.asked_from(), handler.server.content
    headers = {"ETag": handler.server.etag, "Content-Length": len(content) - start}
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    handler.head(206 if start else 200, headers)
    for place in range(start, len(content), CHUNK):
        handler.body(content[place : place + CHUNK])
        time.sleep(0.005)


def killed_after(seconds: float, action: Callable[[], None]) -> bool:
    """Runs `action` in a process that gets SIGKILL; False if it was done before."""
    child = forked(action)
    deadline = time.monotonic() + seconds
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.001)
    if ended[0] == 0:
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(ended[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def test_downloads_killed_50_times_lose_a_chunk_at_most(server: HostileServer, tmp_path: Path) -> None:
    draw = random.Random(4)
    kills = number = 0
    while number < 10 or kills < 50:  # a busy machine finishes more of them before they are killed
        number += 1
        target = tmp_path / f"{number}.zip"
        part = target.with_name(target.name + ".part")

        for _ in range(8):
            before = part.stat().st_size if part.exists() else 0
            server.script = [slowly]
            kills += killed_after(
                draw.uniform(0.01, 0.06), lambda target=target: download(server.url, target)
            )
            if target.exists():
                break
            assert (part.stat().st_size if part.exists() else 0) >= before, "what was here is lost"
        server.script = []
        have = part.stat().st_size if part.exists() else 0
        if not target.exists():
            server.ranges.clear()
            download(server.url, target, PIN)
            assert server.ranges == ([f"bytes={have}-"] if have else [None])
        assert target.read_bytes() == CONTENT
    print(f"{kills} downloads killed, all completed")


def counting_kill(number: int) -> None:
    """From here on this process gets SIGKILL before its `number`-th write, mkdir, sync, rename or unlink."""
    calls = iter(range(1, 1 << 30))

    def counted(function: Callable) -> Callable:
        def call(*arguments: object, **options: object) -> object:
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    class CountedFile(io.FileIO):
        write = counted(io.FileIO.write)

    def open_counted(path: Path, mode: str) -> object:
        return CountedFile(path, "w") if mode == "wb" else builtins.open(path, mode)

    archives.open = open_counted
    for function in ("mkdir", "sync", "replace", "unlink", "rmdir"):
        setattr(os, function, counted(getattr(os, function)))


def test_extraction_killed_50_times_is_completed(tmp_path: Path, monkeypatch) -> None:
    """At the n-th call that changes the disk, or at a random moment; into a new folder, or one half full."""
    monkeypatch.setattr(os, "sync", lambda: None)  # a call to be killed before; no power is cut here
    draw = random.Random(6)
    files = {f"{n:012d}.jpg": draw.randbytes(draw.choice((0, 10, 3000, 40_000))) for n in range(30)}
    archive = make_archive(tmp_path / "val.zip", {f"val2017/{name}": data for name, data in files.items()})
    kills = number = 0
    while kills < 50:
        number += 1
        place = tmp_path / str(number)
        folder = place / "val2017"
        there = {}
        if number % 3 == 0:  # somebody's half-finished unzip, with a file of theirs
            folder.mkdir(parents=True)
            there = {"notes.txt": b"theirs"}
            for name in draw.sample(sorted(files), 12):
                (folder / name).write_bytes(files[name][: draw.choice((5, None))])
            (folder / "notes.txt").write_bytes(b"theirs")

        def extract_it(folder: Path = folder) -> None:
            unpack(archive, folder)

        if number % 2:
            call = draw.randrange(1, 45)

            def extract_it(folder: Path = folder, call: int = call) -> None:
                counting_kill(call)
                unpack(archive, folder)

            kills += killed_after(10, extract_it)
        else:
            kills += killed_after(draw.uniform(0.0, 0.02), extract_it)
        if folder.exists() and not there:
            assert contents(folder) == files, "a folder under its name that is not whole"
        unpack(archive, folder)
        assert contents(folder) == files | there
        assert [path.name for path in place.iterdir()] == ["val2017"]
    assert {path.name for path in tmp_path.iterdir()} == {"val.zip", *map(str, range(1, number + 1))}
    print(f"{kills} of {number} extractions killed, all completed, nothing outside")
