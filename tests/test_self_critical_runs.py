"""Runs of the self-critical stage, from the command line to the checkpoint."""

import json

import pytest
import torch

import caption
import evaluate_captioner
import train_captioner
from support import interrupts
from support.errors import UsageError
from tests.test_distributed import torchrun
from tests.training_cases import ONE_LAYER, ended, record_steps, stage_runner
from training import checkpoints
from training.optimizer import WeightAverage
from training.self_critical_run import OWN_KEYS

CHANGES = {
    "decoder": {**ONE_LAYER}, "batch_size": 4, "total_epochs": 30, "learning_rate": 1e-2, "eval_freq": 1,
    "self_critical_epochs": 2, "self_critical_learning_rate": 1e-3, "self_critical_samples": 3,
    "keep_checkpoints": 99, "patch_dropout": 0.5,
}  # fmt: skip


@pytest.fixture
def run(make_tiny_coco, tmp_path):
    """A captioner that knows some words; then a function that runs the stage on it, into a folder."""
    paths = make_tiny_coco(train=10, val=4)
    runner = stage_runner(
        paths["data"], tmp_path, encoder={"encoder": {**ONE_LAYER}, "decoder": {**ONE_LAYER}}
    )
    runner("captioner", "first", "--epochs", "12", **CHANGES)
    captioner = checkpoints.existing(tmp_path / "first" / "captioner")[-1]

    def start(out: str, *more: str, wanted: str = str(captioner)) -> None:
        place = ["--data", str(paths["data"]), "--out", str(tmp_path / out)]
        train_captioner.main([*place, "--self-critical", "-c", wanted, *more])

    start.paths, start.captioner, start.folder = paths, captioner, tmp_path
    return start


def state_of(path) -> dict:
    return checkpoints.load(path, "captioner")


def test_it_begins_with_the_captioners_weights_and_leaves_a_captioner(run, capsys):
    run("out", "--epochs", "1")
    folder = run.folder / "out" / "self_critical"
    state = state_of(folder / "checkpoint1.pt")
    assert state["config"]["total_epochs"] == 2
    assert state["config"]["learning_rate"] == 1e-3
    steps = {float(moments["step"]) for moments in state["optimizer"]["state"].values()}
    assert steps == {3.0}  # of this stage: 10 images by 4
    entry = json.loads((folder / "log.jsonl").read_text())
    assert entry["train_reward"] == -entry["train_loss"]
    assert 0 < entry["distinct_samples"] <= 1
    assert "reward train" in capsys.readouterr().out
    before = state_of(run.captioner)["model"]
    moved = [name for name, weight in state["model"].items() if not torch.equal(weight, before[name])]
    assert len(moved) == len(before)  # all of it learns
    largest = max(float((weight - before[name]).abs().max()) for name, weight in state["model"].items())
    assert largest < 0.02  # a few small steps away from where it began
    evaluate_captioner.main(["--data", str(run.paths["data"]), "-c", str(folder / "checkpoint1.pt")])
    picture = next(run.paths["val_images"].iterdir())
    caption.main(["-c", str(folder / "last"), str(picture)])


def test_resumed_within_an_epoch_it_ends_as_if_never_stopped(run):
    run("whole")
    with pytest.MonkeyPatch.context() as context:
        record_steps(context, stop_after=2)
        with pytest.raises(interrupts.Interrupted):
            run("halves")
    (stopped,) = checkpoints.existing(run.folder / "halves" / "self_critical")
    assert stopped.name == "checkpoint0-step2.pt"
    run("halves", wanted="last")
    whole, halves = (run.folder / out / "self_critical" / "checkpoint2.pt" for out in ("whole", "halves"))
    whole, halves = state_of(whole), state_of(halves)
    for name, weight in whole["model"].items():
        assert torch.equal(weight, halves["model"][name]), name
    timed = ("seconds", "samples_per_second")
    for one, other in zip(whole["progress"]["history"], halves["progress"]["history"], strict=True):
        assert {k: v for k, v in one.items() if k not in timed} == {
            k: v for k, v in other.items() if k not in timed
        }


