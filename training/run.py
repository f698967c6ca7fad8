"""What a training run starts with: its configuration and checkpoint, its data, its folder, its device."""

import argparse
import errno
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self

import torch
from torch import nn
from torch.utils.data import Dataset

from coco.data import CocoData
from coco.split_file import require_same_split
from support import devices, distributed, memory
from support.configuration import config_from_dict
from support.errors import UsageError
from training import checkpoints
from training.config import Config, in_mid_epoch, run_config
from training.progress import TensorBoardLog, open_board

LOCK_NAME = ".lock"  # stays when it is free: whoever deletes a lock file may delete that of the next run


class RunLock:
    """One run at a time in a folder of checkpoints: a second would move and delete the files of the first.

    Holds a folder of checkpoints for this run, from here to the end of the block or of the process.

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
            self._file = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(self._file, 0)
            os.write(self._file, f" (process {os.getpid()} on {socket.gethostname()})".encode())
        except OSError as error:
            if self._file is None and not os.access(folder, os.W_OK):
                return f"{folder}: cannot be written to, {error.strerror}: name another place with --out"
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


@dataclass
class Run(Generic[Config]):
    """A run before its first step; `open_run` makes it."""

    config: Config
    paths: Mapping[str, Path]  # every file location
    data: CocoData
    device: torch.device
    folder: Path  # of its checkpoints and its log
    checkpoint_path: Path | None  # to resume; None: a new run
    checkpoint: dict[str, Any] | None  # what that file holds
    tensorboard: bool  # whether to write its log, too
    newest: list[Path] = field(default_factory=list)  # checkpoint in the folder before one was read, if any
    lock: RunLock | None = None  # on the folder, once it is taken
    board: TensorBoardLog | None = None  # TensorBoard's, in the main process and where it is asked for
    epochs_key: str = "total_epochs"  # of the configuration: says how many this stage has

    def is_complete(self, until: int | None) -> bool:
        """Whether the checkpoint has done all epochs, or `until` of them; one line says so then.

        Raises:
            UsageError: `until` is beyond the schedule's end, where the rate stays at its least.
        """
        if until and until > self.config.total_epochs:
            raise UsageError(
                f"--epochs {until}: the schedule has {self.config.total_epochs}, and nothing more is learned "
                f"beyond its end; for more take --set {self.epochs_key}={until}"
            )
        done = self.checkpoint["progress"]["epoch"] if self.checkpoint else 0
        if done < (until or self.config.total_epochs):
            return False
        if distributed.is_main():
            print(f"{self.config.STAGE}: all {done} epochs are done: {self.checkpoint_path}", flush=True)
        return True

    def take_folder(self) -> None:
        """Locks the folder, before the run changes anything in it, and opens TensorBoard's log.

        No process returns before all have called this.

        Raises:
            UsageError: another run has it, or saved in it since this one looked; or the processes of this run
                did not all read the same checkpoint.
        """
        self.lock = RunLock(self.folder)
        saved = checkpoints.existing(self.folder)[-1:] != self.newest  # then the one read may be gone
        read = None if saved or self.checkpoint_path is None else checkpoints.digest(self.checkpoint_path)
        found = distributed.gathered((saved, read))
        if any(saved for saved, _ in found):
            raise UsageError(
                f"{self.folder}: another run has just saved in this folder: start this one again"
            )
        if len({digest for _, digest in found}) > 1:
            raise UsageError(
                f"{self.checkpoint_path}: not the same file for all processes of this run: let checkpoints "
                "lie on a disk that all see"
            )
        if self.tensorboard and distributed.is_main():
            self.board = open_board(self.folder, self.checkpoint)


def open_data_root(options: argparse.Namespace, paths: Mapping[str, Path]) -> CocoData:
    """The data root that the options name."""
    return CocoData.open(paths, options.split_file)


def open_run(
    options: argparse.Namespace,
    paths: Mapping[str, Path],
    config_class: type[Config],
    require_model: Callable[[Path, dict[str, Any]], object],
    device: torch.device,
    loaded: tuple[Path, dict[str, Any]] | None = None,
    open_data: Callable[[argparse.Namespace, Mapping[str, Path]], CocoData] = open_data_root,
) -> Run[Config]:
    """Reads all that a run starts from, and makes the device repeatable and fast.  No file is changed.

    Args:
        options: of the command line, see `command_line.add_training_options`.
        paths: every file location, by these options.
        config_class: the stage's.
        require_model: raises UsageError unless a checkpoint's weights have the sizes that it claims.
        device: for the model.
        loaded: the checkpoint and its file, if they are not simply what `-c` names in the stage's folder.
        open_data: finds the data that the options name.

    Raises:
        UsageError: checkpoint, configuration and data do not fit together.
    """
    stage = config_class.STAGE
    folder = paths[f"{stage}_checkpoints"]
    path = checkpoint = None
    newest = checkpoints.existing(folder)[-1:]
    if options.checkpoint:
        path, checkpoint = loaded or checkpoints.load_named(folder, options.checkpoint, stage)
        config_from_dict(checkpoint["config"], config_class, f"{path}: config")
        require_model(path, checkpoint)
        if not checkpoint["optimizer"]:
            raise UsageError(
                f"{path}: export.py left the optimizer's state out, so no training can go on from it; name a "
                "checkpoint that the training wrote"
            )
    config = run_config(config_class, options.config, paths[config_class.FILE], checkpoint, options.changes)
    data = open_data(options, paths)
    if checkpoint:
        require_same_split(checkpoint, data.split_file)
        require_same_images(checkpoint, data)
    torch.manual_seed(config.seed)
    devices.set_fast_float32()
    devices.make_repeatable(device)
    memory.keep_freed(device)
    return Run(config, paths, data, device, folder, path, checkpoint, options.tensorboard, newest)


def require_same_images(checkpoint: dict[str, Any], data: CocoData) -> None:
    """Says so where a run goes on with another data root, or other images of `--images`, than it began with.

    Raises:
        UsageError: it does so in the middle of an epoch, or from a data root to such images or back.
    """
    ((kind, now),) = data.identity().items()
    begun = "images" if "images" in checkpoint else "root"
    was = checkpoint.get(begun)  # None: a root of which a checkpoint of before says nothing
    if begun == kind and (was is None or was["sha256"] == now["sha256"]):
        return
    said = {"images": "--images", "root": "a data root"}
    before, after = (said[k] + (f", {d['words']}" if d else "") for k, d in ((begun, was), (kind, now)))
    if begun != kind:
        raise UsageError(f"this run was begun with {before}, not with {after}: it goes on with that only")
    change = f"this run was begun with {before}, now {after}: "
    change += "other names, or another --val-fraction" if kind == "images" else "other images"
    if in_mid_epoch(checkpoint):
        raise UsageError(
            f"{change}; in the middle of an epoch it needs the same: bring them back, or go on from a "
            "checkpoint of the end of an epoch"
        )
    if distributed.is_main():
        print(f"note: {change}", file=sys.stderr, flush=True)


def first_line(run: Run, model: nn.Module, dataset: Dataset) -> str:
    """What trains where, on what: stage, device and precision, processes, data, sizes.

    Args:
        run: the run.
        model: its model.
        dataset: what it trains on.
    """
    processes = distributed.world_size()
    precision = devices.choose_precision(run.config.precision, run.device)
    parts = [
        run.config.STAGE,
        devices.describe(run.device, precision),
        f"{processes} process{'es' if processes > 1 else ''}",
        dataset.describe(),
        run.config.describe(),
        devices.parameters_in_words(model),
    ]
    return " · ".join(parts)
