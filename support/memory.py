"""Memory: how much is free, bytes that processes of a machine share, and room for loader workers' batches.

Workers hand these over through shared memory.  Docker gives a container 64 MB of it unless told otherwise,
and a run of full size needs more.
"""

import ctypes
import errno
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from support.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor, device

MACHINE = Path("/proc/meminfo")
GROUPS = Path("/sys/fs/cgroup")  # limits of a container
# Of version 2 and 1: the limit, what is used, and how much of it copies files and is given up when wanted.
GROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)

# Options of glibc's mallopt(3): when to give back the end of the heap, and how many blocks lie outside it.
TRIM_THRESHOLD, MOST_MAPPED = -1, -4

SHARED = Path("/dev/shm")  # through here loader workers hand over their batches
LEAST_SHARED = 256  # MB that a message advises to take, at least
# torch's words in a worker that found no room, and on a worker that the system ended for it
SHARED_IS_FULL = re.compile("unable to .*shared memory|No space left on device|Bus error")


def available() -> int | None:
    """Bytes that can be taken without swapping, by the machine and by the container; None: nobody says."""
    found = [*_of_machine(MACHINE), *_of_group(GROUPS)]
    return min(found, default=None)


def keep_freed(device: "device") -> None:
    """Has this process keep the memory that it frees, for what it allocates next, if it trains on the CPU.

    By default glibc maps a large block from the system and hands it back when it is freed, so a training step
    on a CPU spends up to a fifth of its time on fresh pages, which the system fills with zeros.  On two cores
    of a Xeon with AMX one step of 64 images and 320 captions of recipes/photographs, repeated, took 1.63 s,
    and 1.22 s with this; a whole training gains less, a search nothing (LOG.md, 2026-11-27).  Other C
    libraries are left as they are.
    """
    if device.type != "cpu" or sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(MOST_MAPPED, 0)
        libc.mallopt(TRIM_THRESHOLD, -1)


def _of_machine(file: Path) -> Iterator[int]:
    if file.exists():
        kilobytes = dict(line.split()[:2] for line in file.read_text().splitlines())
        yield 1024 * int(kilobytes["MemAvailable:"])


def _of_group(folder: Path) -> Iterator[int]:
    for limit, used, statistics, reclaimable in GROUP_FILES:
        try:
            most = (folder / limit).read_text().strip()
            taken = int((folder / used).read_text())
            parts = dict(line.split() for line in (folder / statistics).read_text().splitlines())
        except OSError:
            continue
        if most != "max":
            yield max(0, int(most) - taken + int(parts.get(reclaimable, 0)))


class SharedBytes:
    """Bytes in memory that other processes of this machine open by their `path`.

    They last as long as their maker keeps them, or another process has them open; nothing of them is left
    where processes are killed.  Pickled, only the path travels.

    Args:
        size: number of bytes.
        path: of those that another process has made; None makes new ones, all zero.
    """

    def __init__(self, size: int, path: str | None = None):
        self.size, self.path = size, path
        if path is None:
            self._file, self.path = _new_file(size)

    @cached_property
    def bytes(self) -> "Tensor":
        """(size,) uint8, opened when first asked for: a path says nothing on another machine."""
        import torch  # here, for process_coco.py does without

        return torch.from_file(self.path, shared=True, size=self.size, dtype=torch.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedBytes, (self.size, self.path)


def _new_file(size: int) -> tuple[IO[bytes], str]:
    """A file in memory, and a path by which other processes reach it."""
    if sys.platform == "linux":  # Docker's limit of /dev/shm does not hold for it
        file = os.fdopen(os.memfd_create("images"), "r+b")
        path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
    else:
        file = tempfile.NamedTemporaryFile()  # noqa: SIM115 - it goes when it is closed
        path = file.name
    file.truncate(max(1, size))
    return file, path


def require_shared_memory(batches: int, batch_bytes: int, processes: int, keys: str | None) -> None:
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
        found = os.statvfs(SHARED)
    except OSError:
        return
    needed, free = batches * batch_bytes * processes, found.f_bavail * found.f_frsize
    if needed > free:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise RunError(
            f"loading needs {_megabytes(needed)} of shared memory ({batches} batches of "
            f"{_megabytes(batch_bytes)}{each}), and {SHARED} has {_megabytes(free)} free: "
            f"{_remedy(needed, keys)}"
        )


def shared_memory_is_full(error: Exception) -> bool:
    """Whether an error, of a worker or on one, says that shared memory is full."""
    return getattr(error, "errno", None) == errno.ENOSPC or SHARED_IS_FULL.search(str(error)) is not None


def shared_memory_error(keys: str | None) -> RunError:
    """The error of a run that found shared memory full in its midst."""
    try:
        found = os.statvfs(SHARED)
        size = found.f_blocks * found.f_frsize
    except OSError:
        size = 0  # not there, or not such a system
    return RunError(
        f"a loader worker found no room in shared memory ({SHARED} has {_megabytes(size)} in all): "
        f"{_remedy(2 * size, keys)}"
    )


def _remedy(needed: int, keys: str | None) -> str:
    """What would do, for so many bytes."""
    size = LEAST_SHARED
    while size * 2**20 < 1.25 * needed:  # other things lie there, too
        size *= 2
    docker = f"give `docker run` the option --shm-size={size}m or --ipc=host"
    return f"{docker}, or lower {keys}" if keys else docker


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e7 else f"{count / 1e6:.1f} MB"
