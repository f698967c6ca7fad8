"""Checkpoints at full length: kills before every call, 500 damaged files, 10,000 hostile ones."""

import errno
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest

from support.errors import RunError, UsageError
from tests.checkpoint_cases import (
    archive_of,
    damage,
    disk_of,
    entries_of,
    in_child,
    is_state,
    killed,
    saved,
    sealed,
    state_of,
)
from training import checkpoints

pytestmark = pytest.mark.timeout(600)
HISTORY = [{"epoch": epoch, "bleu4": bleu} for epoch, bleu in enumerate((0.1, 0.3, 0.2, 0.2, 0.2, 0.1), 1)]


def save(folder: Path, epoch: int, step: int = 0, elements: int = 3000) -> Path:
    path = folder / checkpoints.name(epoch, step)
    checkpoints.save(path, state_of(epoch, step, elements))
    return path


# What lies there, what is saved, how many ends of epochs are kept, and what is there in the end.
SCENARIOS = {
    "the first of all": ([], (1, 0), 2, ["1"]),
    "an epoch, one pruned": ([(2, 0), (3, 0), (4, 0)], (5, 0), 2, ["2", "4", "5"]),
    "an epoch, many pruned": ([(epoch, 0) for epoch in (1, 2, 3, 4, 5)], (6, 0), 1, ["2", "6"]),
    "within an epoch": ([(2, 0), (2, 10)], (2, 20), 2, ["2-step20", "2"]),
    "the end of an epoch": ([(1, 0), (2, 0), (2, 10), (2, 20)], (3, 0), 2, ["2", "3"]),
    "over the only one": ([(1, 0)], (1, 0), 2, ["1"]),
    "below a stale number": ([(1, 0), (90, 0)], (2, 0), 1, ["2", "90"]),
}


@pytest.mark.parametrize("elements", [0, 3000, 200_000])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_sigkill_before_every_write_fsync_rename_and_unlink(tmp_path, scenario, elements):
    """100 %: the newest or the one before loads, and a restart leaves nothing behind."""
    before, after, keep, left = SCENARIOS[scenario]

    def save_and_prune() -> None:
        checkpoints.prune(folder, save(folder, *after, elements), keep, HISTORY[: after[0]])

    number, going_on = 0, True
    while going_on:
        number += 1
        folder = tmp_path / str(number)
        for position in before:
            save(folder, *position, elements)
        going_on = killed(save_and_prune, number)

        sound = {max(before, default=None), max([*before, after])}
        found = [checkpoints.position(path) for path in checkpoints.existing(folder)]
        for position in found:  # not only the newest: no name ever stands for less than a whole file
            assert is_state(checkpoints.load(folder / checkpoints.name(*position)), *position)
        assert max(found, default=None) in sound
        checkpoints.clean(folder)
        assert not list(folder.glob("*.tmp*"))
        save_and_prune()  # the restarted run comes to the same point, and ends up the same
        assert {path.name for path in folder.iterdir()} == {f"checkpoint{name}.pt" for name in left}
    assert number > 4


def test_500_damaged_variants_of_the_newest_are_detected_and_the_one_before_is_taken(tmp_path, capsys):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    sound = newest.read_bytes()
    draw = random.Random(1)
    detected = 0
    for _ in range(500):
        newest.write_bytes(damage(sound, draw))
        path, state = checkpoints.load_named(tmp_path, "last")
        detected += path.name == "checkpoint1.pt" and is_state(state, 1)
    assert detected == 500
    assert capsys.readouterr().err.count("warning: ") == 500
    newest.write_bytes(sound)
    assert is_state(checkpoints.load_named(tmp_path, "last")[1], 2)


def test_every_single_byte_counts(tmp_path):
    """No byte of the file can change unseen, not even one that ZIP ignores."""
    path = save(tmp_path, 1, elements=1)
    sound = bytearray(path.read_bytes())
    for place in range(len(sound)):
        sound[place] ^= 0x20
        path.write_bytes(sound)
        sound[place] ^= 0x20
        with pytest.raises(checkpoints.DamagedCheckpointError):
            checkpoints.load(path)


def test_a_disk_that_fills_up_at_any_byte(tmp_path, monkeypatch):
    path = save(tmp_path, 1)
    old = path.read_bytes()
    for room in range(0, len(old), 97):
        monkeypatch.setattr(checkpoints, "open", disk_of(room), raising=False)
        with pytest.raises(
            RunError, match="not saved: No space left on device; the checkpoints before it are whole"
        ):
            save(tmp_path, 1)
        monkeypatch.undo()
        assert os.listdir(tmp_path) == ["checkpoint1.pt"]
        assert path.read_bytes() == old


def test_the_kernels_own_refusal_of_a_large_file(tmp_path):
    """RLIMIT_FSIZE makes the kernel itself fail the write in the middle of the file."""
    path = save(tmp_path, 1)
    old = path.read_bytes()

    def save_too_much() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        with pytest.raises(RunError, match=f"not saved: {os.strerror(errno.EFBIG)}"):
            save(tmp_path, 1, elements=100_000)

    assert in_child(save_too_much) == 0
    assert os.listdir(tmp_path) == ["checkpoint1.pt"]
    assert path.read_bytes() == old


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_a_folder_of_somebody_else(tmp_path):
    folder = tmp_path / "checkpoints"
    path = save(folder, 1)
    for place in (tmp_path, *tmp_path.parents):
        place.chmod(place.stat().st_mode | 0o055)
    folder.chmod(0o555)

    def save_as_nobody() -> None:
        os.setuid(65534)
        with pytest.raises(RunError, match=r"checkpoint2.pt: not saved: Permission denied"):
            save(folder, 2)
        assert is_state(checkpoints.load(path), 1)

    assert in_child(save_as_nobody) == 0
    assert os.listdir(folder) == ["checkpoint1.pt"]


def test_10_000_hostile_files_with_a_right_digest(tmp_path):
    """Each is loaded or refused in one line and in less than 2 s; none crashes, executes or fills memory.

    The digest is right and the pickle is mutated, so that the unpickler itself is what is tried: what a
    mutation of the whole file never reaches.
    """

    def load_all() -> None:
        draw = random.Random(2)
        path = tmp_path / "checkpoint1.pt"
        entries = entries_of(saved(state_of(1, elements=20)))
        pickle_name = next(name for name in entries if name.endswith("data.pkl"))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        refused, lines, slowest = 0, 0, 0.0
        for _ in range(10_000):
            mutated = entries[pickle_name]
            for _ in range(draw.choice((1, 1, 2, 8))):
                mutated = damage(mutated, draw) or b"."
            path.write_bytes(sealed(archive_of({**entries, pickle_name: mutated})))
            start = time.perf_counter()
            try:
                checkpoints.load(path, "encoder")
            except UsageError as error:
                refused += 1
                lines += str(error).count("\n") + 1
            slowest = max(slowest, time.perf_counter() - start)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(f"{refused} of 10,000 refused, slowest {slowest:.2f} s, memory grew by {grown // 1024} MiB")
        assert slowest < 2
        assert grown < 500_000  # KiB
        assert lines == refused > 5000

    assert in_child(load_all) == 0
    assert os.listdir(tmp_path) == ["checkpoint1.pt"]
