"""The command that a message names is the one that works: it is taken from the message and run."""

import argparse
import ast
import re
import shlex
from pathlib import Path

import pytest
import torch

import app
import caption
import evaluate_captioner
import export
import process_coco
import sample_coco
import train_captioner
import train_encoder
import verify
from coco import inventory
from coco.data import CocoData
from coco_loader import CaptFirstDataset, ImageOnlyDataset
from image_transforms import EvaluationTransform
from paths import ROOT, default_paths, locations
from support import errors
from support.errors import RunError, UsageError, prepare_command
from tests.test_process_coco import make_source, process
from tests.training_cases import ended, write_config

MAINS = {
    "process_coco.py": process_coco.main,
    "train_encoder.py": train_encoder.main,
    "train_captioner.py": train_captioner.main,
    "evaluate_captioner.py": evaluate_captioner.main,
}


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> Path:
    return make_source(tmp_path_factory.mktemp("archives"))


@pytest.fixture(autouse=True)
def no_network(archives, monkeypatch) -> None:
    """A folder is COCO's server, also for a command that should not have asked it."""
    monkeypatch.setattr(inventory, "COCO", str(archives))


@pytest.fixture
def data(tmp_path, archives) -> Path:
    """A prepared data set, in a folder that a shell must see in quotation marks."""
    process(archives, tmp_path / "my data")
    return tmp_path / "my data"


def run_named_command(message: str) -> list[str]:
    """Runs the one command that stands in a message, in this process; returns its words."""
    (command,) = re.findall("`(python [^`]+)`", message)
    _, script, *options = shlex.split(command)
    assert Path(script).is_file(), command
    MAINS[Path(script).name](options)
    return options


def pairs(where: dict[str, Path]) -> object:
    return CaptFirstDataset("train", EvaluationTransform(16), data=CocoData(where))[0]


def images(where: dict[str, Path]) -> object:
    return ImageOnlyDataset("unlabeled", EvaluationTransform(16), data=CocoData(where))[0]


SPOILS = {
    "a list is missing": ("train_tokenized", Path.unlink, pairs),
    "a list is damaged": ("train_tokenized", lambda path: path.write_bytes(b"x"), pairs),
    "a list is none": ("unlabeled_image_ids", lambda path: torch.save({}, path), images),
    "a list is of another kind": ("unlabeled_image_ids", lambda path: torch.save(["x"], path), images),
    "the tokenizer is missing": ("tokenizer", Path.unlink, pairs),
    "the tokenizer is damaged": ("tokenizer", lambda path: path.write_text("{}"), pairs),
}


@pytest.mark.parametrize("what", SPOILS)
def test_what_mends_a_processed_file_is_named(data, what):
    key, spoil, use = SPOILS[what]
    where = locations(data)
    spoil(where[key])
    with pytest.raises(UsageError) as caught:
        use(where)
    message = str(caught.value)
    if "missing" not in what:
        assert "remove" in message
        where[key].unlink()
    assert run_named_command(message) == ["--data", str(data)]
    use(where)


@pytest.mark.parametrize("how", ["--data", "COCO_ROOT"])
def test_a_training_before_its_data_names_the_root_it_was_given(tmp_path, monkeypatch, capsys, how):
    data = tmp_path / "coco"
    config = write_config(tmp_path, "mae_config.yaml")
    arguments = ["--config", config, "--out", tmp_path / "out", "--epochs", 1]
    if how == "COCO_ROOT":
        monkeypatch.setenv("COCO_ROOT", str(data))
    else:
        arguments += ["--data", data]
    code, message = ended(train_encoder.main, *arguments, capsys=capsys)
    assert code == 2
    run_named_command(message)
    train_encoder.main([str(word) for word in arguments])
    assert (tmp_path / "out" / "encoder" / "checkpoint1.pt").exists()


@pytest.mark.parametrize("how", ["--sample", "stamp"])
def test_a_training_before_the_sample_draws_the_sample(tmp_path, monkeypatch, capsys, how):
    """`process_coco.py --data data/sample` was advised, which fetches COCO's 47 GB."""
    monkeypatch.setattr(sample_coco, "SIZES", {"train": 6, "val": 2, "test": 1, "unlabeled": 2})
    data = tmp_path / "sample"
    arguments = ["--data", data, "--out", tmp_path / "out", "--epochs", 1]
    arguments += ["--config", write_config(tmp_path, "mae_config.yaml")]
    if how == "--sample":
        arguments.append("--sample")
    else:
        sample_coco.draw(data, progress=False)
    code, message = ended(train_encoder.main, *arguments, capsys=capsys)
    assert code == 2
    assert run_named_command(message) == ["--sample", "--data", str(data)]
    train_encoder.main([str(word) for word in arguments])


def test_the_usual_sample_needs_no_root():
    assert shlex.split(prepare_command(default_paths(sample=True)))[2:] == ["--sample"]
    for root in (ROOT, ROOT.resolve()):
        assert shlex.split(prepare_command(locations(root / "data" / "sample")))[2:] == ["--sample"]


