"""`-c last --config NEW.yaml`: each key takes effect or is refused by name, and the schedule goes on."""

import dataclasses
import json
import math
import re

import pytest
import torch

import train_captioner
import train_encoder
from support import interrupts
from support.configuration import config_to_dict
from support.errors import RunError, UsageError
from tests.training_cases import ONE_LAYER, STACK, record_steps, stage_runner, state_of
from training.loop import Trainer
from training.step import Stepper

CONFIGS = {"encoder": train_encoder.MaeConfig, "captioner": train_captioner.CaptionerConfig}

# A new value for each key, and when a resume refuses it: "always", "within" an epoch, or never.
COMMON = {
    "seed": (5, "within"),
    "batch_size": (4, "within"),
    "accumulation_steps": (2, None),
    "total_epochs": (7, None),
    "warmup_epochs": (2.5, None),
    "learning_rate": (1e-2, None),
    "start_factor": (0.5, None),
    "min_learning_rate": (1e-4, None),
    "weight_decay": (0.3, None),
    "decay_matrices_only": (True, "always"),
    "beta2": (0.9, None),
    "muon": (True, "always"),
    "gradient_clip": (2.0, None),
    "precision": ("bfloat16", None),
    "compile": (True, None),
    "crop_scale": ([0.5, 0.9], None),
    "num_workers": (1, None),
    "cache_images": (True, None),
    "ema_decay": (0.9, None),
    "loading_timeout": (7.5, None),
    "keep_checkpoints": (3, None),
    "checkpoint_minutes": (2.0, None),
    "max_bad_steps": (7, None),
    "max_bad_fraction": (0.5, None),
}
KEYS = {
    "encoder": COMMON
    | {
        "image_size": (64, "always"),
        "patch_size": (16, "always"),
        "masking_ratio": (0.5, None),
        "encoder": (STACK, "always"),
        "decoder": ({**ONE_LAYER, "dropout": 0.1}, "always"),
        "normalize_targets": (True, None),
        "contrastive_weight": (0.5, "always"),
        "splits": (["train"], "within"),
        "crops_per_image": (2, "within"),
    },
    "captioner": COMMON
    | {
        "vocabulary_size": (4999, "always"),
        "context_length": (31, "always"),
        "decoder": (STACK, "always"),
        "tie_embeddings": (True, "always"),
        "captions_per_image": (2, "within"),
        "length_buckets": (True, "within"),
        "label_smoothing": (0.2, None),
        "unfreeze_start_epoch": (1, None),
        "layer_decay": (0.5, None),
        "drop_path": (0.3, None),
        "patch_dropout": (0.5, None),
        "num_beams": (3, None),
        "length_alpha": (0.1, None),
        "consensus_samples": (3, None),
        "eval_freq": (2, None),
        "eval_batch_size": (5, None),
        "self_critical_epochs": (2, None),
        "self_critical_learning_rate": (1e-4, None),
        "self_critical_samples": (3, None),
        "self_critical_ema_decay": (0.9, None),
    },
}


@pytest.fixture
def run(make_tiny_coco, tmp_path):
    """Runs a stage's script on 13 images; see `stage_runner`."""
    paths = make_tiny_coco(train=10, val=4, unlabeled=3)
    encoder = {"encoder": {**ONE_LAYER}, "decoder": {**ONE_LAYER}}
    return stage_runner(paths["data"], tmp_path, encoder=encoder, captioner={"decoder": {**ONE_LAYER}})


