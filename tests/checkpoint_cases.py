"""Ways to hurt a checkpoint, shared by the quick tests and by tests/faults: kills, damage, hostile files."""

import errno
import hashlib
import io
import os
import pickle
import random
import signal
import traceback
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from tqdm import tqdm

from training import checkpoints

LATER = checkpoints.LATER_KEYS | checkpoints.LATER_KEYS_OF["encoder"]  # loading completes a configuration


def state_of(epoch: int, step: int = 0, elements: int = 3000) -> dict[str, Any]:
    """A small state that can be told from every other; the parts of a real one are all there."""
    weights = torch.arange(elements, dtype=torch.float32) + 1000 * epoch + step
    return {
        "schema": checkpoints.SCHEMA,
        "stage": "encoder",
        "config": {"betas": (0.9, 0.95), "clip_norm": None, "name": "é", **LATER},
        "model": OrderedDict(weight=weights, half=weights.bfloat16()),
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0)}},
            "param_groups": [{"lr": 1e-4, "params": [0]}],
        },
        "scaler": {},
        "progress": {
            **dict.fromkeys(("updates", "bad_steps", "skipped", "unreadable"), 0),
            **{"epoch": epoch, "step": step, "history": []},
        },
        "samples": 6,
    }


def is_state(state: dict[str, Any], epoch: int, step: int = 0) -> bool:
    wanted = state_of(epoch, step, state["model"]["weight"].numel())
    same = state["progress"] == wanted["progress"] and state["config"] == wanted["config"]
    return same and torch.equal(state["model"]["weight"], wanted["model"]["weight"])


# --- kills ---


def forked(action: Callable[[], None]) -> int:
    """Starts a child process that does `action`; returns its number.  Its exit code is 99 after an error."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # the threads of the parent's pool are not there after a fork
            # Progress bars share a lock with the parent, who would wait for ever for a child killed in one.
            tqdm.set_lock(RLock())
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(99)
    return child


def in_child(action: Callable[[], None]) -> int:
    """Runs `action` in a child process; 0 if it returned, minus the number of a signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(forked(action), 0)[1])


def killed(action: Callable[[], None], number: int) -> bool:
    """Runs `action` in a child that gets SIGKILL before its `number`-th write, fsync, rename or unlink.

    Returns:
        False if the child ended before it came to that call.
    """

    def counted() -> None:
        _count_calls(lambda count: os.kill(os.getpid(), signal.SIGKILL) if count == number else None)
        action()

    status = in_child(counted)
    assert status in (0, -signal.SIGKILL)
    return status != 0