def test_bad_images_are_listed_and_mended_by_the_command_that_a_run_names(data, tmp_path, capsys):
    where = locations(data)
    config = write_config(tmp_path, "mae_config.yaml", max_bad_fraction=0.0)
    arguments = ["--config", config, "--data", data, "--out", tmp_path / "out", "--epochs", 1]
    bad = sorted(where["train_images"].iterdir())[0]
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    code, message = ended(train_encoder.main, *arguments, capsys=capsys)
    assert code == 1
    with pytest.raises(RunError, match="1 of 8 pictures cannot be read"):
        run_named_command(message)
    assert str(bad) in capsys.readouterr().out
    bad.write_bytes(whole)
    run_named_command(message)
    train_encoder.main([*map(str, arguments), "-c", "last"])


def test_copies_that_are_gone_are_made_by_the_command_that_a_run_names(data, tmp_path, capsys):
    process_coco.main(["--data", str(data), "--resize", "64"])
    arguments = ["--config", write_config(tmp_path, "mae_config.yaml", splits=["train"])]
    arguments += ["--data", data, "--out", tmp_path / "out"]
    train_encoder.main([*map(str, arguments), "--epochs", "1"])
    next(Path(data, "train2017_64").iterdir()).unlink()
    code, message = ended(train_encoder.main, *arguments, "--epochs", 2, "-c", "last", capsys=capsys)
    assert code == 2
    assert run_named_command(message) == ["--data", str(data), "--resize", "64"]
    train_encoder.main([*map(str, arguments), "--epochs", "2", "-c", "last"])


def test_captioning_names_the_evaluation_that_measures_its_confidence(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COCO_ROOT", str(data))
    out = tmp_path / "out"
    mae, config = (write_config(tmp_path, f"{stage}_config.yaml") for stage in ("mae", "captioner"))
    train_encoder.main(["--config", str(mae), "--out", str(out), "--epochs", "1"])
    train_captioner.main(["--config", str(config), "--out", str(out), "--epochs", "1", "-p", "last"])
    image = str(next(locations(data)["val_images"].iterdir()))
    capsys.readouterr()
    caption.main(["-c", "last", "--out", str(out), "--beams", "1", image])
    options = run_named_command(capsys.readouterr().err)
    assert options == ["-c", str(out / "captioner" / "checkpoint1.pt"), "--beams", "1"]
    assert "beams=1" in capsys.readouterr().out


@pytest.mark.parametrize("sample", [True, False])
def test_a_captioner_of_the_sample_is_measured_on_the_sample(sample):
    folder = Path("elsewhere") if sample else default_paths(sample=True)["captioner_checkpoints"]
    options = argparse.Namespace(sample=sample, beams=None, consensus=None)
    command = caption.measuring(folder / "checkpoint1.pt", options)
    assert shlex.split(command)[2:] == ["-c", str(folder / "checkpoint1.pt"), "--sample"]


def test_a_captioner_of_other_data_is_measured_on_these(tmp_path, monkeypatch):
    """Without --data the evaluation looked for COCO, and advised its download."""
    monkeypatch.setattr(caption, "ROOT", tmp_path)
    monkeypatch.delenv("COCO_ROOT", raising=False)
    (tmp_path / "data" / "birds").mkdir(parents=True)
    birds = str(tmp_path / "data" / "birds")
    for name, data in (("birds", birds), ("birds-h100", birds), ("fish", "DATA")):
        checkpoint = tmp_path / "checkpoints" / name / "captioner" / "checkpoint1.pt"
        command = caption.measuring(checkpoint, argparse.Namespace(sample=False, beams=None, consensus=None))
        assert shlex.split(command)[2:] == ["-c", str(checkpoint), "--data", data]


def test_a_captioner_of_the_usual_folders_is_measured_on_the_usual_data(monkeypatch):
    """Of the self-critical stage's it was not known, and the command said DATA."""
    monkeypatch.delenv("COCO_ROOT", raising=False)
    for stage in ("captioner", "self_critical"):
        checkpoint = default_paths()[f"{stage}_checkpoints"] / "checkpoint1.pt"
        command = caption.measuring(checkpoint, argparse.Namespace(sample=False, beams=None, consensus=None))
        assert shlex.split(command)[2:] == ["-c", str(checkpoint)]


OPTION = r"(?<![\w-])--?[a-z][a-z_-]*"
OF_OTHERS = {"--shm-size", "--ipc", "--nproc_per_node", "-n", "-r"}  # docker, torchrun, srun, pip
SCRIPTS = [
    process_coco, sample_coco, train_encoder, train_captioner, evaluate_captioner, caption, app, export,
    verify,
]  # fmt: skip


def test_every_option_that_an_error_names_is_one_of_a_script(capsys):
    known = set(OF_OTHERS)
    for script in SCRIPTS:
        with pytest.raises(SystemExit):
            script.main(["--help"])
        known |= set(re.findall(OPTION, capsys.readouterr().out))
    named: dict[str, str] = {}
    for folder in (Path(process_coco.__file__).parent, Path(errors.__file__).parent):
        for file in folder.glob("*.py"):
            raised = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Raise))
            parts = (part for node in raised for part in ast.walk(node) if isinstance(part, ast.Constant))
            for text in (part.value for part in parts if isinstance(part.value, str)):
                named |= dict.fromkeys(re.findall(OPTION, text), f"{file.name}: {text}")
    assert len(named) > 8
    assert not {option: text for option, text in named.items() if option not in known}
