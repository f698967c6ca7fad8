"""A trained epoch is on the disk before its validation: whatever fails there, a resume goes on from it."""

import pytest
import torch

import train_captioner
import train_encoder
from support import checkpoints, interrupts
from support.errors import RunError
from support.training import Trainer
from tests.training_cases import STACK, assert_same, record_steps, state_of, train_mae, write_config

ONE_LAYER = {**STACK, "num_layers": 1}
STEPS = {"encoder": 3, "captioner": 9}  # of an epoch
FAILURES = [
    ("encoder", Trainer, "validate", KeyError("val_loss")),
    ("encoder", train_encoder, "first_reconstructions", torch.OutOfMemoryError("CUDA out of memory")),
    ("captioner", Trainer, "validate", torch.OutOfMemoryError("CUDA out of memory")),
    ("captioner", train_captioner, "caption_split", FloatingPointError("a beam's score is not finite")),
    ("captioner", train_captioner, "scored", RuntimeError("a metric's bug")),
    ("captioner", train_captioner, "first_captions", KeyError("caption")),
]


class SilentBoard:
    """A TensorBoard that writes nothing."""

    def __getattr__(self, name: str):
        return lambda *given: None


@pytest.fixture
def run(make_tiny_coco, tmp_path, monkeypatch):
    """Runs two epochs of a stage's script: run(stage, out, *options, **changes to the YAML)."""
    for script in (train_encoder, train_captioner):
        monkeypatch.setattr(script, "open_board", lambda *given: SilentBoard())
    paths = make_tiny_coco(train=10, val=2, unlabeled=3)
    mae = write_config(tmp_path, "mae_config.yaml", encoder={**ONE_LAYER}, decoder={**ONE_LAYER})
    train_mae(paths["data"], tmp_path / "first", mae, "--epochs", "1")
    encoder = str(tmp_path / "first" / "encoder" / "checkpoint1.pt")

    def start(stage: str, out: str, *options: str, **changes) -> None:
        if stage == "encoder":
            changes = {"encoder": {**ONE_LAYER}, "decoder": {**ONE_LAYER}} | changes
        else:
            changes = {"decoder": {**ONE_LAYER, "dropout": 0.2}, "eval_freq": 1} | changes
        name = {"encoder": "mae_config.yaml", "captioner": "captioner_config.yaml"}[stage]
        arguments = ["--data", str(paths["data"]), "--out", str(tmp_path / out), "--tensorboard", *options]
        arguments += ["--config", str(write_config(tmp_path, name, **changes))]
        if stage == "captioner" and "-c" not in options:
            arguments += ["-p", encoder]
        {"encoder": train_encoder, "captioner": train_captioner}[stage].main(arguments)

    return start


def failing(error: BaseException):
    def fail(*_, **__):
        raise error

    return fail


def names(folder) -> list[str]:
    return [path.name for path in checkpoints.existing(folder)]


@pytest.mark.parametrize(
    ("stage", "owner", "function", "error"), FAILURES, ids=[f"{case[0]}-{case[2]}" for case in FAILURES]
)
def test_what_fails_after_an_epoch_costs_no_training(
    run, tmp_path, monkeypatch, stage, owner, function, error
):
    """Only a foreseen error saved; any other lost up to a whole epoch, and again on every retry."""
    batch = {"batch_size": 6}
    run(stage, "whole", "--epochs", "2", **batch)
    losses = record_steps(monkeypatch)
    options: list[str] = []
    for _ in range(2):
        with monkeypatch.context() as context:
            context.setattr(owner, function, failing(error))
            with pytest.raises(type(error)):
                run(stage, "parts", "--epochs", "2", *options, **batch)
        options = ["-c", "last"]
    run(stage, "parts", "--epochs", "2", *options, **batch)
    assert len(losses) == 2 * STEPS[stage], "steps were trained twice"
    assert_same(state_of(tmp_path / "whole", stage), state_of(tmp_path / "parts", stage))
    assert names(tmp_path / "parts" / stage) == ["checkpoint1.pt", "checkpoint2.pt"]


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
    """It is what one changes when the GPU could not hold the validation's batches."""
    with monkeypatch.context() as context:
        context.setattr(Trainer, "validate", failing(torch.OutOfMemoryError("CUDA out of memory")))
        with pytest.raises(torch.OutOfMemoryError):
            run("encoder", "out", "--epochs", "1", batch_size=first)
    losses = record_steps(monkeypatch)
    run("encoder", "out", "-c", "last", "--epochs", "1", batch_size=second)
    assert not losses
    run("encoder", "out", "-c", "last", "--epochs", "2", batch_size=second)
    assert len(losses) == steps
    assert names(tmp_path / "out" / "encoder") == ["checkpoint1.pt", "checkpoint2.pt"]