@pytest.mark.timeout(300)
def test_two_ranks_learn_what_one_process_does(run):
    run("one", "--epochs", "1")
    torchrun(
        "train_captioner.py", "--data", run.paths["data"], "--out", run.folder / "two", "--self-critical",
        "-c", run.captioner, "--epochs", "1",
    )  # fmt: skip
    one, two = (state_of(run.folder / out / "self_critical" / "checkpoint1.pt") for out in ("one", "two"))
    timed = ("seconds", "samples_per_second")
    for name, figure in one["progress"]["history"][0].items():
        if name not in timed:
            assert two["progress"]["history"][0][name] == pytest.approx(figure, rel=1e-4), name
    for name, weight in one["model"].items():
        if not name.endswith("key_projection.bias"):  # its gradient is rounding noise
            assert torch.allclose(weight, two["model"][name], rtol=1e-3, atol=1e-4), name


def test_last_is_this_stages_newest_or_else_the_newest_captioner(run, capsys):
    run("first", "--epochs", "1", wanted="last")
    assert f"begins with {run.captioner}" in capsys.readouterr().out
    run("first", wanted="last")
    assert "begins with" not in capsys.readouterr().out
    assert [path.name for path in checkpoints.existing(run.folder / "first" / "self_critical")] == [
        "checkpoint1.pt", "checkpoint2.pt",
    ]  # fmt: skip


@pytest.mark.parametrize("start", [["--from-scratch"], ["-p", "last"]])
def test_it_wants_a_captioner(start, capsys):
    code, told = ended(train_captioner.main, *start, "--self-critical", capsys=capsys)
    assert code == 2
    assert "--self-critical: name the captioner" in told


def test_what_it_would_not_heed_is_refused(run, capsys):
    for key, own in OWN_KEYS.items():
        with pytest.raises(UsageError, match=f"--set {key}: the self-critical stage reads {own}"):
            run("out", "--set", f"{key}={0.9 if key == 'ema_decay' else 9}")


def test_a_resume_cannot_go_back_to_the_captioners_mean(run):
    """The stage's own decay stands in its checkpoint in that one's place."""
    run("out", "--epochs", "1", "--set", "self_critical_ema_decay=0.75")
    with pytest.raises(UsageError, match=r"=null: that is the captioner's ema_decay, .* name a number"):
        run("out", "--set", "self_critical_ema_decay=null", wanted="last")
    run("out", "--set", "self_critical_ema_decay=0.5", wanted="last")


def test_its_mean_of_the_weights_begins_with_the_captioner(run, monkeypatch):
    """After three steps 0.75³ of it are left, and of each step what a decay of 0.75 leaves."""
    update, after = WeightAverage.update, []

    def record(average: WeightAverage, taken: torch.Tensor) -> None:
        after.append({name: p.detach().clone() for name, p in average.model.named_parameters()})
        update(average, taken)

    monkeypatch.setattr(WeightAverage, "update", record)
    run("out", "--epochs", "1", "--set", "self_critical_ema_decay=0.75")
    found = state_of(run.folder / "out" / "self_critical" / "checkpoint1.pt")["model"]
    before = state_of(run.captioner)["model"]
    first, second, third = after
    for name in first:
        expected = 0.75**3 * before[name] + 0.25 * (0.75**2 * first[name] + 0.75 * second[name] + third[name])
        torch.testing.assert_close(found[name], expected)


def test_its_checkpoints_want_the_flag(run):
    run("out", "--epochs", "1")
    out = run.folder / "out"
    arguments = ["--data", str(run.paths["data"]), "--out", str(out)]
    with pytest.raises(UsageError, match="go on with --self-critical"):
        train_captioner.main([*arguments, "-c", str(out / "self_critical" / "checkpoint1.pt")])
