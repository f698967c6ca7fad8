"""Whole training runs on tiny data: exact resume, what is stepped on, and what the figures mean."""

import json
import math
import multiprocessing
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch

import train_encoder
from captioner import captioner_from_state
from coco.data import CocoData
from coco_loader import LoaderOptions, get_coco_loader
from image_captioner import ImageAutoEncoder
from image_transforms import TrainingTransform
from support import interrupts, memory
from support.configuration import config_from_dict
from support.errors import RunError, UsageError
from tests.training_cases import (
    STACK,
    assert_same,
    record_steps,
    state_of,
    train_captions,
    train_mae,
    write_config,
)
from training import checkpoints
from training.loop import Trainer
from training.optimizer import WeightAverage, learning_rate_factor
from training.sampling import MicroBatch
from training.step import Stepper


@pytest.fixture
def paths(make_tiny_coco):
    return make_tiny_coco(train=10, val=4, unlabeled=3)


@pytest.fixture
def run(paths, tmp_path):
    """Runs a stage's script on a tiny data set: run(stage, out, *options, **changes to the YAML)."""
    train_mae(paths["data"], tmp_path / "first", write_config(tmp_path, "mae_config.yaml"), "--epochs", "1")
    encoder = str(tmp_path / "first" / "encoder" / "checkpoint1.pt")

    def start(stage: str, out: str, *options: str, **changes) -> None:
        if stage == "encoder":
            config = write_config(tmp_path, "mae_config.yaml", **changes)
            return train_mae(paths["data"], tmp_path / out, config, *options)
        config = write_config(tmp_path, "captioner_config.yaml", **{"unfreeze_start_epoch": 2} | changes)
        fresh = () if "-c" in options else ("-p", encoder)
        return train_captions(paths["data"], tmp_path / out, config, *fresh, *options)

    return start


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", ["encoder", "captioner"])
def test_two_epochs_and_one_more_equal_three_in_one_go(run, stage, precision, tmp_path):
    run(stage, "whole", "--epochs", "3", precision=precision)
    run(stage, "parts", "--epochs", "2", precision=precision)
    run(stage, "parts", "-c", "last", "--epochs", "3", precision=precision)
    assert_same(state_of(tmp_path / "whole", stage), state_of(tmp_path / "parts", stage))


def test_a_run_is_a_function_of_its_seed(run, tmp_path):
    """The public original set no seed, so that no figure of it can be had again."""
    for out, seed in (("first", 5), ("again", 5), ("other", 6)):
        torch.manual_seed(hash(out))
        run("encoder", f"seed_{out}", "--epochs", "1", seed=seed)
    first, again, other = (
        state_of(tmp_path / f"seed_{out}", "encoder") for out in ("first", "again", "other")
    )
    assert_same(first, again)
    assert first["progress"]["history"] != other["progress"]["history"]


@pytest.mark.parametrize(
    ("stage", "changes", "stops"),
    [
        ("encoder", {"accumulation_steps": 1}, [1, 2]),
        ("encoder", {"accumulation_steps": 3}, [3, 1, 1]),
        ("captioner", {"accumulation_steps": 2, "length_buckets": True}, [5, 6]),
        ("encoder", {"accumulation_steps": 3, "precision": "bfloat16"}, [3, 1, 1]),
        ("captioner", {"accumulation_steps": 2, "precision": "bfloat16"}, [5, 6]),
    ],
)
def test_a_run_stopped_in_the_middle_of_an_epoch_goes_on_exactly(
    run, stage, changes, stops, tmp_path, monkeypatch
):
    """Also on the second and third resume, and with loader workers in some parts and none in others."""
    expected = record_steps(monkeypatch)
    run(stage, "whole", "--epochs", "2", **changes)
    monkeypatch.undo()
    losses = []
    for number, stop in enumerate([*stops, None]):
        part = record_steps(monkeypatch, stop)
        options = ["--epochs", "2", *(["-c", "last"] if number else [])]
        workers = {"num_workers": number % 2}
        if stop is None:
            run(stage, "parts", *options, **changes, **workers)
        else:
            with pytest.raises(interrupts.Interrupted):
                run(stage, "parts", *options, **changes, **workers)
        losses += part
        monkeypatch.undo()
    assert losses == expected
    whole, parts = state_of(tmp_path / "whole", stage), state_of(tmp_path / "parts", stage)
    whole["config"].pop("num_workers"), parts["config"].pop("num_workers")
    assert_same(whole, parts)


