"""A tiny data set and tiny configurations on which whole training runs take a second or two."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import train_captioner
import train_encoder
from support import command_line, interrupts
from training import checkpoints
from training.loop import Trainer
from training.progress import Queued, Report

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted({file.parent.name for file in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"})
STACK = {
    "num_layers": 2, "num_heads": 2, "hidden_size": 16, "key_size": 8, "value_size": 8,
    "feedforward_size": 32, "dropout": 0.0, "pre_norm": False,
}  # fmt: skip
ONE_LAYER = {**STACK, "num_layers": 1}
SMALL_RUN = {
    "batch_size": 6, "total_epochs": 4, "warmup_epochs": 1, "learning_rate": 1e-3, "num_workers": 0,
    "keep_checkpoints": 9, "precision": "float32", "compile": False,
}  # fmt: skip


def write_config(folder: Path, name: str, **changes) -> Path:
    """The faithful YAML of that name with small sizes and `changes`, as a file in `folder`."""
    values = yaml.safe_load((ROOT / name).read_text()) | copy.deepcopy(SMALL_RUN)
    if name.startswith("mae"):
        values |= {"image_size": 32, "patch_size": 8, "encoder": {**STACK}, "decoder": {**STACK}}
    else:
        values |= {
            "decoder": {**STACK, "dropout": 0.2},
            "context_length": 30,
            "num_beams": 2,
            "eval_freq": 99,
        }
    values |= changes
    path = folder / f"{len(list(folder.glob('*.yaml')))}_{name}"
    path.write_text(yaml.safe_dump(values))
    return path


def train_mae(data: Path, out: Path, config: Path, *more: str) -> None:
    """`python train_encoder.py`, in this process."""
    train_encoder.main(["--data", str(data), "--out", str(out), "--config", str(config), *more])


def train_captions(data: Path, out: Path, config: Path, *more: str) -> None:
    """`python train_captioner.py`, in this process."""
    train_captioner.main(["--data", str(data), "--out", str(out), "--config", str(config), *more])


def stage_runner(data: Path, folder: Path, **always: dict) -> Callable[..., None]:
    """A function that runs a stage's script, in this process; it pre-trains a first encoder on the spot.

    It is called as run(stage, out, *options, **changes): `changes` are those of the faithful YAML, with the
    stage's own in `always` below them, and `config=False` names no YAML.  A new captioner starts on the first
    encoder.
    """
    mae = write_config(folder, "mae_config.yaml", **always.get("encoder", {}))
    train_mae(data, folder / "first", mae, "--epochs", "1")
    encoder = folder / "first" / "encoder" / "checkpoint1.pt"

    def run(stage: str, out: str, *options: str, config: bool = True, **changes) -> None:
        arguments = ["--data", str(data), "--out", str(folder / out), *options]
        if config:
            name = {"encoder": "mae_config.yaml", "captioner": "captioner_config.yaml"}[stage]
            arguments += ["--config", str(write_config(folder, name, **always.get(stage, {}) | changes))]
        if stage == "captioner" and "-c" not in options:
            arguments += ["-p", str(encoder)]
        {"encoder": train_encoder, "captioner": train_captioner}[stage].main(arguments)

    return run


def ended(main: Callable, *arguments: object, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    """The exit code and stderr of a script called with these arguments, in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        command_line.run(lambda: main([str(argument) for argument in arguments]))
    return ending.value.code, capsys.readouterr().err


def state_of(out: Path, stage: str, name: str = "last") -> dict:
    """A checkpoint without what differs between two equal runs: seconds and samples per second."""
    _, state = checkpoints.load_named(out / stage, name, stage)
    state["progress"].pop("seconds")
    for entry in state["progress"]["history"]:
        entry.pop("seconds"), entry.pop("samples_per_second")
    return state


def assert_same(first, second, key="state"):
    """Equal to the last bit, whatever the nesting."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), key
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), key
        for name in first:
            assert_same(first[name], second[name], f"{key}.{name}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), key
        for number, (left, right) in enumerate(zip(first, second)):
            assert_same(left, right, f"{key}[{number}]")
    else:
        assert first == second, key


def record_steps(monkeypatch, stop_after: int | None = None) -> list[float]:
    """Records the loss of every step from here on; after `stop_after` of them the run stops as by SIGTERM."""
    losses: list[float] = []
    account = Trainer._account

    def recorded(trainer: Trainer, queued: Queued, report: Report) -> None:
        losses.append(report.loss)
        if len(losses) == stop_after:
            monkeypatch.setattr(interrupts, "_received", 15)
            report = report._replace(stop=1.0)
        account(trainer, queued, report)

    monkeypatch.setattr(Trainer, "_account", recorded)
    return losses
