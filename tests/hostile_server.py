"""A file server on this machine that misbehaves by script, as real servers and lines do."""

import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

Behaviour = Callable[["Handler"], None]


def skip_waits(monkeypatch: pytest.MonkeyPatch, noted: list[float] | None = None) -> None:
    """Has the waits between two tries noted instead of waited."""
    sleep = [].append if noted is None else noted.append
    clock = SimpleNamespace(sleep=sleep, time=time.time)
    monkeypatch.setattr("urllib3.util.retry.time", clock)


class HostileServer(ThreadingHTTPServer):
    """Serves `content` under every name.  Each GET takes the next behaviour of the script, then `honest`."""

    daemon_threads = True

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag = content, '"first"'
        self.script: list[Behaviour] = []
        self.ranges: list[str | None] = []  # the Range header of each GET
        self.sent = 0  # bytes of bodies
        self.unasked = 0  # of them, those before the first that was asked for
        self.url = f"http://127.0.0.1:{self.server_address[1]}/file.zip"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """A client that goes away is part of the play."""


class Handler(BaseHTTPRequestHandler):
    server: HostileServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers["Range"])
        behaviour = self.server.script.pop(0) if self.server.script else honest
        self.close_connection = True
        behaviour(self)

    def do_HEAD(self) -> None:
        self.close_connection = True
        self.head(200, {"Content-Length": len(self.server.content)})

    def head(self, status: int, headers: dict[str, object]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def body(self, content: bytes) -> None:
        self.server.sent += len(content)
        self.wfile.write(content)

    def asked_from(self) -> int:
        """The first byte that is asked for; 0 where the version that the client has is not ours any more."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        if asked is None or self.headers["If-Range"] not in (None, self.server.etag):
            return 0
        return int(asked[1])

    def log_message(self, *_: object) -> None:
        """Silence."""


def honest(handler: Handler) -> None:
    send(handler, handler.asked_from())


def send(handler: Handler, start: int, stop: int | None = None, stated: int | None = None) -> None:
    """Sends the content from `start`; hangs up at byte `stop`; in the header calls the start `stated`."""
    content, total = handler.server.content, len(handler.server.content)
    if start >= total:
        return handler.head(416, {"Content-Range": f"bytes */{total}", "Content-Length": 0})
    headers = {
        "ETag": handler.server.etag,
        "Content-Length": total - start,
        "Content-Type": "application/zip",
    }
    if start:
        headers["Content-Range"] = f"bytes {start if stated is None else stated}-{total - 1}/{total}"
    handler.head(206 if start else 200, headers)
    handler.body(content[start:stop])


def cut_after(count: int) -> Behaviour:
    """The line breaks after so many bytes."""
    return lambda handler: send(handler, start := handler.asked_from(), stop=start + count)


def ignore_range(handler: Handler, stop: int | None = None) -> None:
    """200 and the whole file, whatever is asked for."""
    handler.server.unasked += len(handler.server.content[: handler.asked_from()][:stop])
    send(handler, 0, stop)


def ignore_range_and_cut_after(count: int) -> Behaviour:
    """The same, and the line breaks after so many bytes: maybe earlier than it did before."""
    return lambda handler: ignore_range(handler, count)


def wrong_offset(handler: Handler) -> None:
    """206, but from another byte on than asked, and honest about that."""
    send(handler, max(1, handler.asked_from() - 1000))


def change(handler: Handler) -> None:
    """The file becomes another one, and the server heeds no If-Range."""
    server = handler.server
    server.content, server.etag = b"PK" + bytes(reversed(server.content[2:])), '"second"'
    asked = re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")
    send(handler, int(asked[1]) if asked else 0)


def shrink(handler: Handler) -> None:
    """The file becomes a shorter one: the part that the client has goes beyond its end."""
    server = handler.server
    server.content, server.etag = server.content[: len(server.content) // 8], '"short"'
    asked = re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")
    send(handler, int(asked[1]) if asked else 0)


def html(handler: Handler) -> None:
    """What the log-in page of a hotel's network answers."""
    answer(handler, b"<html>please log in</html>", "text/html; charset=utf-8")


def disguised_html(handler: Handler) -> None:
    answer(handler, b"<html>please log in</html>", "application/zip")


def answer(handler: Handler, content: bytes, kind: str) -> None:
    handler.head(200, {"Content-Type": kind, "Content-Length": len(content)})
    handler.body(content)


def busy(seconds: str | None = None) -> Behaviour:
    headers = {"Content-Length": 0, "Connection": "close"} | ({"Retry-After": seconds} if seconds else {})
    return lambda handler: handler.head(503, headers)


def refuse(status: int) -> Behaviour:
    return lambda handler: handler.head(status, {"Content-Length": 0})


def hang_up(handler: Handler) -> None:
    """Not a word."""


def nothing(handler: Handler) -> None:
    """An empty file."""
    answer(handler, b"", "application/zip")


def too_much(handler: Handler) -> None:
    """More than it says: the length is in Content-Range only, and the body goes on."""
    start, content = handler.asked_from(), handler.server.content
    handler.head(
        206,
        {
            "ETag": handler.server.etag,
            "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}",
            "Transfer-Encoding": "chunked",
        },
    )
    for block in (content[start:], b"more" * 1000):
        handler.wfile.write(f"{len(block):x}\r\n".encode() + block + b"\r\n")
    handler.wfile.write(b"0\r\n\r\n")
