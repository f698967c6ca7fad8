"""Checkpoints: whole after every kill, honest about damage, harmless when hostile (in full: faults/)."""

import errno
import io
import os
import random
import resource
import signal
import threading
from pathlib import Path

import pytest
import torch

from support.errors import RunError, UsageError
from tests.checkpoint_cases import damage, disk_of, hostile, is_state, killed, sealed, state_of
from training import checkpoints

NAN = float("nan")


def save(folder: Path, epoch: int, step: int = 0, **options) -> Path:
    path = folder / checkpoints.name(epoch, step)
    checkpoints.save(path, state_of(epoch, step, **options))
    return path


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# --- the file ---


def test_a_checkpoint_comes_back_equal_and_can_be_saved_again(tmp_path):
    path = save(tmp_path, 1)
    state = checkpoints.load(path, "encoder")
    assert is_state(state, 1)
    assert state["config"] == state_of(1)["config"]
    assert list(state["optimizer"]["state"]) == [0]
    first = path.read_bytes()
    state["model"]["weight"] += 1  # mapped from the file, but privately
    assert path.read_bytes() == first
    state["model"]["weight"] -= 1
    checkpoints.save(path, state)
    assert path.stat().st_size == len(first)
    assert is_state(checkpoints.load(path), 1)


def test_plain_torch_load_reads_the_file_and_the_digest_is_as_described(tmp_path):
    path = save(tmp_path, 1)
    for mapped in (False, True):
        assert is_state(torch.load(path, weights_only=True, mmap=mapped), 1)
    bytes_of_archive = io.BytesIO()
    torch.save(state_of(1), bytes_of_archive)
    assert path.read_bytes() == sealed(bytes_of_archive.getvalue())  # an independent writer of the trailer


def test_shared_and_odd_tensors_survive(tmp_path):
    table = torch.randn(4, 3)
    tensors = [
        table,
        table.t(),
        table[1:],
        torch.zeros(0, 7),
        torch.tensor(1.5),
        torch.ones(2, dtype=torch.bool),
    ]
    path = tmp_path / "checkpoint1.pt"
    checkpoints.save(path, {**state_of(1), "tensors": tensors})
    loaded = checkpoints.load(path)["tensors"]
    assert all(torch.equal(one, other) for one, other in zip(tensors, loaded, strict=True))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("state['extra']", lambda: 0),
        ("state['extra'][1]", [1, Path("x")]),
        ("state['extra']['a']", {"a": random}),
        ("state['extra']", torch.Size([1])),  # a namesake of a tuple, and a function call in the file
        ("state['extra']", threading.Lock()),
        ("state['extra']", torch.zeros(1).expand(9)),
        ("key of type tuple", {(1, 2): 3}),
    ],
)
def test_a_value_that_could_not_be_loaded_is_refused_by_name_before_anything_is_written(tmp_path, key, value):
    """torch.save pickles such values without a word; days later, weights_only=True refuses the file."""
    path = save(tmp_path, 1)
    with pytest.raises(RunError, match="not saved") as caught:
        checkpoints.save(path, {**state_of(1), "extra": value})
    assert key in str(caught.value)
    assert names(tmp_path) == ["checkpoint1.pt"]
    assert is_state(checkpoints.load(path), 1)


def test_another_stage_another_schema_and_no_file_are_told_apart(tmp_path):
    path = save(tmp_path, 3)
    with pytest.raises(UsageError, match="checkpoint of the encoder, but one of the captioner is needed"):
        checkpoints.load(path, "captioner")
    with pytest.raises(
        UsageError, match=r"checkpoint4.pt: no such checkpoint; in .* there are checkpoint3.pt"
    ):
        checkpoints.load(tmp_path / "checkpoint4.pt")
    buffer = io.BytesIO()
    torch.save({**state_of(1), "schema": 7}, buffer)
    path.write_bytes(sealed(buffer.getvalue()))
    with pytest.raises(UsageError, match="schema 7, but this version reads 1"):
        checkpoints.load(path)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(UsageError, match="SHA-256 is missing"):
        checkpoints.load(path)


