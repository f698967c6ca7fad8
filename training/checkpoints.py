"""Checkpoints: a kill loses nothing, damage is seen, and a file need not be trusted to be read.

A checkpoint is what `torch.save` writes, a ZIP archive, with the archive's own SHA-256 as its ZIP comment.
Digest and data are one file and appear in one rename; a plain `torch.load(path, weights_only=True)` reads it.

    0            the archive up to its last field, the length of its comment, which torch.save leaves 0
    size - 73    that length, now 71, in two bytes
    size - 71    "sha256:" and 64 hexadecimal digits: the digest of the archive with the length still 0

Inside is one dict of plain values and tensors, with `schema` (SCHEMA) and `stage` ("encoder" or "captioner").
"""

import hashlib
import math
import os
import pickle
import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import torch

from support.errors import RunError, UsageError
from support.files import digest as file_digest
from support.files import replacing
from training import hub_folder
from training.contents import require_parts

SCHEMA = 1
STAGES = ("encoder", "captioner")
RENAMED = {"pictures": "resized_to"}  # parts of older checkpoints, and what they are called now
# What held, or nearly, before configurations had these keys.
LATER_KEYS = {"loading_timeout": 60.0, "cache_images": False, "ema_decay": 0.0, "muon": False}
LATER_KEYS_OF = {
    "encoder": {"crops_per_image": 1, "contrastive_weight": 0.0},
    "captioner": {
        "drop_path": 0.0,
        "patch_dropout": 0.0,
        "self_critical_epochs": 5,
        "self_critical_learning_rate": 1e-5,
        "self_critical_samples": 5,
        "self_critical_ema_decay": None,
        "consensus_samples": 0,
    },
}
TORCH_FLOOR = (2, 11)  # older ones: weights_only=True can be broken out of (CVE-2025-32434, CVE-2026-24747)

TRAILER = 2 + len("sha256:") + 64
NAME = re.compile(r"checkpoint(0|[1-9]\d*)(?:-step([1-9]\d*))?\.pt", re.ASCII)
LEAF_TYPES = (type(None), bool, int, float, str, bytes)


class DamagedCheckpointError(UsageError):
    """This file is not what `save` wrote; `last` passes over it."""


# --- one file ---


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint; at every instant the old file or the new one is there whole, never a part.

    The order is important: the data reaches the disk (fsync) before the name does (rename, which is atomic),
    and the name (fsync of the folder) before `prune` deletes anything.

    Raises:
        RunError: no space, no permission, or a value that could not be loaded again; nothing has changed.
    """
    temporary = None
    try:
        if state.get("schema") != SCHEMA or state.get("stage") not in STAGES:
            raise TypeError(f"a checkpoint needs schema {SCHEMA} and a stage out of {', '.join(STAGES)}")
        _require_plain(state, "state", set())
        with replacing(path) as temporary, open(temporary, "w+b") as file:
            torch.save(state, file)
            end = file.seek(-2, os.SEEK_END)
            trailer = _trailer(file, end)
            file.seek(end)
            file.write(trailer)
    except Exception as error:  # torch wraps an OSError of the file in a RuntimeError of its own
        reason = error if isinstance(error, OSError) else error.__context__ or error
        text = getattr(reason, "strerror", None) or str(reason).partition("\n")[0]
        raise RunError(f"{path}: not saved: {text}; the checkpoints before it are whole") from error
    finally:
        if temporary and temporary.exists():
            _remove(temporary)


def load(path: Path, stage: str | None = None) -> dict[str, Any]:
    """Reads a checkpoint that need not be trusted: none of it is executed or can grow beyond the file's size.

    The tensors are on the CPU and mapped from the file: read when used; changing one leaves the file alone.

    Args:
        path: the file, or a folder that export.py wrote.
        stage: "encoder" or "captioner" where only that will do; its parts must then all be there.

    Raises:
        DamagedCheckpointError: cut, changed, or not written by `save`.
        UsageError: no such file, another schema, another stage, or a part of that stage is missing.
    """
    require_torch()
    path = Path(path)
    if hub_folder.is_hub_folder(path):
        return _of_this_version(path, hub_folder.load(path), stage)
    if os.path.isdir(path):
        raise UsageError(f"{path}: a folder: name a file in it, or {path / 'last'}; {_listed(path)}")
    if not os.path.isfile(path):
        raise UsageError(f"{path}: no such checkpoint; {_listed(path.parent)}")
    try:
        _verify(path)
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        _require_plain(state, "state", set())
        if (
            type(state) is not dict
            or type(state.get("schema")) is not int
            or state.get("stage") not in STAGES
        ):
            raise ValueError("it has no schema and stage")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # an unpickler that is fed hostile bytes may fail in any way
        reason = re.split(r"\.\s|\n", str(error))[0][:120] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # its own text advises to switch the protection off
            reason = "it holds more than plain values and tensors"
        raise DamagedCheckpointError(
            f"{path}: damaged, or no checkpoint: {reason}; take another, or `last`"
        ) from error
    return _of_this_version(path, state, stage)


def _of_this_version(path: Path, state: dict[str, Any], stage: str | None) -> dict[str, Any]:
    """The state, if it has this schema and is of that stage, with its parts and its keys by today's names."""
    if state.get("schema") != SCHEMA:
        found = f"{state.get('schema')!r:.40}"
        raise UsageError(
            f"{path}: schema {found}, but this version reads {SCHEMA}; use the one that wrote it"
        )
    if state.get("stage") not in (STAGES if stage is None else (stage,)):
        of, needed = f"{state.get('stage')!s:.40}", stage or " or ".join(STAGES)
        raise UsageError(f"{path}: a checkpoint of the {of}, but one of the {needed} is needed")
    for old, new in RENAMED.items():
        if old in state:
            state.setdefault(new, state.pop(old))
    require_parts(path, state)
    state["config"] = LATER_KEYS | LATER_KEYS_OF[state["stage"]] | state["config"]
    return state


