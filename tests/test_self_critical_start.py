"""Whole runs of the self-critical stage: what they begin with, what they learn from, what they refuse."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import train_captioner
from self_critical import CiderReward
from support.errors import UsageError
from tests.language_cases import CAPTIONS, say
from tests.training_cases import train_captions, train_mae, write_config
from training import checkpoints


@pytest.fixture
def run(make_tiny_coco, tmp_path):
    """A function that trains the captioner or, with `--self-critical`, the stage after it."""
    paths = make_tiny_coco(train=6, val=4, unlabeled=0)
    mae = write_config(tmp_path, "mae_config.yaml", splits=["train"])
    train_mae(paths["data"], tmp_path, mae, "--epochs", "1")
    config = write_config(
        tmp_path, "captioner_config.yaml", total_epochs=3, self_critical_epochs=2, self_critical_samples=2
    )

    def start(*options: str) -> None:
        train_captions(paths["data"], tmp_path, config, *options)

    start.paths = paths
    return start


def last(folder: Path) -> dict[str, Any]:
    return checkpoints.load_named(folder, "last", "captioner")[1]


def test_a_captioner_that_was_trained_anew_is_what_the_stage_begins_with(run, tmp_path, capsys):
    """The old stage went on, or was called done, and its captions were reported as the new captioner's."""
    run("-p", "last", "--epochs", "2")
    run("--self-critical", "-c", "checkpoint1.pt", "--epochs", "1")
    run("-c", "last", "--epochs", "3")
    run("--self-critical", "-c", "last")  # not the newest captioner, but it is the one it began with
    captioners, stage = tmp_path / "captioner", tmp_path / "self_critical"
    first = last(stage)["begun_with"]
    begun = captioners / "checkpoint1.pt"
    assert (first["name"], first["sha256"]) == ("checkpoint1.pt", checkpoints.digest(begun))
    (captioners / "checkpoint1.pt").rename(captioners / "aside")  # pruned, say: it goes on
    run("--self-critical", "-c", "last")
    assert "all 2 epochs are done" in capsys.readouterr().out
    (captioners / "aside").rename(captioners / "checkpoint1.pt")

    run("-p", "last", "--epochs", "1", "--set", "seed=5")
    capsys.readouterr()
    run("--self-critical", "-c", "last")
    said = capsys.readouterr()
    assert "began with another captioner" in said.err
    assert f"self-critical: begins with {captioners / 'checkpoint1.pt'}" in said.out
    assert (
        last(stage)["begun_with"]["sha256"]
        == checkpoints.digest(captioners / "checkpoint1.pt")
        != first["sha256"]
    )
    assert last(stage / "earlier1")["begun_with"] == first


def test_a_captioner_that_was_trained_anew_is_noticed_by_whatever_name(run, tmp_path, capsys):
    """Where the new one had another number of epochs, no file bore the old one's name."""
    run("-p", "last", "--epochs", "1")
    run("--self-critical", "-c", "last", "--epochs", "1")
    captioners, stage = tmp_path / "captioner", tmp_path / "self_critical"
    run("-p", "last", "--epochs", "2", "--set", "seed=5", "--set", "keep_checkpoints=1")
    (captioners / "checkpoint1.pt").unlink(missing_ok=True)
    capsys.readouterr()
    run("--self-critical", "-c", "last", "--epochs", "1")
    assert f"self-critical: begins with {captioners / 'checkpoint2.pt'}" in capsys.readouterr().out
    assert last(stage)["begun_with"]["name"] == "checkpoint2.pt"


def test_a_damaged_captioner_keeps_no_stage_from_going_on(run, tmp_path, capsys):
    run("-p", "last", "--epochs", "1")
    run("--self-critical", "-c", "last", "--epochs", "1")
    (captioner,) = checkpoints.existing(tmp_path / "captioner")
    captioner.write_bytes(captioner.read_bytes()[:-5])
    capsys.readouterr()
    run("--self-critical", "-c", "last")
    assert "begins with" not in capsys.readouterr().out


def test_a_stage_that_began_with_a_captioner_from_elsewhere_is_none_of_this_folders(run, tmp_path, capsys):
    run("-p", "last", "--epochs", "1")
    captioners, stage = tmp_path / "captioner", tmp_path / "self_critical"
    elsewhere = tmp_path / "other.pt"
    shutil.copy(captioners / "checkpoint1.pt", elsewhere)
    run("--self-critical", "-c", str(elsewhere), "--epochs", "1")
    run("-p", "last", "--epochs", "1", "--set", "seed=5")
    capsys.readouterr()
    run("--self-critical", "-c", "last")
    assert "begins with" not in capsys.readouterr().out
    assert [path.name for path in checkpoints.existing(stage)] == ["checkpoint1.pt", "checkpoint2.pt"]


@pytest.mark.parametrize(
    ("language", "unit", "references"),
    [("Chinese", "character", "official"), ("German", "word", "normalized")],
)
def test_it_learns_from_what_the_evaluation_compares(run, tmp_path, monkeypatch, language, unit, references):
    """Of Chinese captions every one was a single word, and all rewards 0; accents counted as mistakes."""
    text, said, _ = CAPTIONS[language]
    say(run.paths, lambda image_id: text if image_id % 2 else "x")
    made = []
    make = train_captioner.new_critic
    monkeypatch.setattr(train_captioner, "new_critic", lambda *a: made.append((a, make(*a))) or made[0][1])
    run("-p", "last", "--epochs", "1")
    run("--self-critical", "-c", "last", "--epochs", "1")
    (((_, _, _, _, scoring), critic),) = made
    assert (scoring.unit, scoring.references) == (unit, references)
    reward = critic.reward
    image = next(image for image, captions in reward.references.items() if captions[0] != "x")
    right, cut = (reward.tokenizer.encode(caption).ids[1:] for caption in (said, said[: len(said) // 2]))
    ((perfect, half),) = reward([image], [[right, cut]])
    assert perfect > half > 0


def test_a_step_in_which_all_samples_score_alike_ends_no_run(run, tmp_path, monkeypatch):
    """Its gradient is rightly 0; the check for what does not learn called it a fault, at every attempt."""
    run("-p", "last", "--epochs", "1")
    monkeypatch.setattr(CiderReward, "__call__", lambda _, ids, samples: [[0.5] * len(s) for s in samples])
    run("--self-critical", "-c", "last")
    history = last(tmp_path / "self_critical")["progress"]["history"]
    assert [(entry["gradient_norm"], entry["train_reward"]) for entry in history] == [(0, 0.5)] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "label_smoothing=0.2"], "label_smoothing: it changes nothing in the self-critical stage"),
        (["--set", "warmup_epochs=0.5"], "warmup_epochs: it changes nothing"),
        (["--set", "learning_rate=1"], "reads self_critical_learning_rate"),
        (["--epochs", "3"], r"--epochs 3: the schedule has 2.*--set self_critical_epochs=3"),
    ],
)
def test_what_it_would_not_heed_is_refused(run, tmp_path, options, message):
    run("-p", "last", "--epochs", "1")
    with pytest.raises(UsageError, match=message):
        run("--self-critical", "-c", "last", *options)
    assert not (tmp_path / "self_critical").exists()
    run("--self-critical", "-c", "last", "--epochs", "3", "--set", "self_critical_epochs=3")


def test_no_stage_goes_on_beyond_its_schedule(run):
    """At the cosine's end the rate is 0, or next to it: the epochs would be for nothing."""
    with pytest.raises(UsageError, match=r"--epochs 4: the schedule has 3.*--set total_epochs=4"):
        run("-p", "last", "--epochs", "4")