def test_an_unsafe_torch_is_refused():
    """CVE-2025-32434 and CVE-2026-24747: below the floor, weights_only=True executes what a file asks for."""
    for version in ("2.11.0", "2.15.0+cu132", "3.0.1", "2.12.0a0+git1"):
        checkpoints.require_torch(version)
    for version in ("1.13.1", "2.5.1", "2.10.0+cpu"):
        with pytest.raises(UsageError, match=r"install torch 2.11 or newer"):
            checkpoints.require_torch(version)


# --- kills, damage, full disks, hostile files ---


def test_sigkill_before_any_call_leaves_a_loadable_newest_or_previous(tmp_path):
    """A plain torch.save over `last.pt` leaves it cut short: every well-known trainer has had this."""
    history = [{"epoch": 1, "val_loss": 3.0}, {"epoch": 2, "val_loss": 2.0}]
    number, kills = 0, 0
    while True:
        folder = tmp_path / str(number := number + 1)
        for epoch in (1, 2):
            save(folder, epoch)

        def save_and_prune(folder=folder) -> None:
            checkpoints.prune(folder, save(folder, 3), 1, history)

        if not killed(save_and_prune, number):
            break
        kills += 1
        path, state = checkpoints.load_named(folder, "last")
        assert path.name in ("checkpoint2.pt", "checkpoint3.pt")
        assert is_state(state, checkpoints.position(path)[0])
        checkpoints.clean(folder)
        assert not list(folder.glob("*.tmp*"))
    assert kills >= 6  # at least one write, two fsyncs, a rename, an unlink of checkpoint 1
    assert names(folder) == ["checkpoint2.pt", "checkpoint3.pt"]


def test_data_is_on_disk_before_its_name_and_the_name_before_anything_is_deleted(tmp_path, monkeypatch):
    """A kill keeps the order of calls; a power cut does not, unless fsync stands between them."""
    save(tmp_path, 1)
    order = []
    for function in ("fsync", "replace", "unlink"):
        original = getattr(os, function)

        def recorded(*arguments, function=function, original=original, **options):
            what = os.readlink(f"/proc/self/fd/{arguments[0]}") if function == "fsync" else arguments[-1]
            order.append((function, Path(what).name.split("-")[0]))
            return original(*arguments, **options)

        monkeypatch.setattr(os, function, recorded)
    checkpoints.prune(tmp_path, save(tmp_path, 2), 1, [])
    assert order == [
        ("fsync", "checkpoint2.pt.tmp"),
        ("replace", "checkpoint2.pt"),
        ("fsync", tmp_path.name.split("-")[0]),
        ("unlink", "checkpoint1.pt"),
    ]


def test_damage_of_the_newest_is_seen_and_the_one_before_is_taken(tmp_path, capsys):
    """Zero-byte and cut "last" files loaded as garbage, or stopped the resume, with a sound one beside."""
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    sound = newest.read_bytes()
    draw = random.Random(0)
    for data in [b"", sound + b"\0", *(damage(sound, draw) for _ in range(40))]:
        newest.write_bytes(data)
        path, state = checkpoints.load_named(tmp_path, "last")
        assert path.name == "checkpoint1.pt"
        assert is_state(state, 1)
        with pytest.raises(checkpoints.DamagedCheckpointError):
            checkpoints.load_named(tmp_path, "checkpoint2.pt")  # named outright: no other will do
        warning = capsys.readouterr().err
        assert warning.startswith("warning: ")
        assert "checkpoint2.pt" in warning
        assert warning.count("\n") == 1


def raising(number: int):
    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("room", [0, 1000, 10_000, 100_000, 600_000])
def test_full_disk_leaves_the_old_checkpoint_and_one_line(tmp_path, monkeypatch, room):
    """torch wraps the disk's error in a RuntimeError of its own, "unexpected pos 832 vs 726"."""
    path = save(tmp_path, 1)
    old = path.read_bytes()
    monkeypatch.setattr(checkpoints, "open", disk_of(room), raising=False)
    with pytest.raises(RunError, match=r"checkpoint1.pt: not saved: No space left on device; .* are whole$"):
        save(tmp_path, 1, elements=100_000)
    monkeypatch.undo()
    assert names(tmp_path) == ["checkpoint1.pt"]
    assert path.read_bytes() == old


