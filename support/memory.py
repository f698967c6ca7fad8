"""Memory: how much is free, and bytes that processes of a machine share."""

import os
import sys
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

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


def available() -> int | None:
    """Bytes that can be taken without swapping, by the machine and by the container; None: nobody says."""
    found = [*_of_machine(MACHINE), *_of_group(GROUPS)]
    return min(found, default=None)


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
    def bytes(self) -> Tensor:
        """(size,) uint8, opened when first asked for: a path says nothing on another machine."""
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
