"""Downloads that end in the right bytes or in one clear line, however the connection, the server or we die.

Bytes go to `NAME.part`, and `NAME.part.json` says of which version of the file they are (address, size,
ETag).  The next call, in this process or a later one, asks for the rest only, and checks that this is what
it gets.  `NAME` itself appears by a rename, complete and in agreement with its pin.

One process at a time: the caller holds a lock (`support.files.exclusive`).
"""

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidSchema, InvalidURL, MissingSchema, SSLError
from tqdm import tqdm
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, InvalidHeader, MaxRetryError
from urllib3.exceptions import SSLError as InsecureError
from urllib3.util import Retry

from support import interrupts
from support.errors import RunError, UsageError
from support.files import digest, naming, read_json, sync, write_json
from support.progress_bars import progress_bar

CHUNK = 1 << 16  # bytes; what a broken connection may lose
TIMEOUT = (10, 30)  # seconds to connect, and between two bytes
TRIES = 6  # failures in a row, without a new chunk in between, until we give up
FIRST_WAIT = 1.0  # seconds; the first retry comes at once, and from then on the wait doubles
LONGEST_WAIT = 300.0  # seconds; a server that says Retry-After may ask for this much
BUSY = {408, 425, 429, 500, 502, 503, 504}  # answers that may be better in a while
ABSENT = {401, 403, 404, 410}  # S3 says 403 where a file is missing


class Retryable(Exception):  # noqa: N818 - a request to repeat
    """An answer came, but not the bytes that were asked for; they may come when asked for once more."""


class BoundedRetry(Retry):
    """urllib3's retries, which ask no more where nothing would come of it."""

    def increment(self, *args: Any, error: Exception | None = None, **more: Any) -> Retry:
        if isinstance(error, InsecureError):  # a false certificate stays one
            raise error
        return super().increment(*args, error=error, **more)

    def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
        try:
            wait = super().get_retry_after(response)
        except (InvalidHeader, ValueError, OverflowError):
            return None
        if wait and wait > LONGEST_WAIT:
            raise RunError(f"the server is busy for {wait:,.0f} s; run this again after that to go on")
        return wait


RETRIES = BoundedRetry(TRIES - 1, status_forcelist=BUSY, backoff_factor=FIRST_WAIT)


class PlainHttpRefused(HTTPAdapter):
    """Stands in the way of a redirect to plain http, where anyone between could change the bytes."""

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        raise RunError(f"redirected from https to {request.url}: refused, plain http is open to all")


def open_session(url: str) -> requests.Session:
    """A session for `url`.  One that starts on https stays on https, whatever the server says."""
    session = requests.Session()
    session.mount("https://", HTTPAdapter(max_retries=RETRIES))
    is_secure = url.lower().startswith("https:")
    session.mount("http://", PlainHttpRefused() if is_secure else HTTPAdapter(max_retries=RETRIES))
    return session


def request(
    session: requests.Session, method: str, url: str, headers: dict[str, str] | None = None
) -> requests.Response:
    """The server's answer, its body still to be read; what fails on the way there is tried again.

    Raises:
        UsageError: this is no address.
        RunError: there is no secure connection, `TRIES` tries in a row failed, or the server asks for
            too long a wait.
    """
    headers = {"Accept-Encoding": "identity"} | (headers or {})  # the file's own bytes, whose number we know
    try:
        with interrupts.at_once():
            return session.request(method, url, headers=headers, stream=True, timeout=TIMEOUT)
    except (InvalidURL, MissingSchema, InvalidSchema) as error:
        raise UsageError(f"{url} is no address to download from: {error}") from None
    except SSLError as error:
        raise RunError(f"{url}: no secure connection: {_root(error)}") from None
    except requests.RequestException as error:
        raise _given_up(url, error) from None
    except RunError as error:
        raise RunError(f"{url}: {error}") from None


def chunks_of(response: requests.Response) -> Iterator[bytes]:
    """The body, piece by piece; a signal ends the wait for the next one.

    Raises:
        Retryable: the connection broke.
    """
    chunks = response.iter_content(CHUNK)
    while True:
        try:
            with interrupts.at_once():
                chunk = next(chunks, None)
        except (requests.RequestException, HTTPError) as error:
            raise Retryable(_root(error)) from None
        if chunk is None:
            return
        yield chunk