def test_a_full_device_of_the_kernel_is_one_line_too(tmp_path):
    (tmp_path / "checkpoint1.pt.tmp").symlink_to("/dev/full")
    with pytest.raises(RunError, match="not saved: No space left on device"):
        save(tmp_path, 1)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("function", "number"),
    [("fsync", errno.EIO), ("replace", errno.EROFS), ("replace", errno.EACCES), ("open", errno.EROFS)],
)
def test_read_only_folders_and_failing_disks_are_one_line(tmp_path, monkeypatch, function, number):
    """A swallowed PermissionError: no checkpoint and no error.  (root may write anywhere: calls refuse.)"""
    path = save(tmp_path, 1)
    old = path.read_bytes()
    target = checkpoints if function == "open" else os
    monkeypatch.setattr(target, function, raising(number), raising=False)
    with pytest.raises(RunError, match=f"not saved: {os.strerror(number)}"):
        save(tmp_path, 1, elements=5)
    monkeypatch.undo()
    assert names(tmp_path) == ["checkpoint1.pt"]
    assert path.read_bytes() == old


def test_a_file_system_that_cannot_sync_a_folder_still_gets_its_checkpoint(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert is_state(checkpoints.load(save(tmp_path, 1)), 1)


def test_the_oldest_torch_that_is_taken_is_tested():
    """`make test-oldest` installs it."""
    lines = (Path(__file__).parent.parent / "requirements-oldest.txt").read_text().splitlines()
    assert f"torch=={'.'.join(map(str, checkpoints.TORCH_FLOOR))}.0" in lines


def refusal(path: Path) -> str | None:
    try:
        checkpoints.load(path, "encoder")
    except UsageError as error:
        return str(error)
    return None


def test_hostile_files_with_a_right_digest_execute_nothing_and_take_no_memory(tmp_path, recwarn):
    marker = tmp_path / "executed"
    path = tmp_path / "checkpoint1.pt"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for what, archive in hostile(marker):
        path.write_bytes(sealed(archive))
        line = refusal(path)
        assert line, f"{what} was loaded"
        assert "\n" not in line, what
        assert len(line) < 400, what
        assert "weights_only=False" not in line, what  # no advice to switch the protection off
        assert what != "os.system" or "more than plain values and tensors" in line
        assert not marker.exists(), what
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
    )  # KiB; the cases build 100 MB
    assert not [warning for warning in recwarn if "checkpoints.py" in warning.filename]


def test_lists_that_share_their_items_are_checked_once_each(tmp_path):
    """2**60 lists in a few bytes, each loaded in a moment; a check that walks them all would never return."""
    laughs = ["ha", "ha"]
    for _ in range(60):
        laughs = [laughs, laughs]
    path = tmp_path / "checkpoint1.pt"
    checkpoints.save(path, {**state_of(1), "extra": laughs})
    assert len(checkpoints.load(path)["extra"]) == 2


# --- the folder ---


def test_names_are_put_in_the_order_of_training(tmp_path):
    for epoch, step in [(10, 0), (9, 0), (9, 200), (9, 30), (2, 0)]:
        save(tmp_path, epoch, step, elements=1)
    for stranger in (
        "checkpoint.pt",
        "checkpoint03.pt",
        "checkpoint3-step0.pt",
        "checkpoint4.pt.tmp",
        "best.pt",
    ):
        (tmp_path / stranger).touch()
    (tmp_path / "checkpoint99.pt").mkdir()
    found = [path.name for path in checkpoints.existing(tmp_path)]
    assert found == [
        "checkpoint2.pt",
        "checkpoint9.pt",
        "checkpoint9-step30.pt",
        "checkpoint9-step200.pt",
        "checkpoint10.pt",
    ]
    assert checkpoints.position(Path("a/checkpoint9-step30.pt")) == (9, 30)


