"""A trained epoch is on the disk before its validation: whatever fails there, a resume goes on from it."""

import pytest
import torch

import train_captioner
import train_encoder
import training.run
from support import interrupts
from support.errors import RunError
from tests.training_cases import ONE_LAYER, assert_same, record_steps, stage_runner, state_of
from training import checkpoints
from training.loop import Trainer

STEPS = {"encoder": 3, "captioner": 9}  # of an epoch
FAILURES = {
    "encoder": [
        (Trainer, "validate", KeyError("val_loss")),
        (train_encoder, "first_reconstructions", torch.OutOfMemoryError("CUDA out of memory")),
    ],
    "captioner": [
        (Trainer, "validate", torch.OutOfMemoryError("CUDA out of memory")),
        (train_captioner, "caption_split", FloatingPointError("a beam's score is not finite")),
        (train_captioner, "score_captions", RuntimeError("a metric's bug")),
        (train_captioner, "first_captions", KeyError("caption")),
    ],
}


class SilentBoard:
    """A TensorBoard that writes nothing."""

    def __getattr__(self, name: str):
        return lambda *given: None


@pytest.fixture
def run(make_tiny_coco, tmp_path, monkeypatch):
    """Runs a stage's script on 13 images, with a board; see `stage_runner`."""
    monkeypatch.setattr(training.run, "open_board", lambda *given: SilentBoard())
    paths = make_tiny_coco(train=10, val=2, unlabeled=3)
    return stage_runner(
        paths["data"],
        tmp_path,
        encoder={"encoder": {**ONE_LAYER}, "decoder": {**ONE_LAYER}},
        captioner={"decoder": {**ONE_LAYER, "dropout": 0.2}, "eval_freq": 1},
    )


def failing(error: BaseException):
    def fail(*_, **__):
        raise error

    return fail


def names(folder) -> list[str]:
    return [path.name for path in checkpoints.existing(folder)]


@pytest.mark.parametrize("stage", FAILURES)
def test_what_fails_after_an_epoch_costs_no_training(run, tmp_path, monkeypatch, stage):
    """Only a foreseen error saved; any other lost up to a whole epoch, and again on every retry."""
    epochs = ["--epochs", "2", "--tensorboard"]
    run(stage, "whole", *epochs)
    whole = state_of(tmp_path / "whole", stage)
    losses = record_steps(monkeypatch)
    for owner, function, error in FAILURES[stage]:
        losses.clear()
        options: list[str] = []
        for _ in range(2):
            with monkeypatch.context() as context:
                context.setattr(owner, function, failing(error))
                with pytest.raises(type(error)):
                    run(stage, function, *epochs, *options)
            options = ["-c", "last"]
        run(stage, function, *epochs, *options)
        assert len(losses) == 2 * STEPS[stage], f"{function}: steps were trained twice"
        assert_same(whole, state_of(tmp_path / function, stage))
        assert names(tmp_path / function / stage) == ["checkpoint1.pt", "checkpoint2.pt"]


def test_a_signal_while_the_trained_epoch_is_saved_ends_the_run_there(run, tmp_path, monkeypatch):
    save = checkpoints.save

    def save_and_stop(path, state):
        save(path, state)
        monkeypatch.setattr(interrupts, "_received", 15)

    run("encoder", "whole", "--epochs", "1")
    with monkeypatch.context() as context:
        context.setattr(checkpoints, "save", save_and_stop)
        with pytest.raises(interrupts.Interrupted):
            run("encoder", "parts", "--epochs", "1")
    monkeypatch.setattr(interrupts, "_received", None)
    assert names(tmp_path / "parts" / "encoder") == ["checkpoint0-step3.pt"]
    run("encoder", "parts", "-c", "last", "--epochs", "1")
    assert_same(state_of(tmp_path / "whole", "encoder"), state_of(tmp_path / "parts", "encoder"))


def test_no_moment_is_written_twice(run, tmp_path, monkeypatch):
    """Neither by what ends the run, nor by a retry, unless that has another configuration to keep."""
    written = []
    save = checkpoints.save
    monkeypatch.setattr(
        checkpoints, "save", lambda path, state: (written.append(path.name), save(path, state))
    )
    often = {"checkpoint_minutes": 1e-6}
    with monkeypatch.context() as context:
        context.setattr(Trainer, "validate", failing(RunError("an image cannot be read")))
        for options in ([], ["-c", "last"]):
            with pytest.raises(RunError):
                run("encoder", "out", "--epochs", "1", *options, **often)
        assert written == ["checkpoint0-step1.pt", "checkpoint0-step2.pt", "checkpoint0-step3.pt"]
        with pytest.raises(RunError):
            run("encoder", "out", "--epochs", "1", "-c", "last", **often, learning_rate=1e-4)
        assert written[3:] == ["checkpoint0-step3.pt"]
    run("encoder", "out", "--epochs", "1", "-c", "last", **often, learning_rate=1e-4)
    assert written[4:] == ["checkpoint1.pt"]


@pytest.mark.parametrize(("first", "second", "steps"), [(6, 2, 7), (2, 50, 1)])
def test_a_trained_epoch_stays_trained_with_another_batch_size(
    run, tmp_path, monkeypatch, first, second, steps
):
    """It is what one changes when the GPU could not hold the validation's batches; also where that fails."""
    with monkeypatch.context() as context:
        context.setattr(Trainer, "validate", failing(torch.OutOfMemoryError("CUDA out of memory")))
        for options in ([], ["-c", "last"]):
            with pytest.raises(torch.OutOfMemoryError):
                run("encoder", "out", "--epochs", "1", *options, batch_size=second if options else first)
    losses = record_steps(monkeypatch)
    run("encoder", "out", "-c", "last", "--epochs", "1", config=False)
    assert not losses
    run("encoder", "out", "-c", "last", "--epochs", "2", config=False)
    assert len(losses) == steps
    assert names(tmp_path / "out" / "encoder") == ["checkpoint1.pt", "checkpoint2.pt"]