def check_status(response: requests.Response) -> None:
    """Passes 200 and 206.

    Raises:
        UsageError: the file is not there.
        RunError: this is not going to be the file.
    """
    code, headers = response.status_code, response.headers
    if code in ABSENT:
        raise UsageError(f"{response.url} is not there (the server says {code} {response.reason})")
    if code not in (200, 206):
        raise RunError(f"{response.url}: the server says {code} {response.reason}")
    if headers.get("Content-Type", "").lower().startswith("text/html"):
        raise RunError(f"{response.url} answers with a web page, not the file: a log-in or an error page?")
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RunError(f"{response.url}: the server insists on an encoding ({headers['Content-Encoding']})")


def remote_size(url: str) -> int | None:
    """The file's size in bytes, without fetching it; None where the server does not say.

    Raises:
        UsageError: the server does not have it.
        RunError: the server cannot be reached.
    """

    with open_session(url) as session, request(session, "HEAD", url) as response:
        if response.status_code in (405, 501):  # it knows no HEAD
            return None
        check_status(response)
        return whole_number(response.headers.get("Content-Length"))


def whole_number(text: str | None) -> int | None:
    """A header's number, or None where it is none."""
    return int(text) if text and re.fullmatch(r"[0-9]{1,18}", text) else None


def _given_up(url: str, error: Exception) -> RunError:
    return RunError(f"{url}: {TRIES} tries in a row failed ({_root(error)}); run this again to go on")


def _root(error: BaseException) -> str:
    """The reason beneath the layers that passed it up."""
    while error.__context__:
        error = error.__context__
    return str(error) or type(error).__name__


@dataclass(frozen=True)
class Pin:
    """What a file must be, known beforehand."""

    size: int  # bytes
    algorithm: str  # a name that hashlib knows
    digest: str  # hexadecimal digits


def download(url: str, destination: Path, pin: Pin | None = None, magic: bytes = b"PK") -> None:
    """Fetches `url`, or the rest of it; a file that is already there is checked against the pin.

    Args:
        url: http or https; a redirect from https to http is refused.
        destination: the file to make.
        pin: the size and digest it must have, where they are known.
        magic: how the file begins; a log-in page that a proxy sends in its place does not begin like that.

    Raises:
        UsageError: the server does not have it.
        RunError: it could not be fetched, or is not what the pin says.
    """
    if destination.exists():
        if pin and not _agrees(destination, pin):
            raise RunError(f"{destination} is not the file at {url} (other bytes): remove it, run this again")
        return
    part = _Part(destination, url)
    if not part.complete:
        _fetch_all(part, pin, magic)
    if pin and not _agrees(part.path, pin):
        part.discard()
        raise RunError(f"{url}: the bytes do not have the known {pin.algorithm}: removed, run this again")
    part.finish()


class _Part:
    """The bytes that are here already, and of which version of the file they are."""

    def __init__(self, destination: Path, url: str):
        destination.parent.mkdir(parents=True, exist_ok=True)
        self.destination, self.url = destination, url
        self.path = destination.with_name(destination.name + ".part")
        self.record = destination.with_name(destination.name + ".part.json")
        self.version: dict[str, Any] = read_json(self.record, {})
        self.wrong_ranges = 0
        if self.version.get("url") != url or not self.path.exists():
            self.discard()

    @property
    def have(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def complete(self) -> bool:
        return self.have > 0 and self.have == self.version.get("size")

    def discard(self) -> None:
        self.version = {}
        self.path.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)

    def note(self, version: dict[str, Any]) -> None:
        """Writes down which version of the file the bytes are of."""
        self.version = {"url": self.url} | version
        write_json(self.record, self.version)

    def finish(self) -> None:
        with naming(self.path), open(self.path, "r+b") as file:
            sync(file.fileno())
        os.replace(self.path, self.destination)
        self.record.unlink(missing_ok=True)


def _fetch_all(part: _Part, pin: Pin | None, magic: bytes) -> None:
    """Asks for what is missing until it is here; the tries are counted anew whenever a new chunk came."""
    retries, most = RETRIES, part.have
    with (
        progress_bar(what=part.destination.name, unit="B", unit_scale=True) as bar,
        open_session(part.url) as session,
    ):
        while True:
            try:
                return _fetch(session, part, pin, magic, bar)
            except Retryable as error:
                retries = RETRIES if part.have >= most + CHUNK else retries
                most = max(most, part.have)
                try:
                    retries = retries.increment(error=error)
                except MaxRetryError:
                    raise _given_up(part.url, error) from None
            with interrupts.at_once():
                retries.sleep()


