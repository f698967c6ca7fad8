"""Every flag of every script with a bad value: exit 2, and one line that names the flag or the value."""

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import app
import caption
import evaluate_captioner
import export
import process_coco
import sample_coco
import train_captioner
import train_encoder
from support import __version__, command_line
from tests.training_cases import ended, train_captions, train_mae, write_config

SCRIPTS = {
    "process_coco": process_coco.main,
    "sample_coco": sample_coco.main,
    "train_encoder": train_encoder.main,
    "train_captioner": train_captioner.main,
    "evaluate_captioner": evaluate_captioner.main,
    "caption": caption.main,
    "app": app.main,
    "export": export.main,
}
LONG = "n" * 5000  # no file system has such a name

# By flag, bad values.  Those with a brace are places in the test's own folder, made by `world`.
CHECKPOINTS = ["nowhere.pt", "{folder}", "{text}", "{picture}", "", LONG]
NUMBERS = ["0", "-1", "1.5", "x", "", "nan", "1e3", "1_0", "9" * 5000]
FRACTIONS = ["0", "-0.5", "1.01", "x", "", "nan", "inf", "9" * 5000]
BAD = {
    "--config": ["nowhere.yaml", "{folder}", "{text}", "{picture}", "{text}/inside.yaml", LONG],
    "--set": [
        "learning_rate",
        "=1",
        "learning_rate=",
        "learning_rate=abc",
        "no_such=1",
        "seed=[",
        "seed.x=1",
        "encoder=5",
        "decoder.x=1",
        "no_such=" + LONG,
        LONG,
    ],
    "--data": ["{nowhere}", "{folder}", "{text}", LONG],
    "--out": ["{text}", "{text}/inside", LONG],
    "--subset": FRACTIONS,
    "--split-file": ["nowhere.json", "{folder}", "{text}", "{picture}", "{text}/inside.json", LONG],
    "--epochs": NUMBERS,
    "--beams": [*NUMBERS, "101"],
    "--consensus": ["-1", "1001", "1.5", "x", ""],
    "--host": ["nowhere", "127.0.0", "", LONG],
    "--port": [*NUMBERS, "65536"],
    "--n-best": [*NUMBERS, "101", "99"],
    "--explain": ["{text}", "{text}/inside.png", "", LONG],
    "--split": ["test", "x", ""],
    "--splits": ["all", "", "train,val"],
    "--source": ["{nowhere}", "{text}", "", LONG, "ftp://coco"],
    "--own": ["nowhere", "{text}", "", LONG],
    "--val-fraction": FRACTIONS,
    "--images": ["{nowhere}", "{text}", "", LONG],
    "--caption-files": ["nowhere.txt", ""],
    "--caption-column": ["text", ""],
    "--resize": [*NUMBERS, "63", "1025"],
    "--vocabulary-size": [*NUMBERS, "259", "1000001"],
    "--references": ["theirs", ""],
    "--unit": ["letter", ""],
    "--seed": ["x", "", "1.5"],
    "--report": ["{text}/inside.html", "", LONG],
    "--encoder": CHECKPOINTS,
    "-c": CHECKPOINTS,
    "-p": CHECKPOINTS,
    "pictures": ["{nowhere}", "{folder}", "{text}/inside.jpg", "", LONG],
    "--metrics": ["nowhere.json", "{folder}", "{text}", "", LONG],
    "--trained-on": ["imagenet", ""],
    "place": ["{folder}", "{text}/inside.pt", "", LONG],
}
SWITCHES = {
    "--sample",
    "--captions-only",
    "--checkpoint",
    "--keep-accents",
    "--keep-archives",
    "--copy",
    "--check",
    "--from-scratch",
    "--self-critical",
    "--json",
    "--recursive",
    "--encoder",
    "--onnx",
    "--tensorboard",
    "--help",
    "--version",
}


class Found(Exception):  # noqa: N818 - what a test looks for
    """Carries a script's parser out of its `main`."""


