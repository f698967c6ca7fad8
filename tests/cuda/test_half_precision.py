"""bfloat16 and float16 beside float32, in the training scripts and at the sizes of the YAML files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import sizes, training
from benchmarks.measuring import Setting
from paths import ROOT
from tests.training_cases import STACK, record_steps, stage_runner
from training.step import Stepper

MODERN = ROOT / "recipes" / "modern" / "mae_config.yaml"
LARGEST_FLOAT16 = 65_504


@pytest.fixture
def run(make_tiny_coco, tmp_path):
    stack = STACK | {"hidden_size": 64, "key_size": 32, "value_size": 32, "feedforward_size": 128}
    sizes = {"encoder": {**stack}, "decoder": {**stack}, "batch_size": 16}
    paths = make_tiny_coco(train=24, val=4, unlabeled=8)
    return stage_runner(
        paths["data"], tmp_path, encoder=sizes, captioner={"decoder": {**stack}, "batch_size": 40}
    )


@pytest.mark.parametrize("stage", ["encoder", "captioner"])
@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("float16", marks=pytest.mark.gpu_only)])
def test_a_run_in_half_precision_learns_as_in_float32(run, stage, precision, monkeypatch):
    """Step by step, the loss within 2 %."""
    losses = {}
    for name in ("float32", precision):
        with monkeypatch.context() as patch:
            losses[name] = record_steps(patch)
            run(stage, name, "--epochs", "4", precision=name, total_epochs=5)  # the last one is scored: nltk
    assert len(losses["float32"]) >= 8
    assert losses["float32"][-1] < losses["float32"][0]
    assert losses[precision] == pytest.approx(losses["float32"], rel=0.02)


def setting(device: torch.device, precision: torch.dtype) -> Setting:
    return Setting(device, precision, repeats=1, quick=device.type == "cpu")


@pytest.mark.gpu_only
@pytest.mark.parametrize("recipe", [None, MODERN], ids=["faithful", "modern"])
@pytest.mark.parametrize("stage", ["encoder", "captioner"])
def test_no_gradient_overflows_at_the_first_loss_scale_of_float16(
    device, stage, recipe, monkeypatch, record_property
):  # fmt: skip
    """At the YAML files' sizes, with a margin of four: then nothing is lost while the scale grows twice."""
    largest, taken = [], []
    unscale, update = torch.amp.GradScaler.unscale_, Stepper._update

    def look(scaler, optimizer):
        gradients = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        largest.append(max(gradient.abs().max().item() for gradient in gradients))
        return unscale(scaler, optimizer)

    monkeypatch.setattr(torch.amp.GradScaler, "unscale_", look)
    monkeypatch.setattr(Stepper, "_update", lambda s, t, rate: taken.append(bool(t)) or update(s, t, rate))
    step = full_step(setting(device, torch.float16), stage, recipe)
    for _ in range(3):
        step()
    record_property("largest scaled gradients", largest)
    assert taken == [True] * 3
    assert max(largest) < LARGEST_FLOAT16 / 4


@pytest.mark.parametrize("stage", ["encoder", "captioner"])
def test_a_step_of_the_usual_size_fits_a_card_of_15_gb(device, stage, record_property):
    """A T4's; it has float16 and no bfloat16.  Not compiled, which takes most."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved()
    step = full_step(setting(device, torch.float16 if device.type == "cuda" else torch.float32), stage)
    for _ in range(2):
        step()
    if device.type == "cuda":
        peak = torch.cuda.max_memory_reserved() - before
        record_property("GB", round(peak / 1e9, 2))
        assert peak < 14.5e9  # CUDA itself takes some of it


def full_step(setting: Setting, stage: str, recipe: Path | None = None):
    """A step of 64 images, or pairs, as the YAML file says, all layers learning, not compiled."""
    mae = sizes.mae_config(setting, recipe)
    count = 4 if setting.quick else 64
    if stage == "encoder":
        config = replace(mae, batch_size=count)
        return training.mae_step(
            setting, config, sizes.image_batch(setting, count), network=lambda model: model
        )
    config = sizes.captioner_config(setting, recipe and recipe.with_name("captioner_config.yaml"))
    batch = sizes.caption_batch(setting, count, config.captions_per_image, tokens=24)
    return training.captioner_step(setting, config, mae, batch, all_learn=True, network=lambda model: model)