def digest(path: Path) -> str:
    """The SHA-256 that a sound checkpoint carries: it names the contents, whatever the file is called.

    Of a folder in the hub's layout, that of its weights.
    """
    if path.is_dir():
        return file_digest(path / hub_folder.WEIGHTS)
    with open(path, "rb") as file:
        file.seek(-64, os.SEEK_END)
        return file.read().decode("ascii")


def require_torch(version: str = torch.__version__) -> None:
    """Refuses a torch whose `weights_only=True` does not protect."""
    if tuple(int(part) for part in version.split(".")[:2]) < TORCH_FLOOR:
        floor = ".".join(map(str, TORCH_FLOOR))
        raise UsageError(f"torch {version} loads checkpoints unsafely; install torch {floor} or newer")


# --- the checkpoints of a folder ---


def name(epochs: int, step: int = 0) -> str:
    """The file name after `epochs` completed epochs, and `step` steps of the next one."""
    return f"checkpoint{epochs}-step{step}.pt" if step else f"checkpoint{epochs}.pt"


def stem(path: Path) -> str:
    """A checkpoint's name without its ending, for the names of what belongs to it; a folder has no ending."""
    return path.name if os.path.isdir(path) else path.stem


def position(path: Path) -> tuple[int, int] | None:
    """(epochs completed, steps of the next) from a file's name, or None: it is not named as a checkpoint."""
    match = NAME.fullmatch(path.name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def existing(folder: Path) -> list[Path]:
    """The checkpoints in a folder, in the order of training."""
    files = Path(folder).glob("checkpoint*.pt")
    return sorted((path for path in files if position(path) and path.is_file()), key=position)


def load_named(folder: Path, wanted: str, stage: str | None = None) -> tuple[Path, dict[str, Any]]:
    """Loads what `-c` or `-p` names: a path, a bare name such as `checkpoint12.pt` in `folder`, or `last`.

    A path may be that of a folder that export.py wrote.

    `last` is the newest sound one: a damaged one is passed over with a warning.  One named outright never is.
    `FOLDER/last` is that of another folder.

    Returns:
        The file that was loaded, and its state.
    """
    if Path(wanted).name == "last" and wanted != "last":
        folder, wanted = Path(wanted).parent, "last"
    if wanted != "last":
        inside = Path(folder, wanted)
        named = os.path.isfile(wanted) or hub_folder.is_hub_folder(Path(wanted))
        apart = named or Path(wanted).parent != Path()  # a path that is not there is told as it was given
        path = Path(wanted) if apart and not os.path.isfile(inside) else inside
        path = path if path.name.strip(".") else path.resolve()  # of "." the name is needed, too
        return path, load(path, stage)
    for path in reversed(existing(folder)):
        try:
            return path, load(path, stage)
        except DamagedCheckpointError as error:
            print(f"warning: {error}; trying the one before", file=sys.stderr)
    raise UsageError(f"{folder}: no sound checkpoint for `last`; {_listed(folder)}")


def prepare(folder: Path, resumed: Path | None = None) -> None:
    """Readies a folder for a run: removes what a killed save left, sets aside what is not this run's past.

    Where a run starts anew, or goes on from a checkpoint that is not the newest, `last` would later take the
    files ahead of it for its own.  They are moved into `earlier1/` (or 2, ...), never deleted.

    Args:
        folder: where the run will save.
        resumed: the checkpoint that the run goes on from; None for a new run.

    Raises:
        OSError: there can be no such folder; better said now than after the first epoch.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    clean(folder)
    here = resumed is not None and resumed.resolve().parent == Path(folder).resolve()
    start = position(resumed) if here else None
    ahead = [path for path in existing(folder) if start is None or position(path) > start]
    if not ahead:
        return
    aside = next(path for number in count(1) if not (path := Path(folder, f"earlier{number}")).exists())
    aside.mkdir()
    for path in ahead:
        os.replace(path, aside / path.name)
    print(f"note: moved the checkpoints of an earlier run; {_listed(aside)}", file=sys.stderr)


def clean(folder: Path) -> None:
    """Removes the temporary files of saves that were killed."""
    for path in Path(folder).glob("checkpoint*.pt.tmp*"):
        _remove(path)


def prune(folder: Path, written: Path, keep: int, history: Iterable[dict[str, Any]]) -> None:
    """Deletes old checkpoints: all but the newest `keep` ends of epochs, the best one, and `written` itself.

    Files ahead of `written` are left alone and do not count, so that a stale higher number never pushes out
    what was just written.  Within an epoch only the newest step is kept, until the epoch's end.

    Args:
        folder: the folder of the run.
        written: the checkpoint just saved; nothing happens without it.
        keep: how many ends of epochs stay, at least 1.
        history: one dict an epoch, with `epoch` and, where known, `cider`, `bleu4` and `val_loss`.
    """
    past = [path for path in existing(folder) if position(path) <= position(written)]
    ends_of_epochs = [path.name for path in past if position(path)[1] == 0]
    best = best_epoch(history)
    kept = {written.name, *ends_of_epochs[-max(keep, 1) :], "" if best is None else name(best)}
    if os.path.isfile(written):
        for path in past:
            if path.name not in kept:
                _remove(path)


def best_epoch(history: Iterable[dict[str, Any]]) -> int | None:
    """The epoch of highest CIDEr, then of highest BLEU-4, then of lowest validation loss.

    A missing or NaN figure is never best.  CIDEr comes first because BLEU-4 hardly tells small captioners
    apart.
    """

    def merit(epoch: dict[str, Any]) -> tuple[float, float]:
        loss = epoch.get("val_loss")
        figures = (epoch.get("cider"), epoch.get("bleu4"), None if loss is None else -loss)
        return tuple(-math.inf if f is None or not math.isfinite(f) else f for f in figures)

    best = max(history, key=merit, default={})
    return best["epoch"] if max(merit(best)) > -math.inf else None


# --- bytes ---


def _trailer(file: BinaryIO, length: int) -> bytes:
    """What follows the first `length` bytes of a file: comment length and comment.  The file ends there."""
    sha256 = hashlib.sha256()
    file.seek(0)
    while block := file.read(min(1 << 20, length)):
        sha256.update(block)
        length -= len(block)
    sha256.update(b"\0\0")
    comment = f"sha256:{sha256.hexdigest()}".encode()
    return len(comment).to_bytes(2, "little") + comment


def _verify(path: Path) -> None:
    """Raises ValueError unless the digest is right and no entry of the archive can grow beyond the file.

    Whoever makes a hostile file can also make its digest; so compressed and overlapping entries are refused.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= TRAILER or _trailer(file, size - TRAILER) != file.read():
            raise ValueError("its SHA-256 is missing or does not match")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not stored or sum(entry.file_size for entry in entries) > size:
        raise ValueError("its entries are larger than the file")


def _require_plain(value: Any, key: str, seen: set[int]) -> None:
    """Raises TypeError, naming the key, unless all is plain values and tensors with memory of their own.

    Each container is visited once: a small pickle can hold a list of lists a million million items large.
    """
    if type(value) in LEAF_TYPES or id(value) in seen:
        return
    seen.add(id(value))
    if type(value) in (torch.Tensor, torch.nn.Parameter):
        # An expanded view claims more than its storage holds: a few bytes could claim terabytes.
        ordinary = value.layout is torch.strided and not value.is_meta
        if not ordinary or value.nbytes > value.untyped_storage().nbytes():
            raise TypeError(f"{key} is a sparse, expanded or meta tensor; save a dense one")
    elif type(value) in (dict, OrderedDict):
        for inner, item in value.items():
            if type(inner) not in LEAF_TYPES:
                raise TypeError(f"{key} has a key of type {type(inner).__name__}")
            _require_plain(item, f"{key}[{inner!r:.40}]", seen)
    elif type(value) in (list, tuple):
        for number, item in enumerate(value):
            _require_plain(item, f"{key}[{number}]", seen)
    else:
        raise TypeError(f"{key} is a {type(value).__name__}, which cannot be loaded safely")


def _remove(path: Path) -> None:
    """Deletes a file.  Where it cannot: a warning, but no reason to end a run that has just saved."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        print(f"warning: {path}: cannot be deleted: {error.strerror}", file=sys.stderr)


def _listed(folder: Path) -> str:
    names = [path.name for path in existing(folder)]
    shown = ", ".join(names if len(names) <= 8 else [*names[:3], "...", *names[-4:]])
    return f"in {folder} there {'are ' + shown if names else 'is none'}"
