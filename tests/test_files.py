"""Files on disks that are full, fail, or know no syncing."""

import errno
import os
from pathlib import Path

import pytest

from support import files
from support.errors import RunError
from training import checkpoints


def refuse(monkeypatch, number: int, folders_only: bool = False) -> None:
    """From here on the disk answers so when it is told to sync."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if not folders_only or os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def save_checkpoint(path: Path) -> None:
    checkpoints.save(path, {"schema": checkpoints.SCHEMA, "stage": "encoder"})


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOTTY])
@pytest.mark.parametrize("folders_only", [True, False])
@pytest.mark.parametrize("write", [lambda path: files.write_json(path, [1]), save_checkpoint])
def test_a_file_system_without_syncing_is_written_to(tmp_path, monkeypatch, number, folders_only, write):
    """On CIFS and some FUSE file systems every script ended with "failed: a file: Invalid argument"."""
    refuse(monkeypatch, number, folders_only)
    write(tmp_path / "checkpoint1.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint1.pt"]


@pytest.mark.parametrize("folders_only", [True, False])
def test_a_disk_that_fails_to_sync_is_named(tmp_path, monkeypatch, folders_only):
    refuse(monkeypatch, errno.EIO, folders_only)
    name = tmp_path if folders_only else tmp_path / "record.json.tmp"
    with pytest.raises(RunError, match=f"^{name}: Input/output error$"), files.disk_errors():
        files.write_json(tmp_path / "record.json", [1])


def test_a_disk_that_is_full_is_named_and_the_old_file_stays(tmp_path):
    """Python names the file that cannot be opened, but not the one that cannot be written to."""
    path = tmp_path / "record.json"
    files.write_json(path, [1])
    path.with_name("record.json.tmp").symlink_to("/dev/full")
    with pytest.raises(RunError, match=f"^{path}.tmp: No space left on device$"), files.disk_errors():
        files.write_json(path, [2])
    assert files.read_json(path, []) == [1]


def test_an_error_that_names_its_file_keeps_the_name(tmp_path):
    path = tmp_path / "picture"
    with pytest.raises(RunError, match=f"^{path}: No such file"), files.disk_errors(), files.naming(tmp_path):
        path.read_bytes()
