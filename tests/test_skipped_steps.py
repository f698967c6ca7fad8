"""Steps that are not taken, because no image could be read or float16 overflowed, change nothing."""

import math

import pytest
import torch

import training.step
from support.errors import RunError
from tests.training_cases import ONE_LAYER, stage_runner, state_of
from training.step import Stepper

PATCHES = {"image_size": 64, "patch_size": 4}  # 192 of 256 patches are masked: a sum as large as a real one


@pytest.fixture
def paths(make_tiny_coco):
    return make_tiny_coco(train=10, val=2, unlabeled=3)


@pytest.fixture
def run(paths, tmp_path):
    """Runs a stage's script on 13 images; see `stage_runner`."""
    encoder = {"encoder": {**ONE_LAYER}, "decoder": {**ONE_LAYER}}
    return stage_runner(paths["data"], tmp_path, encoder=encoder, captioner={"decoder": {**ONE_LAYER}})


def record_states(monkeypatch) -> list[tuple[bool, list[torch.Tensor]]]:
    """Of every step from here on: whether it was taken, and the weights and moments after it."""
    recorded = []
    update = Stepper._update

    def record(stepper, taken, rate):
        update(stepper, taken, rate)
        parameters = [p for group in stepper.optimizer.param_groups for p in group["params"]]
        moments = [m for p in parameters for m in stepper.optimizer.state[p].values()]
        recorded.append((bool(taken), [value.detach().clone() for value in (*parameters, *moments)]))

    monkeypatch.setattr(Stepper, "_update", record)
    return recorded


@pytest.mark.parametrize("stage", ["encoder", "captioner"])
def test_a_step_without_a_readable_image_moves_nothing(run, paths, stage, tmp_path, monkeypatch, capsys):
    """Momentum and decay moved the weights by 5.4e-4.  Nor does it count against max_bad_steps."""
    unreadable = sorted(paths["train_images"].iterdir())[:6]
    for image in unreadable:
        image.write_bytes(b"<html>")
    recorded = record_states(monkeypatch)
    run(stage, "out", "--epochs", "1", max_bad_fraction=0.7, batch_size=1, max_bad_steps=1, weight_decay=0.3)
    before = None
    for taken, after in recorded:
        if not taken:
            assert before is None or all(torch.equal(old, new) for old, new in zip(before, after))
        before = after
    skipped = len(unreadable) * {"encoder": 1, "captioner": 5}[stage]
    assert [taken for taken, _ in recorded].count(False) == skipped
    progress = state_of(tmp_path / "out", stage)["progress"]
    assert progress["history"][0]["skipped_steps"] == progress["history"][0]["unreadable_samples"] == skipped
    assert progress["updates"] == len(recorded) - skipped
    assert progress["bad_steps"] == 0
    assert capsys.readouterr().err.count("skipped: none of its images can be read") == skipped


@pytest.fixture
def float16(monkeypatch):
    """Lets the scripts train in float16 on a CPU, where torch can and the project does not."""
    monkeypatch.setattr(training.step, "choose_precision", lambda name, device: torch.float16)


@pytest.mark.parametrize("stage", ["encoder", "captioner"])
def test_float16_skips_no_step_at_the_start(run, float16, stage, tmp_path, capsys):
    """The gradients of a loss sum overflowed at torch's own first loss scale."""
    run(stage, "out", "--epochs", "2", **(PATCHES if stage == "encoder" else {}))
    history = state_of(tmp_path / "out", stage)["progress"]["history"]
    assert [entry["skipped_steps"] for entry in history] == [0, 0]
    assert history[1]["train_loss"] < history[0]["train_loss"]


def test_an_overflow_is_no_bad_step_while_a_smaller_loss_scale_can_mend_it(
    run, float16, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(training.step, "INITIAL_LOSS_SCALE", 2.0**30)
    run("encoder", "out", "--epochs", "4", batch_size=1, max_bad_steps=1)
    state = state_of(tmp_path / "out", "encoder")
    assert state["progress"]["history"][0]["skipped_steps"] >= 8
    assert state["progress"]["history"][-1]["skipped_steps"] == 0
    assert state["scaler"]["scale"] < 2.0**22
    message = capsys.readouterr().err
    assert "step 1: skipped: its gradient is too large for float16 at a loss scale of 1.07374e+09" in message


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_float16_ends_where_no_loss_scale_would_help(run, float16, bad, tmp_path, monkeypatch):
    """A loss that is not finite counts at once; a gradient when the scale cannot fall any further."""
    backward, gradient = Stepper._backward, Stepper._mean_gradient

    def nan_loss(stepper, *given):
        sums = backward(stepper, *given)
        sums[0] = math.nan
        return sums

    if bad == "loss":
        monkeypatch.setattr(Stepper, "_backward", nan_loss)
    else:

        def infinite(stepper, factor):
            for parameter in (p for group in stepper.optimizer.param_groups for p in group["params"]):
                parameter.grad.fill_(math.inf)
            return gradient(stepper, factor)

        monkeypatch.setattr(Stepper, "_mean_gradient", infinite)
    with pytest.raises(RunError, match="3 steps in a row"):
        run("encoder", "out", "--epochs", "4", max_bad_steps=3, batch_size=1)
    progress = state_of(tmp_path / "out", "encoder")["progress"]
    assert progress["updates"] == 0
    assert progress["skipped"] == {"loss": 3, "gradient": 8 + 3}[bad]  # 2^8 can be halved eight times
