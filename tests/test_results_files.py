"""No evaluation replaces the results of another, and the names say what each is of."""

import json
import re

import pytest
import torch

import evaluate_captioner
import export
from captioner import captioner_from_state
from support.errors import UsageError
from tests.language_cases import CAPTIONS, say
from tests.training_cases import state_of, train_captions, train_mae, write_config
from training import checkpoints


@pytest.fixture
def run(make_tiny_coco, tmp_path, monkeypatch):
    """Evaluates a checkpoint with options: what files it wrote beside it, and the metrics."""
    monkeypatch.setattr("scoring.calibration.FEWEST_IN_BIN", 2)  # val has four pictures
    paths = make_tiny_coco(train=6, val=4, unlabeled=0)
    mae = write_config(tmp_path, "mae_config.yaml", splits=["train"])
    train_mae(paths["data"], tmp_path / "out", mae, "--epochs", "1")
    train_captions(paths["data"], tmp_path / "out", write_config(tmp_path, "captioner_config.yaml"),
                   "-p", "last", "--epochs", "1")  # fmt: skip
    checkpoint = tmp_path / "out" / "captioner" / "checkpoint1.pt"

    def evaluate(*options: str) -> tuple[set[str], dict]:
        before = {path: path.read_bytes() for path in checkpoint.parent.iterdir()}
        evaluate_captioner.main(["-c", str(checkpoint), "--data", str(paths["data"]), *options])
        for path, content in before.items():
            assert path.read_bytes() == content, f"{path.name} was replaced"
        written = {path.name for path in checkpoint.parent.iterdir()} - {path.name for path in before}
        (metrics,) = [name for name in written if name.endswith("_metrics.json")]
        return written, json.loads(checkpoint.with_name(metrics).read_text())

    evaluate.paths, evaluate.checkpoint = paths, checkpoint
    return evaluate


def files(name: str) -> set[str]:
    return {f"checkpoint1_{name}_results.json", f"checkpoint1_{name}_results_metrics.json"}


def ids_of(paths, split: str) -> list[int]:
    """Of the images of a split."""
    return sorted(int(path.stem) for path in paths[f"{split}_images"].iterdir())


def test_what_is_not_the_full_evaluation_has_a_name_of_its_own(run, tmp_path):
    """`--beams 1` or `-s 0.01`, tried after hours of evaluation, replaced its results."""
    written, metrics = run()
    assert written == files("val") | {"checkpoint1_calibration.json"}
    assert (metrics["references"], metrics["unit"]) == ("official", "word")
    assert run("--beams", "1")[0] == files("val_beams1") | {"checkpoint1_beams1_calibration.json"}
    assert run("--consensus", "3")[0] == files("val_consensus3") | {"checkpoint1_consensus3_calibration.json"}
    assert run("-s", "0.5")[0] == files("val_s0.5")
    assert run("-s", "0.5", "--beams", "1")[0] == files("val_s0.5_beams1")
    assert run("--split", "train")[0] == files("train")
    written, metrics = run("--unit", "character", "--references", "normalized")
    assert written == files("val_normalized_character")
    assert metrics["signature"].startswith("characters normalized | n=4 | val2017 |")
    assert metrics["unit"] == "character"
    assert metrics["num_beams"] == 2


def test_the_checkpoints_own_search_is_the_default_one(run):
    assert run("--beams", "2", "--consensus", "0")[0] == files("val") | {"checkpoint1_calibration.json"}


def test_a_split_file_is_in_the_name_by_what_is_in_it(run, tmp_path):
    ids = {split: ids_of(run.paths, split) for split in ("train", "val")}
    path, names = tmp_path / "mine.json", []
    for count in (2, 1):
        path.write_text(json.dumps(ids | {"val": ids["val"][count:], "test": ids["val"][:count]}))
        written, _ = run("--split-file", str(path), "--split", "test")
        names += [name for name in written if "metrics" not in name]
        assert names[-1].startswith("checkpoint1_test_mine-")
    assert names[0] != names[1], "another split under the same name"


def test_another_data_root_replaces_neither_results_nor_calibration(run, make_tiny_coco, tmp_path):
    """The line that this script's help shows replaced the confidence of the weights that ship."""
    run()
    other = make_tiny_coco("other", train=5, val=4, unlabeled=0)
    written, metrics = run("--data", str(other["data"]))
    (name,) = {re.sub("root-[0-9a-f]{8}", "root", name) for name in written if "metrics" not in name}
    assert name == "checkpoint1_val_root_results.json"
    assert not any("calibration" in name for name in written)
    assert "| val2017 of root-" in metrics["signature"]
    moved = run.paths["data"].rename(tmp_path / "moved")
    for path in run.checkpoint.parent.glob("*.json"):
        path.unlink()
    assert run("--data", str(moved))[0] == files("val") | {"checkpoint1_calibration.json"}


