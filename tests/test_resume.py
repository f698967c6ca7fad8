"""`-c last --config NEW.yaml`: the schedule goes on where it stood."""

import math
import re

import pytest

import train_captioner
import train_encoder
from support import interrupts
from support.errors import UsageError
from support.step import Stepper
from tests.training_cases import STACK, record_steps, state_of, train_mae, write_config

ONE_LAYER = {**STACK, "num_layers": 1}


@pytest.fixture
def run(make_tiny_coco, tmp_path):
    """Runs a stage's script on 13 images: run(stage, out, *options, **changes to the YAML).

    Without `config` it names no YAML.
    """
    paths = make_tiny_coco(train=10, val=4, unlabeled=3)
    mae = write_config(tmp_path, "mae_config.yaml", encoder={**ONE_LAYER}, decoder={**ONE_LAYER})
    train_mae(paths["data"], tmp_path / "first", mae, "--epochs", "1")
    encoder = str(tmp_path / "first" / "encoder" / "checkpoint1.pt")

    def start(stage: str, out: str, *options: str, config: bool = True, **changes) -> None:
        name = {"encoder": "mae_config.yaml", "captioner": "captioner_config.yaml"}[stage]
        stacks = {"encoder": ["encoder", "decoder"], "captioner": ["decoder"]}[stage]
        changes = {stack: {**ONE_LAYER} for stack in stacks} | changes
        arguments = ["--data", str(paths["data"]), "--out", str(tmp_path / out), *options]
        if config:
            arguments += ["--config", str(write_config(tmp_path, name, **changes))]
        if stage == "captioner" and "-c" not in options:
            arguments += ["-p", encoder]
        {"encoder": train_encoder, "captioner": train_captioner}[stage].main(arguments)

    return start


def stop_within_an_epoch(run, stage: str, out: str, steps: int = 1, **changes) -> None:
    with pytest.MonkeyPatch.context() as context:
        record_steps(context, stop_after=steps)
        with pytest.raises(interrupts.Interrupted):
            run(stage, out, **changes)


@pytest.mark.parametrize(("first", "second"), [(3, 24), (24, 3)])
def test_the_schedule_goes_on_where_it_stood_with_another_batch_size(run, first, second, monkeypatch):
    """Its clock counted steps: batch 3 to 24 after 3 of 9 epochs gave a rate of 0 for the rest of the run."""
    used = []
    update = Stepper._update

    def recorded(stepper, *given):
        update(stepper, *given)
        (group,) = stepper.optimizer.param_groups
        used.append(float(group["lr"]) / group["base_lr"])

    monkeypatch.setattr(Stepper, "_update", recorded)
    settings = {"total_epochs": 9, "warmup_epochs": 1, "start_factor": 0.05, "min_learning_rate": 0.0}
    run("encoder", "out", "--epochs", "3", batch_size=first, **settings)
    run("encoder", "out", "-c", "last", batch_size=second, **settings)
    steps = {3: 5, 24: 1}  # of an epoch of 13 samples
    clock = [e + i / steps[first] for e in range(3) for i in range(steps[first])]
    clock += [e + i / steps[second] for e in range(3, 9) for i in range(steps[second])]
    expected = [0.05 + 0.95 * t if t < 1 else (1 + math.cos(math.pi * (t - 1) / 8)) / 2 for t in clock]
    assert used == pytest.approx(expected)


def test_another_batch_size_in_the_middle_of_an_epoch_is_refused_with_a_way_on(run, tmp_path):
    """A larger one took none of the samples that were left, and called the epoch complete."""
    stop_within_an_epoch(run, "encoder", "out", batch_size=3)
    with pytest.raises(UsageError) as refusal:
        run("encoder", "out", "-c", "last", batch_size=24)
    assert "batch_size: the checkpoint stands in the middle of an epoch with 3, this file says 24" in str(
        refusal.value
    )
    way_on = re.search(r"with (--epochs \d+) and without --config", str(refusal.value))[1]
    run("encoder", "out", "-c", "last", *way_on.split(), config=False)
    run("encoder", "out", "-c", "last", "--epochs", "2", batch_size=24)
    assert state_of(tmp_path / "out", "encoder")["progress"]["updates"] == 5 + 1