def test_a_checkpoint_is_found_by_path_by_bare_name_and_as_last(tmp_path, monkeypatch):
    folder = tmp_path / "encoder"
    paths = [save(folder, epoch, elements=1) for epoch in (1, 2)]
    monkeypatch.chdir(tmp_path)

    def found(folder: Path, wanted: str) -> Path:
        return checkpoints.load_named(folder, wanted)[0]

    assert found(folder, "checkpoint1.pt") == paths[0]
    assert found(folder, "encoder/checkpoint1.pt").samefile(paths[0])
    assert found(folder, str(paths[0])) == paths[0]
    assert found(folder, "last") == paths[1]
    assert found(tmp_path / "elsewhere", f"{folder}/last") == paths[1]
    assert found(tmp_path / "elsewhere", "encoder/last").samefile(paths[1])
    with pytest.raises(UsageError, match=r"nowhere: no sound checkpoint for `last`"):
        found(folder, "nowhere/last")
    with pytest.raises(
        UsageError, match=r"checkpoint7.pt: no such .* there are checkpoint1.pt, checkpoint2.pt"
    ):
        found(folder, "checkpoint7.pt")
    with pytest.raises(UsageError, match=f"^{folder}/{'a' * 300}: no such checkpoint"):
        found(folder, "a" * 300)
    for name in ("nowhere/at/all.pt", f"{tmp_path}/elsewhere/checkpoint9.pt"):  # told as they were given
        told = f"^{name}: no such checkpoint; in {Path(name).parent} there is none"
        with pytest.raises(UsageError, match=told):
            found(folder, name)
    for name in ("", ".", str(folder)):
        with pytest.raises(UsageError, match=f"^{folder}: a folder: .*/last; in .* there are checkpoint1.pt"):
            found(folder, name)
    with pytest.raises(UsageError, match=r"no sound checkpoint for `last`; in .* there is none"):
        found(tmp_path / "empty", "last")


def test_a_sound_newest_of_another_stage_is_no_damage(tmp_path):
    """`last` passes over damage only: silently training on from an older file would hide the mistake."""
    save(tmp_path, 1, elements=1)
    checkpoints.save(tmp_path / "checkpoint2.pt", {**state_of(2), "stage": "captioner"})
    with pytest.raises(UsageError, match=r"checkpoint2.pt: a checkpoint of the captioner"):
        checkpoints.load_named(tmp_path, "last", "encoder")


def run_of(folder: Path, epochs: range, keep: int, history: list[dict]) -> list[str]:
    for epoch in epochs:
        checkpoints.prune(folder, save(folder, epoch, elements=1), keep, history[:epoch])
    return [path.name for path in checkpoints.existing(folder)]


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    history = [
        {"epoch": epoch, "bleu4": bleu} for epoch, bleu in enumerate((0.1, 0.3, None, NAN, 0.2, None), 1)
    ]
    left = run_of(tmp_path, range(1, 7), 2, history)
    assert left == ["checkpoint2.pt", "checkpoint5.pt", "checkpoint6.pt"]


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        ([(None, 3.0), (None, 2.0), (None, 2.5)], 2),
        ([(0.2, 2.0), (0.3, 3.0), (None, 1.0)], 2),  # BLEU-4 goes before the loss
        ([(0.3, 2.0), (0.3, 1.0), (0.1, 0.5)], 2),  # and the loss decides between equals
        ([(NAN, 1.0), (0.1, 9.0)], 2),
        ([(None, NAN), (None, 5.0), (None, float("inf"))], 2),
        (
            [(None, float("-inf")), (float("inf"), 5.0)],
            2,
        ),  # the loss is finite; a BLEU of infinity is no BLEU
        ([(NAN, NAN), (None, None)], None),
        ([], None),
    ],
)
def test_best_is_by_bleu_then_loss_and_never_nan(figures, best):
    """max() with a NaN in it returns whatever came first: a diverged epoch stayed "best" for ever."""
    history = [
        {"epoch": epoch, "bleu4": bleu, "val_loss": loss} for epoch, (bleu, loss) in enumerate(figures, 1)
    ]
    assert checkpoints.best_epoch(history) == best