@pytest.mark.parametrize("stage", ["encoder", "captioner"])
def test_a_training_keeps_the_memory_that_it_frees(run, stage, monkeypatch):
    calls = []
    monkeypatch.setattr(memory, "keep_freed", lambda device: calls.append(stage))
    run(stage, "out", "--epochs", "1")
    assert calls


@pytest.mark.parametrize("stage", ["encoder", "captioner"])
def test_a_run_on_a_cpu_adds_up_in_one_order(run, stage):
    """With two threads the gradient of `positions[kept]` differed from run to run, in larger batches."""
    torch.use_deterministic_algorithms(False)
    run(stage, "out", "--epochs", "1")
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("stage", ["encoder", "captioner"])
def test_the_workers_of_a_run_end_with_it(run, stage):
    """A notebook that trains twice would keep those of the first run for as long as it is open."""
    changes = {"eval_freq": 1} if stage == "captioner" else {}
    run(stage, "out", "--epochs", "1", num_workers=1, **changes)
    assert not multiprocessing.active_children()


def test_a_stop_during_validation_keeps_the_epoch_that_was_trained(run, tmp_path, monkeypatch):
    def stopped(trainer):
        monkeypatch.setattr(interrupts, "_received", 15)
        interrupts.check()

    run("encoder", "whole", "--epochs", "1")
    monkeypatch.setattr(Trainer, "validate", stopped)
    with pytest.raises(interrupts.Interrupted):
        run("encoder", "parts", "--epochs", "1")
    monkeypatch.undo()
    run("encoder", "parts", "-c", "last", "--epochs", "1")
    assert_same(state_of(tmp_path / "whole", "encoder"), state_of(tmp_path / "parts", "encoder"))


