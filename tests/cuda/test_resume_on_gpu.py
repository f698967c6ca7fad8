"""A run on a GPU that is stopped within an epoch and goes on."""

import pytest
import torch

from support.interrupts import Interrupted
from tests.training_cases import STACK, assert_same, record_steps, stage_runner, state_of


@pytest.fixture
def run(make_tiny_coco, tmp_path):
    stack = STACK | {"dropout": 0.1}
    paths = make_tiny_coco(train=12, val=3, unlabeled=4)
    return stage_runner(
        paths["data"], tmp_path, encoder={"encoder": {**stack}, "decoder": {**stack}, "batch_size": 4},
        captioner={"decoder": {**stack}, "batch_size": 12, "patch_dropout": 0.5},
    )  # fmt: skip


@pytest.mark.parametrize(
    "precision", ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.gpu_only)]
)
@pytest.mark.parametrize("stage", ["encoder", "captioner"])
def test_a_stopped_run_goes_on_step_by_step_as_one_that_never_stopped(
    run, stage, precision, tmp_path, monkeypatch
):
    """The same losses within rounding, and the same number of steps: none is lost and none done twice."""
    whole, parts = losses_of(run, stage, precision, monkeypatch)
    assert len(parts) == len(whole)
    assert parts == pytest.approx(whole, rel=1e-4 if precision == "float32" else 5e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_with_deterministic_kernels_it_goes_on_to_the_bit(run, precision, tmp_path, monkeypatch):
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole, parts = losses_of(run, "encoder", precision, monkeypatch)
    finally:
        torch.use_deterministic_algorithms(False)
    assert parts == whole
    assert_same(state_of(tmp_path / "parts", "encoder"), state_of(tmp_path / "whole", "encoder"))


def losses_of(run, stage, precision, monkeypatch) -> tuple[list[float], list[float]]:
    """Of every step: of a run in one go, and of one stopped after six steps of eight."""
    common = {"precision": precision}
    with monkeypatch.context() as patch:
        whole = record_steps(patch)
        run(stage, "whole", "--epochs", "2", **common)
    with monkeypatch.context() as patch:
        parts = record_steps(patch, stop_after=6)
        with pytest.raises(Interrupted):
            run(stage, "parts", "--epochs", "2", **common)
    with monkeypatch.context() as patch:
        rest = record_steps(patch)
        run(stage, "parts", "-c", "last", "--epochs", "2", config=False)
    return whole, parts + rest