def parser_of(main: Callable, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    def reveal(self: argparse.ArgumentParser, *_: object) -> None:
        raise Found(self)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", reveal)
        with pytest.raises(Found) as caught:
            main()
    return caught.value.args[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory, request):
    """A data set, configurations and checkpoints that are good, and places that are not."""
    from tests.conftest import make_tiny_coco

    folder = tmp_path_factory.mktemp("world")
    data = make_tiny_coco.__wrapped__(folder)(train=3, val=2, unlabeled=1)["data"]
    configs = {name: write_config(folder, f"{name}_config.yaml") for name in ("mae", "captioner")}
    train_mae(data, folder / "out", configs["mae"], "--epochs", "1")
    train_captions(data, folder / "out", configs["captioner"], "-p", "last", "--epochs", "1")
    (folder / "folder").mkdir()
    (folder / "text").write_text("not: {what, it\nshould: [be")
    Image.new("RGB", (40, 30), "red").save(folder / "picture.png")
    return folder, data, configs


def good_arguments(script: str, world) -> dict[str, list[str]]:
    """By flag, what lets a script run through; a test replaces one of them."""
    folder, data, configs = world
    place = {"--data": [str(data)], "--out": [str(folder / "again")]}
    return {
        "process_coco": {"--data": [str(folder / "new")], "--source": [str(folder)]},
        "sample_coco": {"--data": [str(folder / "drawn")]},
        "train_encoder": {**place, "--config": [str(configs["mae"])], "--epochs": ["1"]},
        "train_captioner": {
            **place,
            "--config": [str(configs["captioner"])],
            "--epochs": ["1"],
            "-p": [str(folder / "out" / "encoder" / "checkpoint1.pt")],
        },
        "evaluate_captioner": {
            "--data": [str(data)],
            "--out": [str(folder / "results.json")],
            "-c": [str(folder / "out" / "captioner" / "checkpoint1.pt")],
        },
        "caption": {
            "pictures": [str(folder / "picture.png")],
            "-c": [str(folder / "out" / "captioner" / "checkpoint1.pt")],
            "--out": [str(folder / "out")],
        },
        "export": {
            "-c": [str(folder / "out" / "captioner" / "checkpoint1.pt")],
            "--checkpoint": [],
            "place": [str(folder / "taken_away.pt")],
        },
        "app": {
            "-c": [str(folder / "out" / "captioner" / "checkpoint1.pt")],
            "--out": [str(folder / "out")],
        },
    }[script]


def command(arguments: dict[str, list[str]]) -> list[str]:
    positional = arguments.pop("pictures", []) + arguments.pop("place", [])
    return [word for flag, values in arguments.items() for word in (flag, *values)] + positional


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_has_bad_values_here(script, monkeypatch):
    """A new flag makes this fail until a bad value of it is tried below."""
    for action in parser_of(SCRIPTS[script], monkeypatch)._actions:
        names = set(action.option_strings) or {action.dest}
        assert names & (SWITCHES if action.nargs == 0 else set(BAD)), names


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_bad_value_is_one_line_that_names_it(script, world, monkeypatch, capsys):
    folder = world[0]
    places = {"folder": folder / "folder", "text": folder / "text", "picture": folder / "picture.png"}
    places["nowhere"] = folder / "nowhere"
    tried = 0
    for action in parser_of(SCRIPTS[script], monkeypatch)._actions:
        names = set(action.option_strings) or {action.dest}
        if action.nargs == 0:
            continue
        (flag,) = names & set(BAD)
        for template in BAD[flag]:
            value = template.format(**places)
            if script in ("process_coco", "sample_coco") and template in ("{nowhere}", "{folder}"):
                continue  # they make it
            if script in ("caption", "export", "app") and flag == "--out":
                continue  # of no use beside a checkpoint that is named by its path
            if script == "evaluate_captioner" and flag == "--out" and template == "{text}":
                value = str(folder / "folder")  # here it is a file, and must not be a folder
            arguments = good_arguments(script, world) | {flag: [value]}
            if flag == "-c" and "-p" in arguments:
                del arguments["-p"]
            code, message = ended(SCRIPTS[script], *command(arguments), capsys=capsys)
            line = f"{script} {flag} {value:.80}: {message:.500}"
            assert code == 2, line
            assert message.count("\n") == 1, line
            said = message.partition(": ")[2]  # the name before it is the caller's, under xdist "-c"
            places_named = [part[:40] for part in Path(value).parts[-2:]]
            assert any(name in said for name in (*names, *places_named, "an empty value")), line
            assert len(message) < 12_000, line
            tried += 1
    assert tried >= 3
    assert not (folder / "nowhere").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_unknown_flags_and_switches_with_a_value_are_one_line(script, world, capsys):
    for more in (["--no-such-flag"], ["--no-such-flag=1"], ["--help=5"]):
        code, message = ended(SCRIPTS[script], *command(good_arguments(script, world)), *more, capsys=capsys)
        assert code == 2
        assert message.count("\n") == 1, message
        assert more[0].partition("=")[0] in message


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_tells_the_version(script, capsys):
    with pytest.raises(SystemExit) as ending:
        command_line.run(lambda: SCRIPTS[script](["--version"]))
    assert ending.value.code == 0
    assert capsys.readouterr().out == f"image-captioner {__version__}\n"


def test_memory_that_is_not_there_is_one_line(capsys):
    """The commonest failure of all, and torch's page of traceback hides what to do about it."""
    import torch

    def too_much() -> None:
        torch.empty(2**55, dtype=torch.uint8)

    with pytest.raises(SystemExit) as ending:
        command_line.run(too_much)
    message = capsys.readouterr().err
    assert ending.value.code == 1
    assert message.count("\n") == 1
    assert "not enough memory" in message