def _count_calls(before: Callable[[int], None]) -> None:
    """Lets `before(n)` run ahead of the n-th call that changes the disk.  For a child: it stays so."""
    calls = iter(range(1, 1 << 30))

    def counted(function: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            before(next(calls))
            return function(*arguments, **options)

        return call

    class CountedFile(io.FileIO):
        write = counted(io.FileIO.write)

    def open_counted(path: Path, mode: str) -> io.BufferedIOBase:
        return open(path, mode) if mode == "rb" else io.BufferedRandom(CountedFile(path, "w+"))

    checkpoints.open = open_counted
    for function in ("fsync", "replace", "unlink"):
        setattr(os, function, counted(getattr(os, function)))


# --- full disks ---


def disk_of(room: int) -> Callable[[Path, str], io.BufferedIOBase]:
    """An `open` for files on a disk with this many bytes left."""

    class FullFile(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() + len(data) > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    return lambda path, mode: io.BufferedRandom(FullFile(path, "w+")) if "w" in mode else open(path, mode)


# --- damage ---


def damage(data: bytes, draw: random.Random) -> bytes:
    """Cuts a file short, flips one bit of it, or zeroes a range, as power cuts and bad disks do."""
    while True:
        damaged = bytearray(data)
        place = draw.randrange(len(data))
        kind = draw.randrange(3)
        if kind == 0:
            del damaged[place:]
        elif kind == 1:
            damaged[place] ^= 1 << draw.randrange(8)
        else:
            length = min(draw.choice((1, 16, 512, 4096)), len(data) - place)
            damaged[place : place + length] = bytes(length)
        if damaged != data:  # a range may have held zeros before
            return bytes(damaged)


# --- hostile files, all with a right digest ---


def sealed(archive: bytes) -> bytes:
    """An archive with the trailer of a checkpoint, written from the format's description alone."""
    digest = hashlib.sha256(archive[:-2] + b"\0\0").hexdigest().encode()
    return archive[:-2] + (7 + 64).to_bytes(2, "little") + b"sha256:" + digest


def archive_of(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return file.getvalue()


def saved(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def entries_of(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return {name: file.read(name) for name in file.namelist()}


class Call:
    """Pickles as a call of a function: what unpickling without `weights_only` would execute."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.reduced


def hostile(marker: Path) -> Iterator[tuple[str, bytes]]:
    """(what it tries, bytes of the file); the ones that execute code make the file `marker`."""
    good = state_of(1)
    storage = torch.arange(70_000, dtype=torch.float32)  # its length needs four bytes in the pickle

    def tensor(size: tuple, stride: tuple, offset: int = 0) -> dict[str, Any]:
        rebuilt = Call(
            torch._utils._rebuild_tensor_v2,
            storage._typed_storage(),
            offset,
            size,
            stride,
            False,
            OrderedDict(),
        )
        return {**good, "model": {"weight": rebuilt}}

    def pickled(data: bytes, **others: bytes) -> bytes:
        return archive_of(
            {"archive/data.pkl": data, "archive/version": b"3\n", "archive/byteorder": b"little"}
        )

    yield "os.system", saved({**good, "extra": Call(os.system, f"touch {marker}")})
    yield "eval", saved({**good, "extra": Call(eval, f"open({str(marker)!r}, 'w')")})
    yield "open for writing", saved({**good, "extra": Call(open, str(marker), "w")})
    yield "the pickle alone", pickle.dumps(Call(os.system, f"touch {marker}")) + b"\0\0"
    yield "torch's format before ZIP", _old_format(Call(os.system, f"touch {marker}")) + b"\0\0"
    yield "10**12 elements, stride 1", saved(tensor((10**12,), (1,)))
    yield "10**12 elements, stride 0", saved(tensor((10**12,), (0,)))
    yield "elements before the storage", saved(tensor((4,), (1,), offset=-1))
    yield "2**62 x 2**62 elements", saved(tensor((2**62, 2**62), (1, 1)))
    yield (
        "a storage said to be larger than its entry",
        _claimed(saved(tensor((70_000,), (1,))), 70_000, 2**31 - 1),
    )
    yield "a bytearray of 10**12", saved({**good, "extra": Call(bytearray, 10**12)})
    yield "a meta tensor", saved({**good, "extra": torch.empty(10**12, device="meta")})
    yield "a sparse tensor", saved({**good, "extra": torch.eye(3).to_sparse()})
    yield "compressed zeros", archive_of({"archive/data.pkl": bytes(10**8)}, zipfile.ZIP_DEFLATED)
    yield "overlapping entries", _overlapping(saved(good))
    yield "an archive in an archive", archive_of({"archive/data.pkl": saved(good), "../../up": b"x"})
    yield (
        "a TorchScript archive",
        archive_of({**entries_of(saved(good)), "archive/constants.pkl": b"\x80\x02)."}),
    )
    yield "no archive", b"PK" + bytes(1000)
    yield "lists 100,000 deep", pickled(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")
    yield "a number of 20,000 digits as schema", saved({**good, "schema": 10**20_000})
    yield "a schema to come", saved({**good, "schema": checkpoints.SCHEMA + 1})
    yield "True for the schema", saved({**good, "schema": True})
    yield "no stage", saved({key: value for key, value in good.items() if key != "stage"})
    yield "a list for the stage", saved({**good, "stage": ["encoder"]})
    yield "a tensor for the stage", saved({**good, "stage": torch.zeros(2)})
    yield "a bare list", saved([1, 2, 3])
    yield "a bare state dict", saved(torch.nn.Linear(2, 2).state_dict())


def _old_format(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def _claimed(archive: bytes, number: int, claimed: int) -> bytes:
    """The archive with every `number` in its pickle replaced."""
    entries = entries_of(archive)
    name = "archive/data.pkl"
    old, new = (b"J" + value.to_bytes(4, "little") for value in (number, claimed))
    assert old in entries[name]
    entries[name] = entries[name].replace(old, new)
    return archive_of(entries)


def _overlapping(archive: bytes) -> bytes:
    """A central directory that names the first entry a thousand times."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        first = file.infolist()[0]
        file.filelist.extend([first] * 1000)
        start = file.start_dir
        buffer = io.BytesIO(archive[:start])
        buffer.seek(start)
        file.fp, file.mode, file.start_dir = buffer, "w", start
        file._write_end_record()
        return buffer.getvalue()