def test_accumulated_captions_of_uneven_length_give_the_gradient_of_the_whole_batch(run, tmp_path):
    """A mean of micro-batch means would weight the tokens of short captions too high."""
    plain = {"batch_size": 5, "learning_rate": 1e-2, "decoder": STACK, "gradient_clip": None}  # no dropout
    run("captioner", "one", "--epochs", "1", accumulation_steps=1, **plain)
    run("captioner", "many", "--epochs", "1", accumulation_steps=4, **plain)
    one, many = state_of(tmp_path / "one", "captioner"), state_of(tmp_path / "many", "captioner")
    for key, history in ((k, one["progress"]["history"][0][k]) for k in ("train_loss", "val_loss")):
        assert history == pytest.approx(many["progress"]["history"][0][key], rel=1e-4)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_nothing_is_stepped_on_that_is_not_finite(run, bad, tmp_path, monkeypatch, capsys):
    original = Stepper.step
    steps = []

    def poisoned(stepper, *given):
        def nan_loss(network, batch):
            loss, weight = loss_fn(network, batch)
            # d sqrt(0) is infinite, and the loss itself stays as it is
            return (loss * math.nan if bad == "loss" else loss + torch.sqrt(loss * 0)), weight

        loss_fn = stepper.loss_fn
        steps.append(None)
        stepper.loss_fn = nan_loss if len(steps) == 2 else loss_fn
        report = original(stepper, *given)
        stepper.loss_fn = loss_fn
        return report

    monkeypatch.setattr(Stepper, "step", poisoned)
    run("encoder", "out", "--epochs", "1", learning_rate=1e-3)
    state = state_of(tmp_path / "out", "encoder")
    steps = -(-13 // 6)
    assert state["progress"]["updates"] == steps - 1
    (group,) = state["optimizer"]["param_groups"]
    rate = learning_rate_factor(2 / steps, warmup_epochs=1, total_epochs=4, start_factor=0.05, floor=0)
    assert group["lr"] == pytest.approx(1e-3 * rate), "the schedule's clock counts epochs, skipped steps too"
    assert state["progress"]["history"][0]["skipped_steps"] == 1
    assert math.isfinite(state["progress"]["history"][0]["train_loss"])
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    message = capsys.readouterr().err
    assert "epoch 1, step 2" in message
    assert "images [" in message


def test_too_many_bad_steps_in_a_row_stop_the_run_and_leave_a_good_checkpoint(run, tmp_path, monkeypatch):
    original = Stepper._mean_gradient
    monkeypatch.setattr(Stepper, "_mean_gradient", lambda *given: original(*given) * math.nan)
    with pytest.raises(RunError, match="3 steps in a row"):
        run("encoder", "out", "--epochs", "2", max_bad_steps=3)
    state = state_of(tmp_path / "out", "encoder")
    assert state["progress"]["updates"] == 0
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def damage(paths, split: str, count: int) -> list[str]:
    """Makes the first pictures of a split unreadable; returns their names."""
    pictures = sorted(paths[f"{split}_images"].iterdir())[:count]
    for picture in pictures:
        picture.write_bytes(b"<html>")
    return [picture.name for picture in pictures]


@pytest.mark.parametrize(("stage", "batch_size"), [("encoder", 2), ("captioner", 1), ("captioner", 6)])
def test_unreadable_pictures_are_left_out_of_training_named_and_counted(
    run, paths, stage, batch_size, tmp_path, capsys, monkeypatch
):
    """Also where a whole batch is unreadable: what stands in for it weighs nothing."""
    names = damage(paths, "train", 2)
    weights = []
    account = Trainer._account
    monkeypatch.setattr(
        Trainer, "_account", lambda *given: (weights.append(given[2].weight), account(*given))
    )
    run(stage, "out", "--epochs", "1", max_bad_fraction=0.5, batch_size=batch_size)
    state = state_of(tmp_path / "out", stage)
    samples = {"encoder": 2, "captioner": 10}[stage]
    assert state["progress"]["history"][0]["unreadable_samples"] == samples
    assert math.isfinite(state["progress"]["history"][0]["train_loss"])
    if batch_size == 1:
        assert weights.count(0) == samples
    output = capsys.readouterr()
    assert all(output.err.count(name) == samples // 2 for name in names)
    assert f"{samples} samples unreadable" in output.out


def test_a_loss_over_what_could_be_read_is_the_mean_over_that_alone(run, paths, tmp_path, make_tiny_coco):
    """The same figures as if the unreadable pictures had never been in the batch."""
    losses = {}
    for out in ("whole", "damaged"):
        run("encoder", out, "--epochs", "1", max_bad_fraction=0.9, batch_size=50, learning_rate=1e-3)
        losses[out] = state_of(tmp_path / out, "encoder")["progress"]["history"][0]["train_loss"]
        damage(paths, "train", 9)
    assert losses["whole"] != losses["damaged"]
    _, state = checkpoints.load_named(tmp_path / "damaged" / "encoder", "last", "encoder")
    assert state["progress"]["history"][0]["unreadable_samples"] == 9
    config = config_from_dict(state["config"], train_encoder.MaeConfig, "config")
    torch.manual_seed(config.seed)
    model = ImageAutoEncoder(config)
    transform = TrainingTransform(config.image_size, config.crop_scale)
    options = {"mode": "image_only", "shuffle": True, "options": LoaderOptions(skip_unreadable=True)}
    (batch,) = get_coco_loader(("train", "unlabeled"), 50, transform, data=CocoData(paths), **options)
    loss, _ = train_encoder.reconstruction_loss(model, batch, config)
    assert losses["damaged"] == pytest.approx(loss.item(), rel=1e-6)


def test_too_many_unreadable_pictures_end_the_run_and_keep_it(run, paths, tmp_path):
    damage(paths, "train", 3)
    with pytest.raises(RunError, match=r"2 of 13 samples .* max_bad_fraction 0.1 allows 1.*--check"):
        run("encoder", "out", "--epochs", "1", max_bad_fraction=0.1, batch_size=1)
    state = state_of(tmp_path / "out", "encoder")
    assert state["progress"]["unreadable"] == 2
    run("encoder", "out", "-c", "last", "--epochs", "1", max_bad_fraction=0.3, batch_size=1)
    assert state_of(tmp_path / "out", "encoder")["progress"]["history"][0]["unreadable_samples"] == 3


def test_evaluation_never_leaves_out_a_picture(run, paths, tmp_path):
    (name,) = damage(paths, "val", 1)
    for stage in ("encoder", "captioner"):
        with pytest.raises(RunError, match=name):
            run(stage, "out", "--epochs", "1", max_bad_fraction=0.9)
        assert state_of(tmp_path / "out", stage)["progress"]["step"] > 0, "the epoch's training was lost"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", ["encoder", "captioner"])
def test_reading_reports_a_step_late_changes_nothing(run, stage, precision, tmp_path, monkeypatch):
    """As on a GPU: also what is skipped, and the checkpoint of a run that is stopped in between."""
    changes = {"gradient_clip": 0.5, "max_bad_fraction": 0.0, "precision": precision}
    run(stage, "now", "--epochs", "2", **changes)
    original = Trainer.__init__

    def late(trainer, *given, **named):
        original(trainer, *given, **named)
        trainer.lag = 1

    monkeypatch.setattr(Trainer, "__init__", late)
    run(stage, "late", "--epochs", "2", **changes)
    with monkeypatch.context() as context:
        losses = record_steps(context, stop_after=2)
        with pytest.raises(interrupts.Interrupted):
            run(stage, "stopped", "--epochs", "2", **changes)
    assert len(losses) == 3, "the step that was under way is finished"
    run(stage, "stopped", "-c", "last", "--epochs", "2", **changes)
    now = state_of(tmp_path / "now", stage)
    assert_same(now, state_of(tmp_path / "late", stage))
    assert_same(now, state_of(tmp_path / "stopped", stage))


def test_a_gpu_that_is_too_small_is_one_line_that_says_what_would_do(run, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(Stepper, "step", full)
    with pytest.raises(RunError, match="cannot hold 3 samples at once: raise accumulation_steps"):
        run("encoder", "out", "--epochs", "1", accumulation_steps=2)


def test_memory_that_ends_while_weights_move_saves_no_half_counted_step(run, tmp_path, monkeypatch):
    """The moments of AdamW and the mean of the weights take memory after the backward pass, too."""
    run("encoder", "whole", "--epochs", "1", ema_decay=0.9)
    with monkeypatch.context() as context:
        record_steps(context, stop_after=1)
        with pytest.raises(interrupts.Interrupted):
            run("encoder", "parts", "--epochs", "1", ema_decay=0.9)
    update, calls = WeightAverage.update, []

    def full_at_the_second(*given):
        calls.append(given)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        update(*given)

    resume = ("-c", "last", "--epochs", "1")
    with monkeypatch.context() as context:
        context.setattr(WeightAverage, "update", full_at_the_second)
        with pytest.raises(RunError, match="cannot hold"):
            run("encoder", "parts", *resume, ema_decay=0.9)
    run("encoder", "parts", *resume, ema_decay=0.9)
    whole, parts = (state_of(tmp_path / out, "encoder") for out in ("whole", "parts"))
    assert_same(whole["model"], parts["model"])


def test_an_image_that_only_fills_a_place_is_not_counted_as_unreadable():
    """Where there are fewer samples than processes, the first one stands in, weighing nothing."""
    weight = torch.ones(1, requires_grad=True)
    config = SimpleNamespace(batch_size=2, precision="float32")
    stepper = Stepper(
        lambda network, batch: ((weight * 2).sum(), torch.tensor(1.0)), None, None,
        torch.amp.GradScaler("cpu", enabled=False), config, torch.device("cpu"),
    )  # fmt: skip
    batch = namedtuple("Batch", "unreadable")(["x.jpg"])
    for real, counted in ((True, 1), (False, 0)):
        sums = stepper._backward(None, [batch], [MicroBatch([0, 1], real)])
        assert sums.tolist()[1:3] == [real, counted]


def test_the_validation_loss_is_the_mean_over_all_tokens(run, tmp_path, make_tiny_coco):
    """Validation ran other code than training in the public original, and averaged over batches."""
    run("captioner", "small", "--epochs", "1", learning_rate=1e-9, min_learning_rate=0.0, batch_size=3)
    run("captioner", "large", "--epochs", "1", learning_rate=1e-9, min_learning_rate=0.0, batch_size=20)
    small, large = (
        state_of(tmp_path / out, "captioner")["progress"]["history"][0] for out in ("small", "large")
    )
    assert small["val_loss"] == pytest.approx(large["val_loss"], rel=1e-5)
    assert small["train_loss"] != small["val_loss"]


def test_validation_masks_are_the_same_every_time(run, tmp_path):
    run("encoder", "out", "--epochs", "2", learning_rate=1e-30, min_learning_rate=0.0, weight_decay=0.0)
    first, second = state_of(tmp_path / "out", "encoder")["progress"]["history"]
    assert first["val_loss"] == second["val_loss"]
    assert first["train_loss"] != second["train_loss"]


def test_groups_are_unfrozen_from_the_top_one_an_epoch_at_decaying_rates(run, tmp_path):
    run("captioner", "out", "--epochs", "4", learning_rate=1e-3, layer_decay=0.7, batch_size=50)
    before = torch.load(tmp_path / "first" / "encoder" / "checkpoint1.pt", weights_only=True)["model"]
    before = {name: value for name, value in before.items() if name.startswith("encoder.")}
    learning = {}  # epoch: the encoder's parts that have moved by its end
    for epoch in (1, 2, 3, 4):
        after = state_of(tmp_path / "out", "captioner", f"checkpoint{epoch}.pt")["model"]
        moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
        learning[epoch] = {".".join(name.split(".")[1:4]) for name in moved}
    layer = "transformer.layers.{}".format
    assert learning[1] == set()
    assert learning[2] == {layer(1)}
    assert learning[3] == {layer(1), layer(0)}
    assert {name.split(".")[0] for name in learning[4]} == {"transformer", "patch_embedding"}
    rates = [
        group["base_lr"] for group in state_of(tmp_path / "out", "captioner")["optimizer"]["param_groups"]
    ]
    assert rates == pytest.approx([1e-3, 0.7e-3, 0.49e-3, 0.343e-3])


def test_every_parameter_is_in_exactly_one_group(run, tmp_path):
    run("captioner", "out", "--epochs", "1")
    state = state_of(tmp_path / "out", "captioner")
    numbers = [number for group in state["optimizer"]["param_groups"] for number in group["params"]]
    model = captioner_from_state(state, torch.device("cpu")).model
    assert sorted(numbers) == list(range(len(list(model.parameters()))))


def test_the_encoders_shape_comes_from_its_checkpoint(run, tmp_path):
    """The public original's two YAMLs disagreed on the encoder's depth, so that training crashed."""
    run("captioner", "out", "--epochs", "1")
    state = state_of(tmp_path / "out", "captioner")
    assert state["encoder"] == {"image_size": 32, "patch_size": 8, "encoder": STACK, "decoder": STACK}
    assert "encoder" not in state["config"]


def test_a_captioner_saved_before_it_kept_the_whole_autoencoders_shape_still_resumes(run, tmp_path):
    """Its encoder had three keys; a resume trains on to the same weights, and saves the form of today."""
    run("captioner", "whole", "--epochs", "2")
    run("captioner", "out", "--epochs", "1")
    path, state = checkpoints.load_named(tmp_path / "out" / "captioner", "last", "captioner")
    state["encoder"] = {key: state["encoder"][key] for key in ("image_size", "patch_size", "encoder")}
    checkpoints.save(path, state)
    assert captioner_from_state(checkpoints.load(path, "captioner"), torch.device("cpu"))
    run("captioner", "out", "-c", "last", "--epochs", "2")
    whole, resumed = (state_of(tmp_path / out, "captioner") for out in ("whole", "out"))
    assert_same(whole["model"], resumed["model"])
    assert resumed["encoder"].keys() == whole["encoder"].keys() > {"image_size", "patch_size", "encoder"}


@pytest.mark.parametrize(("stage", "later"), [("encoder", 6), ("captioner", 11)])
def test_a_checkpoint_that_is_older_than_some_keys_means_what_they_were_by_default(
    run, tmp_path, stage, later
):
    """A resume trains on to the same weights, and saves all keys."""
    run(stage, "whole", "--epochs", "2")
    run(stage, "out", "--epochs", "1")
    path, state = checkpoints.load_named(tmp_path / "out" / stage, "last", stage)
    keys = checkpoints.LATER_KEYS | checkpoints.LATER_KEYS_OF[stage]
    assert len(keys) == later
    old = {key: value for key, value in state["config"].items() if key not in keys}
    assert len(old) == len(state["config"]) - later
    checkpoints.save(path, state | {"config": old})
    run(stage, "out", "-c", "last", "--epochs", "2")
    whole, resumed = (state_of(tmp_path / out, stage) for out in ("whole", "out"))
    assert_same(whole["model"], resumed["model"])
    assert resumed["config"].keys() == whole["config"].keys()


def test_one_json_line_an_epoch_and_no_line_of_another_past(run, tmp_path):
    run("encoder", "out", "--epochs", "3")
    run("encoder", "out", "-c", "checkpoint1.pt", "--epochs", "2")
    entries = [
        json.loads(line) for line in (tmp_path / "out" / "encoder" / "log.jsonl").read_text().splitlines()
    ]
    assert [entry["epoch"] for entry in entries] == [1, 2]
    assert {"train_loss", "val_loss", "learning_rate", "seconds", "samples_per_second"} <= entries[0].keys()


def test_a_resume_may_change_how_to_train_but_not_the_model(run):
    run("encoder", "out", "--epochs", "1")
    run("encoder", "out", "-c", "last", "--epochs", "2", learning_rate=5e-4)
    with pytest.raises(UsageError, match=r"patch_size.*trained with 8.*says 16"):
        run("encoder", "out", "-c", "last", "--epochs", "3", patch_size=16)


def test_a_checkpoint_of_the_other_stage_is_refused(run, tmp_path):
    run("captioner", "out", "--epochs", "1")
    with pytest.raises(UsageError, match="checkpoint of the captioner"):
        run("encoder", "out", "-c", str(tmp_path / "out" / "captioner" / "checkpoint1.pt"))


def test_the_middle_of_an_epoch_is_the_middle_of_that_data_only(run, monkeypatch):
    record_steps(monkeypatch, stop_after=1)
    with pytest.raises(interrupts.Interrupted):
        run("encoder", "out", "--epochs", "1")
    monkeypatch.undo()
    with pytest.raises(UsageError, match=r"middle of an epoch of 13 samples, the data has \d"):
        run("encoder", "out", "-c", "last", "--epochs", "1", "-s", "0.5")


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("encoder", {"patch_size": 7}, "patch_size: 7 does not divide image_size 32"),
        ("encoder", {"masking_ratio": 0.01}, "masking_ratio: 0.01 of 16 patches masks none"),
        ("encoder", {"crop_scale": [0.9, 0.2]}, "crop_scale: expected two numbers, the lesser first"),
        ("encoder", {"warmup_epochs": 4}, "warmup_epochs: 4.0 leaves nothing of total_epochs 4"),
        ("captioner", {"min_learning_rate": 0.1}, "min_learning_rate: 0.1 is above learning_rate 0.001"),
        ("captioner", {"vocabulary_size": 9}, r"tokenizer.json has \d+ pieces, and vocabulary_size allows 9"),
    ],
)
def test_settings_that_do_not_fit_together_are_named(run, stage, changes, message):
    with pytest.raises(UsageError, match=message):
        run(stage, "out", **changes)


def test_a_checkpoint_of_another_vocabulary_is_refused(run, tmp_path):
    run("captioner", "out", "--epochs", "1")
    tokenizer = tmp_path / "coco" / "processed" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("yellow", "gold"))
    with pytest.raises(UsageError, match="not the tokenizer of the checkpoint"):
        run("captioner", "out", "-c", "last", "--epochs", "2")
