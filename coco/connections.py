"""Asking a file server: time-outs, bounded retries with back-off, and every refusal said in one line."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidSchema, InvalidURL, MissingSchema, SSLError
from urllib3.exceptions import HTTPError, InvalidHeader
from urllib3.util import Retry

from support import interrupts
from support.errors import RunError, UsageError

CHUNK = 1 << 16  # bytes; what a broken connection may lose
TIMEOUT = (10, 30)  # seconds to connect, and between two bytes
TRIES = 6  # failures in a row, without a new chunk in between, until we give up
FIRST_WAIT = 1.0  # seconds; doubled after each failure in a row
LONGEST_WAIT = 300.0  # seconds; a server that says Retry-After may ask for this much
BUSY = {408, 425, 429, 500, 502, 503, 504}  # answers that may be better in a while
ABSENT = {401, 403, 404, 410}  # S3 says 403 where a file is missing

Answer = TypeVar("Answer")


class Again(Exception):  # noqa: N818 - a request to repeat
    """It did not work, but may when repeated: `wait` seconds from now, or after the usual back-off."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class PlainHttpRefused(HTTPAdapter):
    """Stands in the way of a redirect to plain http, where anyone between could change the bytes."""

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        raise RunError(f"redirected from https to {request.url}: refused, plain http is open to all")


def open_session(url: str) -> requests.Session:
    """A session for `url`.  One that starts on https stays on https, whatever the server says."""
    session = requests.Session()
    if url.lower().startswith("https:"):
        session.mount("http://", PlainHttpRefused())
    return session


@contextmanager
def request(
    session: requests.Session, method: str, url: str, headers: dict[str, str] | None = None
) -> Iterator[requests.Response]:
    """The server's answer, its body still to be read; trouble on the way, then or later, is `Again`."""
    headers = {"Accept-Encoding": "identity"} | (headers or {})  # the file's own bytes, whose number we know
    try:
        with interrupts.at_once():
            response = session.request(
                method, url, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=True
            )
        with response:
            yield response
    except (InvalidURL, MissingSchema, InvalidSchema) as error:
        raise UsageError(f"{url} is no address to download from: {error}") from None
    except SSLError as error:
        raise RunError(f"{url}: no secure connection: {_root(error)}") from None
    except (requests.RequestException, HTTPError) as error:
        raise Again(_root(error)) from None


def chunks_of(response: requests.Response) -> Iterator[bytes]:
    """The body, piece by piece; a signal ends the wait for the next one."""
    chunks = response.iter_content(CHUNK)
    while True:
        with interrupts.at_once():
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield chunk


def check_status(response: requests.Response) -> None:
    """Passes 200 and 206.

    Raises:
        Again: the server is busy.
        UsageError: the file is not there.
        RunError: this is not going to be the file.
    """
    code, headers = response.status_code, response.headers
    if code in ABSENT:
        raise UsageError(f"{response.url} is not there (the server says {code} {response.reason})")
    if code in BUSY:
        raise Again(f"the server says {code} {response.reason}", _retry_after(headers.get("Retry-After")))
    if code not in (200, 206):
        raise RunError(f"{response.url}: the server says {code} {response.reason}")
    if headers.get("Content-Type", "").lower().startswith("text/html"):
        raise RunError(f"{response.url} answers with a web page, not the file: a log-in or an error page?")
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RunError(f"{response.url}: the server insists on an encoding ({headers['Content-Encoding']})")


def persist(attempt: Callable[[], Answer], url: str, progress: Callable[[], int] = lambda: 0) -> Answer:
    """Calls `attempt` until it raises `Again` no more; `progress` says how many bytes there are.

    Raises:
        RunError: `TRIES` failures in a row brought no new chunk, or the server asks for too long a wait.
    """
    failures, best = 0, progress()
    while True:
        try:
            return attempt()
        except Again as trouble:
            reason, wait = str(trouble), trouble.wait
        gained = progress() - best
        best = max(best, progress())
        failures = 1 if gained >= CHUNK else failures + 1
        if failures == TRIES:
            raise RunError(f"{url}: {TRIES} tries in a row failed ({reason}); run this again to go on")
        if wait is None:
            wait = FIRST_WAIT * 2 ** (failures - 1)
        if wait > LONGEST_WAIT:
            raise RunError(f"{url}: the server is busy for {wait:,.0f} s; run this again after that to go on")
        _sleep(wait)


def remote_size(url: str) -> int | None:
    """The file's size in bytes, without fetching it; None where the server does not say.

    Raises:
        UsageError: the server does not have it.
        RunError: the server cannot be reached.
    """

    def ask() -> int | None:
        with request(session, "HEAD", url) as response:
            if response.status_code in (405, 501):  # it knows no HEAD
                return None
            check_status(response)
            return whole_number(response.headers.get("Content-Length"))

    with open_session(url) as session:
        return persist(ask, url)


def whole_number(text: str | None) -> int | None:
    """A header's number, or None where it is none."""
    return int(text) if text and re.fullmatch(r"[0-9]{1,18}", text) else None


def _retry_after(text: str | None) -> float | None:
    try:
        return Retry().parse_retry_after(text) if text else None
    except (InvalidHeader, ValueError, OverflowError):
        return None


def _root(error: BaseException) -> str:
    """The reason beneath the layers that passed it up."""
    while error.__context__:
        error = error.__context__
    return str(error) or type(error).__name__


def _sleep(seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        interrupts.check()
        time.sleep(min(left, 0.2))
