"""Training runs that are killed and stopped at full length: 50 kills in a chain, every step, 30 signals."""

import os
import random
import shutil
import signal
import time

import pytest

from tests.process_cases import alive, end, start, stderr_of, stop, wait_for_checkpoint
from tests.training_cases import assert_same, state_of, train_captions, train_mae, write_config
from training import checkpoints
from training.config import in_mid_epoch
from training.loop import Trainer

pytestmark = pytest.mark.timeout(1500)
KILLS = 50
ALWAYS = {"checkpoint_minutes": 1e-6}  # a checkpoint after every step


def test_a_run_killed_50_times_ends_as_one_that_never_was(make_tiny_coco, tmp_path):
    """SIGKILL at random moments of a real process with a loader worker, each time gone on with `-c last`."""
    paths = make_tiny_coco(train=10, val=4, unlabeled=10)
    config = write_config(
        tmp_path, "mae_config.yaml", batch_size=4, accumulation_steps=2, num_workers=1, total_epochs=400,
        keep_checkpoints=2, **ALWAYS,
    )  # fmt: skip
    chance = random.Random(3)
    out, folder = tmp_path / "killed", tmp_path / "killed" / "encoder"
    options = ["train_encoder.py", "--data", paths["data"], "--out", out, "--config", config]
    before = (0, 0)
    for number in range(KILLS):
        run = start(*options, *(["-c", "last"] if number else []))
        newest = max(folder.glob("checkpoint*.pt"), key=checkpoints.position, default=None)
        wait_for_checkpoint(run, folder)
        deadline = time.monotonic() + 60
        while number and max(map(checkpoints.position, checkpoints.existing(folder))) <= before:
            assert run.poll() is None, stderr_of(run)
            assert time.monotonic() < deadline, f"kill {number}: it does not go on from {newest}"
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.4))
        run.kill()
        run.wait()
        end(run)
        stderr_of(run)
        path, _ = checkpoints.load_named(folder, "last", "encoder")
        assert checkpoints.position(path) > before, f"kill {number}: nothing was gained"
        before = checkpoints.position(path)
    last = before[0] + 2
    train_mae(paths["data"], out, config, "-c", "last", "--epochs", str(last))
    train_mae(paths["data"], tmp_path / "whole", config, "--epochs", str(last))
    assert_same(state_of(tmp_path / "whole", "encoder"), state_of(out, "encoder"))
    assert not list(folder.glob("*.tmp*"))
    print(f"{KILLS} of {KILLS} kills resumed, to epoch {last} and the same bits")


@pytest.mark.parametrize("stage", ["encoder", "captioner"])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_at_any_of_its_40_steps_is_the_same_run(
    make_tiny_coco, tmp_path, monkeypatch, stage, accumulation, workers
):
    paths = make_tiny_coco(train=10, val=2, unlabeled=2 if stage == "captioner" else 10)
    sizes = {"encoder": 2, "captioner": 5}[stage]  # 10 steps an epoch
    changes = {"batch_size": sizes, "accumulation_steps": accumulation, **ALWAYS}
    name = {"encoder": "mae_config.yaml", "captioner": "captioner_config.yaml"}[stage]
    config = write_config(tmp_path, name, **changes)
    other = write_config(tmp_path, name, num_workers=workers, **changes)
    train = {"encoder": train_mae, "captioner": train_captions}[stage]
    fresh = []
    if stage == "captioner":
        mae = write_config(tmp_path, "mae_config.yaml")
        train_mae(paths["data"], tmp_path / "first", mae, "--epochs", "1")
        fresh = ["-p", str(tmp_path / "first" / "encoder" / "checkpoint1.pt")]

    aside = tmp_path / "aside"
    aside.mkdir()
    save = Trainer.save

    def save_and_keep(trainer):
        save(trainer)
        progress = trainer.progress
        file = trainer.folder / checkpoints.name(progress.epoch, progress.step)
        shutil.copy(file, aside / file.name)

    with monkeypatch.context() as context:
        context.setattr(Trainer, "save", save_and_keep)
        train(paths["data"], tmp_path / "whole", config, *fresh, "--epochs", "4")
    whole = state_of(tmp_path / "whole", stage)
    points = sorted(checkpoints.existing(aside), key=checkpoints.position)
    within = [path for path in points if checkpoints.position(path)[1]]
    assert len(within) == 40
    monkeypatch.setattr(Trainer, "_save_if_due", lambda trainer: None)
    for number, point in enumerate(points[:-1]):
        out = tmp_path / f"resumed{number}"
        train(paths["data"], out, other, "-c", str(point), "--epochs", "4")
        resumed = state_of(out, stage)
        resumed["config"]["num_workers"] = whole["config"]["num_workers"]
        assert_same(whole, resumed, str(point.name))


