"""Downloads end in the right bytes or in one clear error, whatever the server does, whenever we die."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from requests.adapters import HTTPAdapter

from coco import downloads
from coco.downloads import Pin, download, remote_size
from support import interrupts
from support.errors import RunError, UsageError
from support.files import exclusive
from tests import hostile_server as hostile
from tests.hostile_server import HostileServer, cut_after, ignore_range_and_cut_after, skip_waits

CHUNK = 4096
CONTENT = b"PK" + random.Random(0).randbytes(100_000)
PIN = Pin(len(CONTENT), "sha256", hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def server() -> Iterator[HostileServer]:
    server = HostileServer(CONTENT)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Small chunks, and waits that are noted instead of waited."""
    noted: list[float] = []
    monkeypatch.setattr(downloads, "CHUNK", CHUNK)
    skip_waits(monkeypatch, noted)
    return noted


def test_download_resumes_what_broken_lines_leave(server: HostileServer, tmp_path: Path) -> None:
    server.script = [cut_after(30_000), cut_after(1), cut_after(50_000), hostile.hang_up]
    target = tmp_path / "sub" / "file.zip"
    download(server.url, target, PIN)
    assert target.read_bytes() == CONTENT
    assert [file.name for file in target.parent.iterdir()] == ["file.zip"]
    assert server.sent <= len(CONTENT) + 3 * CHUNK, "each break costs a chunk at most"
    assert server.ranges[0] is None
    assert all(server.ranges[1:])
    download(server.url, target, PIN)
    assert len(server.ranges) == 5, "a file that is there is not asked for"