def test_best_is_by_cider_where_it_is_known():
    history = [{"epoch": 1, "bleu4": 0.3}, {"epoch": 2, "bleu4": 0.1, "cider": 0.5}]
    assert checkpoints.best_epoch([*history, {"epoch": 3, "bleu4": 0.2, "cider": 0.4}]) == 2
    assert checkpoints.best_epoch([*history, {"epoch": 3, "bleu4": 0.2, "cider": 0.5}]) == 3


def test_a_stale_higher_number_does_not_make_pruning_delete_the_new_one(tmp_path):
    """A new run beside an old one's checkpoint90: "keep the newest two" deleted every file the run wrote."""
    save(tmp_path, 89, elements=1)
    save(tmp_path, 90, elements=1)
    assert run_of(tmp_path, range(1, 4), 2, [])[:2] == ["checkpoint2.pt", "checkpoint3.pt"]
    assert {"checkpoint89.pt", "checkpoint90.pt"} < set(names(tmp_path))


def test_pruning_never_deletes_everything(tmp_path):
    assert run_of(tmp_path, range(1, 3), 0, []) == ["checkpoint2.pt"]
    checkpoints.prune(tmp_path, tmp_path / "checkpoint3.pt", 1, [])  # a save that never was
    assert names(tmp_path) == ["checkpoint2.pt"]
    only = save(tmp_path / "b", 0, 5, elements=1)
    checkpoints.prune(tmp_path / "b", tmp_path / "b" / "checkpoint0-step9.pt", 1, [])
    assert only.exists()


def test_within_an_epoch_only_the_newest_step_is_kept_until_the_epoch_ends(tmp_path):
    run_of(tmp_path, range(1, 3), 2, [])
    for step in (5, 10):
        checkpoints.prune(tmp_path, save(tmp_path, 2, step, elements=1), 2, [])
    assert names(tmp_path) == ["checkpoint1.pt", "checkpoint2-step10.pt", "checkpoint2.pt"]
    assert run_of(tmp_path, range(3, 4), 2, []) == ["checkpoint2.pt", "checkpoint3.pt"]


def test_a_file_that_cannot_be_pruned_is_a_warning(tmp_path, monkeypatch, capsys):
    save(tmp_path, 1, elements=1)
    path = save(tmp_path, 2, elements=1)
    monkeypatch.setattr(os, "unlink", raising(errno.EACCES))
    checkpoints.prune(tmp_path, path, 1, [])
    assert "checkpoint1.pt: cannot be deleted: Permission denied" in capsys.readouterr().err


def test_a_new_run_sets_the_earlier_run_aside_and_removes_its_leavings(tmp_path, capsys):
    for epoch in (1, 2, 3):
        save(tmp_path, epoch, elements=1)
    (tmp_path / "checkpoint3.pt.tmp-77").touch()
    (tmp_path / "log.jsonl").touch()

    checkpoints.prepare(tmp_path, resumed=tmp_path / "checkpoint3.pt")
    assert names(tmp_path) == ["checkpoint1.pt", "checkpoint2.pt", "checkpoint3.pt", "log.jsonl"]
    assert capsys.readouterr().err == ""

    checkpoints.prepare(tmp_path, resumed=tmp_path / "checkpoint2.pt")
    assert names(tmp_path / "earlier1") == ["checkpoint3.pt"]
    assert "moved the checkpoints of an earlier run" in capsys.readouterr().err

    checkpoints.prepare(tmp_path)
    assert names(tmp_path) == ["earlier1", "earlier2", "log.jsonl"]
    assert names(tmp_path / "earlier2") == ["checkpoint1.pt", "checkpoint2.pt"]

    save(tmp_path, 1, elements=1)
    checkpoints.prepare(tmp_path, resumed=tmp_path / "earlier1" / "checkpoint3.pt")  # another folder's past
    assert names(tmp_path / "earlier3") == ["checkpoint1.pt"]


def test_an_interrupt_within_a_save_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(*arguments):
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs without it
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 1)
    assert names(tmp_path) == []
