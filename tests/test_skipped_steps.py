"""Steps that are not taken, because no image could be read, change nothing."""

import pytest
import torch

from support.step import Stepper
from tests.training_cases import ONE_LAYER, stage_runner, state_of


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