SCRIPTS = {
    "the encoder's training": ("encoder", 1, {"batch_size": 1}),
    "training, validation and beam search": ("captioner", 1, {"batch_size": 60, "eval_batch_size": 2}),
    "two ranks": ("captioner", 2, {"batch_size": 30, "eval_batch_size": 2}),
}


@pytest.mark.parametrize("what", SCRIPTS)
def test_10_signals_at_random_moments_save_and_leave_nothing_behind(make_tiny_coco, tmp_path, what):
    stage, ranks, sizes = SCRIPTS[what]
    paths = make_tiny_coco(train=40, val=60, unlabeled=4)
    mae = write_config(tmp_path, "mae_config.yaml", total_epochs=999)
    changes = {"num_workers": 1, "total_epochs": 9999, "keep_checkpoints": 2, **sizes, **ALWAYS}
    fresh = []
    if stage == "captioner":
        train_mae(paths["data"], tmp_path / "first", mae, "--epochs", "1", "-s", "0.1")
        fresh = ["-p", tmp_path / "first" / "encoder" / "checkpoint1.pt"]
        config = write_config(tmp_path, "captioner_config.yaml", eval_freq=1, num_beams=6, **changes)
    else:
        config = write_config(tmp_path, "mae_config.yaml", **changes)
    chance, slowest = random.Random(what), 0.0
    for number in range(10):
        out = tmp_path / str(number)
        options = ["--data", paths["data"], "--out", out, "--config", config, *fresh]
        run = start(f"train_{stage}.py", *options, ranks=ranks)
        wait_for_checkpoint(run, out / stage)
        time.sleep(chance.uniform(0, 3))
        signum = chance.choice([signal.SIGTERM, signal.SIGINT])
        sent = time.time()
        code, seconds = stop(run, signum)
        message = stderr_of(run)
        newest, state = checkpoints.load_named(out / stage, "last", stage)
        # What comes between the last step of an epoch and the first of the next, in validation, beam search
        # or examples, finds all of it on the disk.
        between_steps = not in_mid_epoch(state)
        try:
            saved = newest.stat().st_mtime - sent
            assert saved <= 5, f"saved after {saved:.2f} s: {message}"
            assert between_steps or saved > -0.01, f"not saved: {message}"
            slowest = max(slowest, saved if ranks > 1 else seconds)  # torchrun itself takes its time
            assert slowest <= 5, message
            if ranks == 1:
                assert code == 128 + signum, message
            assert not alive(run), f"left behind: {alive(run)}"
        finally:
            end(run)
    print(f"{what}: 10 signals, 10 saved, the slowest after {slowest:.2f} s")


def test_a_signal_that_comes_twice_at_once_saves_and_ends_as_one_does(make_tiny_coco, tmp_path):
    paths = make_tiny_coco(train=40, val=4, unlabeled=4)
    config = write_config(
        tmp_path, "mae_config.yaml", batch_size=1, num_workers=1, total_epochs=999, **ALWAYS
    )
    for number, pause in enumerate((0.0, 0.001, 0.01)):
        out = tmp_path / str(number)
        options = ["--data", paths["data"], "--out", out, "--config", config]
        run = start("train_encoder.py", *options)
        wait_for_checkpoint(run, out / "encoder")
        code, _ = stop(run, signal.SIGTERM, again_after=pause)
        assert code == 128 + signal.SIGTERM, stderr_of(run)
        assert not alive(run)
        checkpoints.load_named(out / "encoder", "last", "encoder")


def test_where_one_rank_fails_all_end(make_tiny_coco, tmp_path):
    paths = make_tiny_coco(train=40, val=4, unlabeled=4)
    config = write_config(tmp_path, "mae_config.yaml", batch_size=4, total_epochs=9999, **ALWAYS)
    options = ["--data", paths["data"], "--out", tmp_path / "out", "--config", config]
    run = start("train_encoder.py", *options, ranks=2)
    wait_for_checkpoint(run, tmp_path / "out" / "encoder")
    time.sleep(0.5)
    ranks = [process for process in alive(run) if process != run.pid]
    started = time.monotonic()
    os.kill(max(ranks), signal.SIGKILL)
    assert run.wait(timeout=60) != 0
    message = stderr_of(run)
    print(f"after {time.monotonic() - started:.1f} s: {message[-400:]}")
    assert not alive(run)
    checkpoints.load_named(tmp_path / "out" / "encoder", "last", "encoder")