@pytest.mark.parametrize(
    "behaviour",
    [hostile.ignore_range, hostile.wrong_offset, hostile.nothing, hostile.too_much, hostile.hang_up],
)
def test_download_survives_false_answers(server: HostileServer, tmp_path: Path, behaviour) -> None:
    """The classic: a 206 that starts elsewhere, appended without a look, gives a file of the right length."""
    server.script = [cut_after(40_000), behaviour]
    download(server.url, tmp_path / "file.zip")  # no pin: the protocol alone must show it
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_download_stops_asking_for_ranges_that_never_fit(server: HostileServer, tmp_path: Path) -> None:
    server.script = [cut_after(40_000), hostile.wrong_offset, hostile.wrong_offset]
    download(server.url, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert server.ranges[-1] is None


def test_a_second_transfer_that_breaks_earlier_takes_nothing_away(
    server: HostileServer, tmp_path: Path
) -> None:
    """A server that forgets ranges sends all again, and the part on the disk was given up for its first byte:
    on a line that breaks every hour, a file that takes longer never came."""
    part = tmp_path / "file.zip.part"
    have = []

    def looked_at(behaviour: hostile.Behaviour) -> hostile.Behaviour:
        def look(handler: hostile.Handler) -> None:
            have.append(part.stat().st_size)
            behaviour(handler)

        return look

    again = [ignore_range_and_cut_after(count) for count in (0, 1, CHUNK, 30_000)]
    server.script = [cut_after(40_000), *map(looked_at, [*again, hostile.honest])]
    download(server.url, tmp_path / "file.zip", PIN)
    assert have == have[:1] * 5, "not a byte more or less"
    assert server.ranges[-1] == f"bytes={have[0]}-"
    assert server.sent - server.unasked <= len(CONTENT) + CHUNK


def test_a_second_transfer_that_goes_further_is_gone_on_with(server: HostileServer, tmp_path: Path) -> None:
    further = ignore_range_and_cut_after(70_000)
    server.script = [cut_after(40_000), further, cut_after(5_000), hostile.ignore_range]
    download(server.url, tmp_path / "file.zip", PIN)
    assert [int(asked[6:-1]) // 1000 for asked in server.ranges[1:]] == [36, 69, 73]
    assert server.sent - server.unasked <= len(CONTENT) + 3 * CHUNK


def test_an_end_that_nothing_marks_is_none_before_what_is_here(server: HostileServer, tmp_path: Path) -> None:
    def cut_without_a_length(handler: hostile.Handler) -> None:
        handler.head(200, {})  # the body lasts until the line is closed
        handler.body(CONTENT[:10_000])

    server.script = [cut_after(40_000), cut_without_a_length]
    download(server.url, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert int(server.ranges[-1][6:-1]) > 30_000


@pytest.mark.parametrize("same", [0, 10, 39_000, 60_000])
@pytest.mark.parametrize("length", [20_000, 50_000, len(CONTENT)])
@pytest.mark.parametrize("stop", [15_000, 45_000, None])
def test_another_version_sent_whole_is_mixed_with_nothing(
    server: HostileServer, tmp_path: Path, same: int, length: int, stop: int | None
) -> None:
    """Its beginning is that of the first version, for more bytes or fewer than there are here."""

    def change(handler: hostile.Handler) -> None:
        server.content = (CONTENT[: max(2, same)] + bytes(length))[:length]
        server.etag = '"second"'
        hostile.send(handler, 0, stop)

    server.script = [cut_after(40_000), change]
    download(server.url, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == server.content != CONTENT


@pytest.mark.parametrize("behaviour", [hostile.change, hostile.shrink])
def test_download_never_mixes_two_versions(server: HostileServer, tmp_path: Path, behaviour) -> None:
    """Another ETag under the same name; or a 416, for the new file is shorter: elsewhere an endless loop."""
    server.script = [cut_after(40_000), behaviour]
    download(server.url, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == server.content != CONTENT


def test_download_goes_on_after_a_change_that_if_range_reports(server: HostileServer, tmp_path: Path) -> None:
    part, record = tmp_path / "file.zip.part", tmp_path / "file.zip.part.json"
    part.write_bytes(b"PK of an older version")
    record.write_text(f'{{"url": "{server.url}", "etag": "\\"older\\"", "size": {len(CONTENT)}}}')
    download(server.url, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("record", [None, "{", "[]", '{"url": "http://elsewhere/file.zip", "size": 9}'])
def test_download_uses_no_part_of_unknown_origin(server: HostileServer, tmp_path: Path, record) -> None:
    (tmp_path / "file.zip.part").write_bytes(b"PK what?")
    if record is not None:
        (tmp_path / "file.zip.part.json").write_text(record)
    download(server.url, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("behaviour", [hostile.html, hostile.disguised_html])
def test_web_page_is_refused_and_costs_nothing(server: HostileServer, tmp_path: Path, behaviour) -> None:
    server.script = [cut_after(40_000), behaviour]
    with pytest.raises(RunError, match="log-in or an error page"):
        download(server.url, tmp_path / "file.zip")
    assert not (tmp_path / "file.zip").exists()
    download(server.url, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert server.sent <= len(CONTENT) + CHUNK + 26, "what was here before the page came was kept"


def test_retries_are_bounded_back_off_and_keep_what_came(
    server: HostileServer, tmp_path: Path, waits: list[float]
) -> None:
    server.script = [cut_after(40_000)] + [hostile.hang_up] * downloads.TRIES
    with pytest.raises(RunError, match="run this again to go on"):
        download(server.url, tmp_path / "file.zip")
    assert waits == [2, 4, 8, 16], "the first retry comes at once"
    assert (tmp_path / "file.zip.part").stat().st_size >= 40_000 - CHUNK
    server.script = []
    download(server.url, tmp_path / "file.zip", PIN)
    assert server.sent <= len(CONTENT) + CHUNK


def test_retry_after_is_honoured_and_bounded(
    server: HostileServer, tmp_path: Path, waits: list[float]
) -> None:
    server.script = [hostile.busy("17"), hostile.busy("soon")]
    download(server.url, tmp_path / "file.zip", PIN)
    assert waits == [17, 2], "the second answer names no time: the usual back-off"
    server.script = [hostile.busy("4000")]
    with pytest.raises(RunError, match="busy for 4,000 s"):
        download(server.url, tmp_path / "other.zip", PIN)


def test_a_connection_that_is_not_secure_is_tried_once(server: HostileServer, tmp_path: Path, waits) -> None:
    with pytest.raises(RunError, match=r"^https://.*: no secure connection"):
        download(server.url.replace("http:", "https:"), tmp_path / "file.zip")
    assert not waits


@pytest.mark.parametrize(("status", "error"), [(404, UsageError), (403, UsageError), (418, RunError)])
def test_refusals_are_final(server: HostileServer, tmp_path: Path, status: int, error: type, waits) -> None:
    server.script = [hostile.refuse(status)]
    with pytest.raises(error, match=str(status)):
        download(server.url, tmp_path / "file.zip")
    assert not waits


def test_pin_is_checked_before_and_after(server: HostileServer, tmp_path: Path) -> None:
    target = tmp_path / "file.zip"
    with pytest.raises(RunError, match="not the known 5"):
        download(server.url, target, Pin(5, "sha256", "0" * 64))
    assert not list(tmp_path.iterdir()), "a wrong size is seen before anything is written"
    with pytest.raises(RunError, match="do not have the known md5"):
        download(server.url, target, Pin(len(CONTENT), "md5", "0" * 32))
    assert not list(tmp_path.iterdir()), "wrong bytes are not kept to be resumed"
    target.write_bytes(b"PK something of the user's")
    with pytest.raises(RunError, match="remove it"):
        download(server.url, target, PIN)
    assert target.exists()


def test_redirect_from_https_to_http_is_refused(server: HostileServer, tmp_path: Path, monkeypatch) -> None:
    """A helper of torchvision falls back from https to http by itself."""

    class Redirecting(HTTPAdapter):
        def send(self, request: requests.PreparedRequest, **_: object) -> requests.Response:
            response = requests.Response()
            response.status_code, response.url, response.request = 302, request.url, request
            response.headers["Location"] = server.url
            response.raw = type("Empty", (), {"read": lambda *_, **__: b"", "close": lambda _: None})()
            return response

    session = downloads.open_session("https://coco.example/")
    session.mount("https://", Redirecting())
    monkeypatch.setattr(downloads, "open_session", lambda _: session)
    with pytest.raises(RunError, match="from https to http"):
        download("https://coco.example/file.zip", tmp_path / "file.zip")
    assert not server.ranges


def test_two_at_once_fetch_once(server: HostileServer, tmp_path: Path) -> None:
    def fetch() -> None:
        with exclusive(tmp_path / ".lock"):
            download(server.url, tmp_path / "file.zip", PIN)

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert len(server.ranges) == 1


def test_killed_download_is_resumed_by_the_next_process(server: HostileServer, tmp_path: Path) -> None:
    def stall(handler: hostile.Handler) -> None:
        hostile.send(handler, 0, stop=80_000)
        handler.wfile.flush()
        time.sleep(20)

    server.script = [stall]
    code = "from coco.downloads import download, Path; import sys; download(sys.argv[1], Path(sys.argv[2]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, server.url, str(tmp_path / "file.zip")],
        cwd=Path(__file__).parent.parent,
        stderr=subprocess.DEVNULL,
    )
    part = tmp_path / "file.zip.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    have = part.stat().st_size
    download(server.url, tmp_path / "file.zip", PIN)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert server.ranges[1] == f"bytes={have}-"
    assert have > 0


@pytest.mark.parametrize("sent", [None, 40_000])
def test_a_signal_ends_the_wait_for_a_silent_server(server: HostileServer, tmp_path: Path, sent) -> None:
    """Ctrl-C had to wait until the read timed out, after half a minute."""
    over = threading.Event()

    def fall_silent(handler: hostile.Handler) -> None:
        if sent is not None:
            hostile.send(handler, 0, stop=sent)
            handler.wfile.flush()
        over.wait(60)

    server.script = [fall_silent]
    interrupts.install()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(interrupts.Interrupted):
        download(server.url, tmp_path / "file.zip")
    assert not over.is_set()
    over.set()
    interrupts.install()
    download(server.url, tmp_path / "file.zip", PIN)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert len(server.ranges) == 2, "the time-out never came"
    assert server.sent <= len(CONTENT) + CHUNK + (sent or 0) % CHUNK


def test_remote_size(server: HostileServer) -> None:
    assert remote_size(server.url) == len(CONTENT)


def test_any_schedule_ends_in_the_right_bytes_or_an_error(server: HostileServer, tmp_path: Path) -> None:
    """40 random scripts, the file never changing; run after run must get there once the server behaves."""
    draw = random.Random(1)
    behaviours = [
        *(hostile.ignore_range, hostile.wrong_offset, hostile.html, hostile.disguised_html, hostile.hang_up),
        *(
            hostile.nothing,
            hostile.too_much,
            hostile.busy(),
            hostile.busy("5"),
            hostile.refuse(404),
            hostile.honest,
        ),
    ]
    for number in range(40):
        target = tmp_path / f"{number}.zip"
        server.script = [
            draw.choice([*behaviours, cut_after(draw.randrange(60_000)), cut_after(draw.randrange(60_000))])
            for _ in range(draw.randrange(1, 8))
        ]
        for _ in range(10):
            try:
                download(server.url, target)
                break
            except (RunError, UsageError):
                assert not target.exists()
        assert target.read_bytes() == CONTENT, number
