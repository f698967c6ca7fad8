"""One run at a time in a folder of checkpoints: a second one would move and delete the files of the first."""

import errno
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from support import distributed
from support.errors import UsageError

NAME = ".lock"  # stays when it is free: whoever deletes a lock file may delete that of the next run


class RunLock:
    """Holds a folder of checkpoints for this run, from here to the end of the block or of the process.

    Only the main process takes it, and all of them hear what came of it.  It is a POSIX lock, which works
    over NFS and, unlike one of `flock`, is not passed on to loader workers: they may outlive a killed run.

    Args:
        folder: is made if it is not there.

    Raises:
        UsageError: another run holds it; nothing has changed.
    """

    def __init__(self, folder: Path):
        self._file: int | None = None
        refusal = None
        if distributed.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            refusal = self._take(folder)
        refusal, *_ = distributed.gathered(refusal)
        if refusal:
            raise UsageError(refusal)

    def _take(self, folder: Path) -> str | None:
        """None, or why this run may not have the folder."""
        import fcntl  # here, because Windows has none, and what it cannot do says so elsewhere

        try:
            self._file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(self._file, 0)
            os.write(self._file, f" (process {os.getpid()} on {socket.gethostname()})".encode())
        except OSError as error:
            if self._file is None or error.errno not in (errno.EAGAIN, errno.EACCES):
                return None  # a file system without locks, say: runs are not kept apart there
            holder = os.read(self._file, 200).decode(errors="replace")
            self.__exit__(None, None, None)
            return (
                f"{folder}: another run is training in this folder{holder}: wait until it ends, or give this "
                "one another place with --out"
            )
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
