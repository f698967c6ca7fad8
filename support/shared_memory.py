"""Room for batches in shared memory, through which loader workers hand them over.

Docker gives a container 64 MB of it unless told otherwise, and a run of full size needs more.
"""

import errno
import os
import re
import sys
from pathlib import Path

from support.errors import RunError

FOLDER = Path("/dev/shm")
SMALLEST = 256  # MB that a message advises to take, at least
# torch's words in a worker that found no room, and on a worker that the system ended for it
FULL = re.compile("unable to .*shared memory|No space left on device|Bus error")


def require_room(batches: int, batch_bytes: int, processes: int, keys: str | None) -> None:
    """Looks, before the first batch, whether shared memory has room for all that will be in it at once.

    Args:
        batches: of one process.
        batch_bytes: of each.
        processes: on this machine, each with so many batches.
        keys: of the configuration, which make it less; None where there is no configuration.

    Raises:
        RunError: it has not.
    """
    if sys.platform != "linux":  # elsewhere it is not a file system of a fixed size
        return
    try:
        found = os.statvfs(FOLDER)
    except OSError:
        return
    needed, free = batches * batch_bytes * processes, found.f_bavail * found.f_frsize
    if needed > free:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise RunError(
            f"loading needs {_megabytes(needed)} of shared memory ({batches} batches of "
            f"{_megabytes(batch_bytes)}{each}), and {FOLDER} has {_megabytes(free)} free: "
            f"{_remedy(needed, keys)}"
        )


def is_full(error: Exception) -> bool:
    """Whether an error, of a worker or on one, says that shared memory is full."""
    return getattr(error, "errno", None) == errno.ENOSPC or FULL.search(str(error)) is not None


def full(keys: str | None) -> RunError:
    """The error of a run that found shared memory full in its midst."""
    try:
        found = os.statvfs(FOLDER)
        size = found.f_blocks * found.f_frsize
    except OSError:
        size = 0  # not there, or not such a system
    return RunError(
        f"a loader worker found no room in shared memory ({FOLDER} has {_megabytes(size)} in all): "
        f"{_remedy(2 * size, keys)}"
    )


def _remedy(needed: int, keys: str | None) -> str:
    """What would do, for so many bytes."""
    size = SMALLEST
    while size * 2**20 < 1.25 * needed:  # other things lie there, too
        size *= 2
    docker = f"give `docker run` the option --shm-size={size}m or --ipc=host"
    return f"{docker}, or lower {keys}" if keys else docker


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e7 else f"{count / 1e6:.1f} MB"