def _fetch(session: requests.Session, part: _Part, pin: Pin | None, magic: bytes, bar: tqdm) -> None:
    """One request for what is missing; what arrives is kept even where the connection then breaks."""
    start = part.have if part.wrong_ranges < 2 else 0  # then ask for everything
    headers = {}
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator := _validator(part.version):
            headers["If-Range"] = validator  # "the rest of this version; or the whole of a newer one"
    with request(session, "GET", part.url, headers) as response:
        if response.status_code == 416:  # we have more than there is: it was another file
            part.discard()
            raise Retryable("the partial file does not fit the server's")
        check_status(response)
        version, offset = _version(response)
        if pin and version["size"] not in (None, pin.size):
            raise RunError(
                f"{part.url} has {version['size']:,} bytes, not the known {pin.size:,}: another file?"
            )
        if offset is None or offset not in (0, start):
            part.wrong_ranges += 1
            raise Retryable(f"asked for the bytes from {start:,} on, the server sent others")
        if offset and not _same(version, part.version):
            part.discard()
            raise Retryable("the file has changed on the server")
        _receive(response, part, version, offset, magic, bar)


def _receive(
    response: requests.Response, part: _Part, version: dict[str, Any], offset: int, magic: bytes, bar: tqdm
) -> None:
    """Writes the body, whose first byte is the file's byte `offset`.

    A server that knows no ranges sends everything again.  What is here already is then compared and stays,
    so that it is not lost if this transfer ends earlier than the last one did.  Where they differ, the file
    is another one now: what lies behind goes, and what is before is the beginning of both.
    """
    chunks = chunks_of(response)
    if offset == 0:
        first = next(chunks, b"")
        if not first:
            raise Retryable("the server sent nothing")
        if not first.startswith(magic[: len(first)]):  # looked at before what we have is given up for it
            raise RunError(f"{part.url} does not send the file: is it a log-in or an error page?")
        chunks = itertools.chain([first], chunks)
    size = version["size"] if offset == 0 else part.version.get("size") or version["size"]
    have, known, comparing = offset, part.have, offset == 0
    bar.total, bar.n = size, have
    part.path.touch()
    with naming(part.path), open(part.path, "r+b") as file:
        file.seek(offset)
        for chunk in chunks:
            if comparing and file.read(len(chunk)) != chunk:
                file.seek(have)
                file.truncate()
                part.note(version)  # before the first byte that only this version has
                comparing = False
            have += len(chunk)
            if size is not None and have > size:
                break
            if not comparing:
                file.write(chunk)
            bar.update(len(chunk))
        if size is None and have >= known:  # sent without a length, and its end was marked
            size = have
        if have == size and comparing:
            file.truncate()
            part.note(version)
    if size is None or have < size:
        raise Retryable(f"the connection ended after {have:,} of {size or known:,} bytes")
    if have > size:
        part.discard()
        raise Retryable(f"the server sent more than the {size:,} bytes that it said")
    part.version["size"] = size


def _version(response: requests.Response) -> tuple[dict[str, Any], int | None]:
    """Which version of the file an answer is of, and its first byte's place (None: it does not say)."""
    headers = response.headers
    version = {"etag": headers.get("ETag"), "modified": headers.get("Last-Modified"), "size": None}
    if response.status_code == 200:
        return version | {"size": whole_number(headers.get("Content-Length"))}, 0
    stated = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]+|\*)", headers.get("Content-Range", ""))
    if not stated:
        return version, None
    return version | {"size": whole_number(stated[2])}, int(stated[1])


def _same(version: dict[str, Any], other: dict[str, Any]) -> bool:
    """Nothing that both say differs."""
    return all(None in (version[key], other.get(key)) or version[key] == other[key] for key in version)


def _validator(version: dict[str, Any]) -> str | None:
    """What If-Range may carry (RFC 9110, 13.1.5): a strong ETag, or the date."""
    etag = version.get("etag")
    return etag if etag and not etag.startswith("W/") else version.get("modified")


def _agrees(path: Path, pin: Pin) -> bool:
    with interrupts.at_once():  # a minute, for the largest
        return path.stat().st_size == pin.size and digest(path, pin.algorithm) == pin.digest