def as_options(changes: dict) -> list[str]:
    return [word for key, value in changes.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def stop_within_an_epoch(run, stage: str, out: str, steps: int = 1, **changes) -> None:
    with pytest.MonkeyPatch.context() as context:
        record_steps(context, stop_after=steps)
        with pytest.raises(interrupts.Interrupted):
            run(stage, out, **changes)


def settings_of(trainer: Trainer) -> dict:
    """All that decides how a run goes on, but weights, moments and where it stands."""
    sampler, loader, stepper = trainer.sampler, trainer.train_loader, trainer.stepper
    sampler.set_epoch(1)
    return {
        "config": config_to_dict(trainer.config),
        "saved": trainer.contents["config"],
        "groups": [
            {key: value for key, value in group.items() if key not in ("params", "lr")}
            for group in trainer.optimizer.param_groups
        ],
        "sizes": [[p.shape for p in group["params"]] for group in trainer.optimizer.param_groups],
        "rates": [stepper.scheduler(quarter / 4) for quarter in range(30)],
        "precision": stepper.precision,
        "batches": list(sampler),
        "loader": (
            len(loader.dataset),
            loader.num_workers,
            loader.longest_wait,
            vars(loader.dataset.transform),
        ),
    }


@pytest.mark.parametrize("stage", KEYS)
def test_each_key_of_a_new_configuration_takes_effect_or_is_refused_by_name(run, stage, monkeypatch):
    """A run that starts anew with the same file says what its effect should be.

    `optimizer.load_state_dict` brought the old learning rate, decay and betas back; the log had the new ones.
    """
    assert set(KEYS[stage]) == {field.name for field in dataclasses.fields(CONFIGS[stage])}
    run(stage, "ended", "--epochs", "1")
    stop_within_an_epoch(run, stage, "stopped")
    built = []
    monkeypatch.setattr(Trainer, "epochs", lambda trainer, until: built.append(settings_of(trainer)) or ())

    def settings(out: str, *options: str, **changes) -> dict:
        run(stage, out, *options, **changes)
        return built.pop()

    before = settings("ended", "-c", "last")
    for key, (value, refused) in KEYS[stage].items():
        if refused != "always":
            after = settings("ended", "-c", "last", **{key: value})
            assert after == settings("anew", **{key: value}), key
            assert after != before, key
        if refused:
            with pytest.raises(UsageError, match=rf"\.yaml: {key}[.:].* this says .*; \w+"):
                run(stage, "ended" if refused == "always" else "stopped", "-c", "last", **{key: value})
    free = {key: value for key, (value, refused) in KEYS[stage].items() if not refused}
    assert settings("stopped", "-c", "last", **free) == settings("anew", **free)


@pytest.mark.parametrize("stage", KEYS)
def test_single_values_obey_the_same_rules_as_a_configuration(run, stage, monkeypatch, tmp_path):
    """`-c last --set KEY=VALUE`, onto the checkpoint's configuration; with --config, onto the file's."""
    run(stage, "ended", "--epochs", "1", *as_options({"max_bad_steps": 4}))
    assert state_of(tmp_path / "ended", stage)["config"]["max_bad_steps"] == 4
    stop_within_an_epoch(run, stage, "stopped")
    built = []
    monkeypatch.setattr(Trainer, "epochs", lambda trainer, until: built.append(settings_of(trainer)) or ())
    free = {key: value for key, (value, refused) in KEYS[stage].items() if not refused}

    run(stage, "anew", max_bad_steps=4)
    run(stage, "ended", "-c", "last", config=False)
    assert built[-1] == built[-2], "the value of --set was not kept in the checkpoint"
    run(stage, "anew", **free)
    run(stage, "stopped", "-c", "last", *as_options(free), config=False)
    assert built[-1] == built[-2]
    run(stage, "stopped", "-c", "last", *as_options(free), max_bad_steps=4)
    assert built[-1] == built[-3]

    for key, (value, refused) in KEYS[stage].items():
        if refused:
            options = as_options({key: value})
            with pytest.raises(UsageError, match=rf"--set {key}(\.\w+)?: .* this says .*; \w+"):
                run(
                    stage, "ended" if refused == "always" else "stopped", "-c", "last", *options, config=False
                )
    with pytest.raises(UsageError, match=r"--set decoder\.num_heads: .* with 2, this says 1; keep it"):
        run(stage, "ended", "-c", "last", "--set", "decoder.num_heads=1")


@pytest.mark.parametrize("stage", KEYS)
def test_a_new_learning_rate_moves_the_weights_by_as_much_as_it_says(run, stage, tmp_path):
    run(stage, "out", "--epochs", "2")
    run(stage, "out", "-c", "last", "--epochs", "3", learning_rate=1e-7, min_learning_rate=0.0)
    before, after = (state_of(tmp_path / "out", stage, f"checkpoint{epoch}.pt") for epoch in (2, 3))
    moved = max((after["model"][name] - value).abs().max() for name, value in before["model"].items())
    assert 0 < moved < 1e-5
    assert after["progress"]["history"][2]["learning_rate"] < 1e-7
    kept = before["optimizer"]["state"][0]["step"], after["optimizer"]["state"][0]["step"]
    assert kept[0] < kept[1], "the moments were lost"


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
    assert "batch_size: the checkpoint is in the middle of an epoch with 3, this says 24" in str(
        refusal.value
    )
    way_on = re.search(r"with (--epochs \d+) and without --config", str(refusal.value))[1]
    run("encoder", "out", "-c", "last", *way_on.split(), config=False)
    run("encoder", "out", "-c", "last", "--epochs", "2", batch_size=24)
    assert state_of(tmp_path / "out", "encoder")["progress"]["updates"] == 5 + 1


def test_a_checkpoint_whose_optimizer_holds_its_rate_as_a_tensor_still_loads(run, tmp_path, monkeypatch):
    """As those did that were saved while the schedule's clock lay on the device."""
    run("encoder", "whole", "--epochs", "2")
    save = Trainer.save

    def save_as_before(trainer):
        for group in trainer.optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]))
        save(trainer)

    with monkeypatch.context() as context:
        context.setattr(Trainer, "save", save_as_before)
        run("encoder", "out", "--epochs", "1")
    run("encoder", "out", "-c", "last", "--epochs", "2")
    whole, parts = (state_of(tmp_path / out, "encoder") for out in ("whole", "out"))
    assert all(torch.equal(value, parts["model"][name]) for name, value in whole["model"].items())


def test_the_advice_after_bad_steps_works_as_it_is_given(run, tmp_path, monkeypatch):
    """It said "try a lower learning_rate, and go on with -c last", which does not read an edited file."""
    original = Stepper._mean_gradient

    def too_fast(stepper, factor):
        return original(stepper, factor) * (math.nan if stepper.config.learning_rate > 1e-4 else 1)

    monkeypatch.setattr(Stepper, "_mean_gradient", too_fast)
    with pytest.raises(RunError, match=r"2 steps in a row.* lower learning_rate") as failure:
        run("encoder", "out", "--epochs", "1", max_bad_steps=2)
    assert "without --config" in str(failure.value)
    options = re.search(r"go on with (-c last) --config FILE", str(failure.value))[1]
    run("encoder", "out", *options.split(), "--epochs", "1", max_bad_steps=2, learning_rate=1e-5)
    state = state_of(tmp_path / "out", "encoder")
    assert state["progress"]["history"][0]["skipped_steps"] == 2
    assert state["progress"]["updates"] == 1
    assert state["optimizer"]["param_groups"][0]["base_lr"] == 1e-5
