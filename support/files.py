"""Files that other processes may look at: replaced whole or not at all, one writer at a time."""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support import interrupts
from support.errors import RunError, UsageError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

WRONG_NAME = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.ELOOP}
# What a file system answers that knows no syncing: CIFS, some FUSE ones, and on a Mac what SMB comes to.
NO_SYNCING = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY}
LONGEST_NAME = 400  # characters of a name that an error shows whole


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name to write to; at the end that file is on the disk under the name `path`.

    A process killed in between leaves the old file as it was.  The temporary name is always the same, so the
    next run overwrites what a killed one left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with naming(temporary):
        yield temporary
        with open(temporary, "r+b") as file:
            sync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)  # or a power cut may forget the new name


def sync(descriptor: int) -> None:
    """Returns when what was written to an open file is on the disk; at once where no such thing is known."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNCING:
            raise


def sync_folder(folder: Path) -> None:
    """Returns when the names in a folder are on the disk; Windows opens no folders to say so of them."""
    if os.name == "nt":
        return
    with naming(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            sync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the system inside that name no file, as those of writing and of syncing, name this one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path, default: Any) -> Any:
    """What the JSON file holds, or `default` where it is missing, damaged or of another type."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return default
    return value if isinstance(value, type(default)) else default


class Record:
    """What is done, and how it looked when it was done: a JSON file that is kept up to date.

    Args:
        path: the file; a missing or damaged one is an empty record, and the work is looked at again.
    """

    def __init__(self, path: Path):
        self.path = path
        self.entries: dict[str, Any] = read_json(path, {})
        self.changed = False

    def agrees(self, name: str, value: Any) -> bool:
        """Whether the step is done, and looked like this when it was; `value` is what JSON can hold."""
        return self.entries.get(name) == value

    def facts(self, name: str) -> dict[str, Any]:
        """What is noted of a step by name; nothing where it is not done, or was noted otherwise."""
        value = self.entries.get(name)
        return value if isinstance(value, dict) else {}

    def note(self, name: str, value: Any) -> None:
        """Writes down that the step is done."""
        self.entries[name] = value
        self.changed = True
        write_json(self.path, self.entries)


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The file's digest in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextmanager
def disk_errors() -> Iterator[None]:
    """What the system refuses (no space, no permission) as one line that names the file.

    Raises:
        UsageError: nothing can have this name: it is too long, or leads through a file.
        RunError: anything else.
    """
    try:
        yield
    except BrokenPipeError:  # no file: the reader of our output went away
        raise
    except OSError as error:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "a file"
        name = name if len(name) <= LONGEST_NAME else f"{name[:50]}..."
        if error.errno in WRONG_NAME:
            raise UsageError(f"{name}: {error.strerror}: name another place") from error
        raise RunError(f"{name}: {error.strerror or error}") from error


def require_place(path: Path) -> None:
    """Makes the folders on the way to a file that will be written, before the work whose result it is.

    Raises:
        UsageError: a folder has this name.
        OSError: there can be no such file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name a file in it")


def require_unix(what: str) -> None:
    """Raises `UsageError` on Windows, which lacks the locks and signals that training relies on."""
    if fcntl is None:
        raise UsageError(
            f"{what} needs Linux or macOS; caption.py and evaluate_captioner.py run on Windows too"
        )


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds the lock file `path`, for which a second process waits; the system frees that of a killed one."""
    require_unix("preparing a data set")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS):
            raise
        yield  # a read-only data set: nothing can be written, so there is nothing to guard
        return
    try:
        _wait_for(lock, path)
        yield
    finally:
        os.close(lock)


def _wait_for(lock: int, path: Path) -> None:
    told = False
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                print(f"another process is at work here ({path}): waiting for it", flush=True)
            told = True
            interrupts.check()
            time.sleep(0.1)
        except OSError:  # a file system without locks; most are still used by one process at a time
            return None


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raises `RunError` unless the disk under `folder`, which need not exist yet, has `needed` bytes free."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed:
        raise RunError(
            f"{what} needs {_gigabytes(needed)} free at {folder} and {_gigabytes(free)} are: "
            "free some, or name a larger disk with --data"
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