def test_a_checkpoint_that_does_not_know_its_data_keeps_what_was_measured_first(
    run, make_tiny_coco, tmp_path
):
    """As those of before, and the weights that ship."""
    state = checkpoints.load(run.checkpoint)
    del state["root"]
    checkpoints.save(run.checkpoint, state)
    calibration, kept, names = run.checkpoint.with_name("checkpoint1_calibration.json"), [], []
    for paths in (run.paths, make_tiny_coco("other", train=5, val=4, unlabeled=0)):
        written, metrics = run("--data", str(paths["data"]))
        names += [name for name in written if name.endswith("_results.json")]
        assert re.search(r"\| val2017 of root-[0-9a-f]{8} \|", metrics["signature"])
        kept.append((calibration.read_bytes(), calibration.stat().st_mtime_ns))
    assert kept[0] == kept[1]
    assert json.loads(kept[0][0])["made_for"]["sha256"] == checkpoints.digest(run.checkpoint)
    assert len(set(names)) == 2, "the results of one root under the name of another"


def test_by_another_split_no_calibration_is_written(run, tmp_path):
    """It is of the captioner's own val: another val may be easier."""
    ids = {split: ids_of(run.paths, split) for split in ("train", "val")}
    other = tmp_path / "other.json"
    other.write_text(json.dumps(ids | {"train": ids["train"][1:]}))
    written, _ = run("--split-file", str(other))
    assert len(written) == 2
    assert not any("calibration" in name for name in written)


def test_equal_ids_of_another_root_are_no_images_that_were_trained_on(run, make_tiny_coco, tmp_path, capsys):
    """Roots of one's own number their images from 1, and COCO's ids say nothing about Flickr8k's."""
    other = make_tiny_coco("other", train=5, val=4, unlabeled=0)
    assert set(ids_of(other, "train")) & set(ids_of(run.paths, "train"))
    swapped = tmp_path / "swapped.json"
    for paths in (other, run.paths):
        swapped.write_text(json.dumps({"train": ids_of(paths, "val"), "val": ids_of(paths, "train")}))
        options = ["--data", str(paths["data"]), "--split-file", str(swapped)]
        if paths is other:
            run(*options)
            assert "note: the captioner was trained on another data root" in capsys.readouterr().err
        else:
            with pytest.raises(UsageError, match="are among those that this captioner was trained on"):
                run(*options)


def test_a_checkpoint_may_be_named_where_it_lies(run, tmp_path, monkeypatch):
    """`-c checkpoint1.pt` and `-c .`, of which the folder above is to be found, too."""
    folder = tmp_path / "captioner-v1.5"
    monkeypatch.chdir(run.checkpoint.parent)
    data = ["--data", str(run.paths["data"])]
    evaluate_captioner.main(["-c", "checkpoint1.pt", *data, "--report", str(tmp_path / "report.html")])
    assert "Reconstructions" in (tmp_path / "report.html").read_text()
    pytest.importorskip("safetensors")
    monkeypatch.undo()  # the locations are seen from where the tests were called
    export.main(["-c", str(run.checkpoint), str(folder)])
    monkeypatch.setattr("scoring.calibration.FEWEST_IN_BIN", 2)
    monkeypatch.chdir(folder)
    evaluate_captioner.main(["-c", ".", *data])
    written = {path.name.removeprefix(folder.name) for path in tmp_path.glob("*.json")}
    assert written == {"_val_results.json", "_val_results_metrics.json", "_calibration.json"}


def test_training_scores_what_the_search_finds_and_the_finished_captioner_has_its_consensus(
    run, tmp_path, monkeypatch
):
    config = write_config(tmp_path, "captioner_config.yaml", eval_freq=1, consensus_samples=3)
    with monkeypatch.context() as patch:
        patch.setattr("transformer_components.encoder_decoder.rank_by_consensus", None)
        train_captions(run.paths["data"], tmp_path / "out", config, "-p", "last", "--epochs", "1")
    state = state_of(tmp_path / "out", "captioner")
    assert "bleu4" in state["progress"]["history"][0]
    assert captioner_from_state(state, torch.device("cpu")).options.consensus_samples == 3


@pytest.mark.parametrize(("language", "note"), [("German", "references"), ("Chinese", "characters")])
def test_bleu_in_training_follows_the_same_rules(run, tmp_path, capsys, monkeypatch, language, note):
    """What is right by evaluation is right in training, by which the best checkpoint is kept."""
    text, said, _ = CAPTIONS[language]
    say(run.paths, lambda _: text)
    monkeypatch.setattr("captioner.Captioner.text", lambda *_: said)
    config = write_config(tmp_path, "captioner_config.yaml", eval_freq=1)
    capsys.readouterr()
    train_captions(run.paths["data"], tmp_path / "out", config, "-p", "last", "--epochs", "1")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: BLEU: ")]
    assert note in line
    (entry,) = state_of(tmp_path / "out", "captioner")["progress"]["history"]
    assert entry["bleu4"] == pytest.approx(1)
