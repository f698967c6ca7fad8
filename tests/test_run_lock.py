"""One run at a time in a folder of checkpoints."""

import errno
import fcntl
import multiprocessing
import os
import shutil
import sys
from pathlib import Path

import pytest

import train_encoder
from support import distributed
from support.errors import UsageError
from tests.process_cases import end, start, stderr_of, wait_for_checkpoint
from tests.training_cases import ended, train_mae, write_config
from training import checkpoints, run
from training.run import RunLock

FORK = multiprocessing.get_context("fork")  # a process that need not import torch again


@pytest.mark.timeout(120)
def test_a_second_run_in_a_folder_is_refused_and_moves_nothing(make_tiny_coco, tmp_path, capsys):
    paths = make_tiny_coco(train=6, val=2, unlabeled=2)
    config = write_config(tmp_path, "mae_config.yaml", total_epochs=10_000, num_workers=1, keep_checkpoints=1)
    options = ("--data", paths["data"], "--out", tmp_path, "--config", config)
    folder = tmp_path / "encoder"
    first = start("train_encoder.py", *options)
    try:
        wait_for_checkpoint(first, folder)
        for how in ([], ["-c", "last"]):
            code, error = ended(train_encoder.main, *options, *how, capsys=capsys)
            assert code == 2
            assert f"{folder}: another run is training in this folder (process {first.pid} on " in error
            assert "--out" in error
            assert error.count("\n") == 1
        assert not list(folder.glob("earlier*"))
        first.kill()  # it frees the folder at once, though its loader worker may still be there
        first.wait()
        done, _ = checkpoints.position(checkpoints.existing(folder)[-1])
        train_mae(paths["data"], tmp_path, config, "-c", "last", "--epochs", str(done + 1))
    finally:
        end(first)
        stderr_of(first)


def take(folder: Path) -> None:
    try:
        with RunLock(folder):
            pass
    except UsageError:
        sys.exit(2)


def test_a_lock_is_freed_at_the_end_and_other_folders_are_free(tmp_path):
    def another_process_gets(name: str) -> bool:
        process = FORK.Process(target=take, args=(tmp_path / name,))
        process.start()
        process.join()
        return process.exitcode == 0

    with RunLock(tmp_path / "a"):
        assert not another_process_gets("a")
        assert another_process_gets("b")
    assert another_process_gets("a")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_without_locks_is_used_all_the_same(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with RunLock(tmp_path / "encoder"):
        pass


def test_all_processes_hear_that_the_main_one_was_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    monkeypatch.setattr(distributed, "gathered", lambda mine: ["held by another", mine])
    with pytest.raises(UsageError, match="held by another"):
        RunLock(tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()  # only the main process writes


@pytest.mark.parametrize("writable", [False, True])
def test_a_folder_that_cannot_be_written_to_is_said_before_the_first_step(tmp_path, monkeypatch, writable):
    """It was taken for one on a file system without locks, and the run ended at its first save."""

    def refuse(*_):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "access", lambda *_: writable)
    if writable:  # the lock file alone is another user's
        with RunLock(tmp_path / "encoder"):
            return
    with pytest.raises(UsageError, match=r"encoder: cannot be written to, Permission denied: .* --out"):
        RunLock(tmp_path / "encoder")


@pytest.fixture
def resumed(make_tiny_coco, tmp_path):
    """A function that resumes a run of one epoch."""
    paths = make_tiny_coco(train=6, val=2, unlabeled=2)
    config = write_config(tmp_path, "mae_config.yaml", total_epochs=3)
    train_mae(paths["data"], tmp_path, config, "--epochs", "1")
    return lambda: train_mae(paths["data"], tmp_path, config, "-c", "last", "--epochs", "2")


def test_what_another_run_saved_while_this_one_began_is_not_set_aside(resumed, tmp_path, monkeypatch):
    """It ended with its last checkpoint written and the lock free."""
    folder, lock = tmp_path / "encoder", run.RunLock

    def late(place: Path) -> RunLock:
        shutil.move(place / "checkpoint1.pt", place / "checkpoint1-step1.pt")  # it removes the one before
        return lock(place)

    monkeypatch.setattr(run, "RunLock", late)
    with pytest.raises(UsageError, match="another run has just saved in this folder: start this one again"):
        resumed()
    assert [path.name for path in checkpoints.existing(folder)] == ["checkpoint1-step1.pt"]


def test_processes_that_read_different_checkpoints_end(resumed, monkeypatch):
    """On disks of their own, say: they went on from different steps, and their weights drifted apart."""
    plain = run.distributed.gathered

    def of_two(mine: object) -> list:
        is_checkpoint = isinstance(mine, tuple) and mine[0] is False
        return [mine, (False, "another")] if is_checkpoint else plain(mine)

    monkeypatch.setattr(run.distributed, "gathered", of_two)
    with pytest.raises(UsageError, match="not the same file for all processes of this run"):
        resumed()
