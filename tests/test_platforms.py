"""What differs from one machine to another: the home folder, COCO_ROOT, and what Windows lacks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from paths import ROOT as RELATIVE_ROOT
from paths import coco_root, default_paths
from support.command_line import Parser
from tests.conftest import draw
from tests.training_cases import ROOT, train_captions, train_mae, write_config

# --- the home folder, and COCO_ROOT ---


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["--out=~/runs"], "{home}/runs"),  # bash leaves this one alone
        (["--out", "~/runs"], "{home}/runs"),  # and this one, where it stands in quotation marks
        (["--out=~"], "{home}"),
        (["--out=~nobody-of-this-name/x"], "~nobody-of-this-name/x"),
        (["--out=a~b"], "a~b"),
        (["--out", "~kept"], "~kept"),  # a file may be called so
        (["--out=./~/x"], "./~/x"),
    ],
)
def test_a_tilde_is_the_home_folder(home, words, place):
    """A folder called `~` was made in the working directory."""
    parser = Parser()
    parser.add_argument("--out")
    assert parser.parse_args(words).out == place.format(home=home)


@pytest.mark.parametrize(
    ("value", "place"),
    [(None, None), ("", None), ("  ", None), ("~/coco", "{home}/coco"), ("/mnt/coco", "/mnt/coco")],
)
def test_coco_root_may_be_empty_or_begin_at_home(home, monkeypatch, value, place):
    monkeypatch.delenv("COCO_ROOT", raising=False)
    if value is not None:
        monkeypatch.setenv("COCO_ROOT", value)
    expected = Path(place.format(home=home)) if place else RELATIVE_ROOT / "data" / "coco"
    assert coco_root() == default_paths()["data"] == expected


# --- Windows ---

# A process that lacks what Windows lacks: modules, functions of `os` and `signal`, and a way between two
# drives.  To start one takes seconds, so it runs several scripts.
WINDOWS = f"""
import json, os, signal, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
for module, names in (
    (os, "sync sched_getaffinity getuid geteuid fchmod"),
    (signal, "pthread_sigmask sigwaitinfo SIGBUS SIGKILL"),
):
    for name in names.split():
        delattr(module, name)
def relpath(path, start=None): raise ValueError("path is on mount 'C:', start on mount 'D:'")
os.path.relpath = relpath
sys.path.insert(0, {str(ROOT)!r})
import caption, evaluate_captioner, process_coco, train_encoder
from support import command_line
evaluate_captioner.NUM_WORKERS = 0
for script, *words in json.loads(sys.argv[1]):
    try:
        command_line.run(lambda: globals()[script].main(words))
    except SystemExit as end:
        print(script, "ended with", end.code)
"""


def test_windows_captions_and_evaluates_and_is_told_what_it_cannot(make_tiny_coco, tmp_path):
    """`import fcntl` ended every script on Windows, caption.py too."""
    paths = make_tiny_coco(train=2, val=2, unlabeled=1)
    out, config = tmp_path / "out", write_config(tmp_path, "captioner_config.yaml")
    train_mae(paths["data"], out, write_config(tmp_path, "mae_config.yaml"), "--epochs", "1")
    train_captions(paths["data"], out, config, "-p", "last", "--epochs", "1")
    checkpoint = str(out / "captioner" / "checkpoint1.pt")
    draw((40, 30), "red", "blue").save(tmp_path / "x.png")
    script = tmp_path / "windows.py"
    script.write_text(WINDOWS)
    calls = [
        ["caption", "-c", checkpoint, "x.png"],
        ["evaluate_captioner", "-c", checkpoint, "--data", str(paths["data"]), "--beams", "1"],
        ["train_encoder"],
        ["process_coco", "--captions-only", "--data", str(paths["data"])],
    ]
    command = [sys.executable, str(script), json.dumps(calls)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    captioned, *_, bleu, trained, processed = ended.stdout.splitlines()
    assert captioned.startswith("x.png: "), ended.stderr
    assert bleu.startswith("BLEU-4 ")
    assert (trained, processed) == ("train_encoder ended with 2", "process_coco ended with 2")
    assert (
        "training needs Linux or macOS; caption.py and evaluate_captioner.py run on Windows" in ended.stderr
    )
    assert "preparing a data set needs Linux or macOS" in ended.stderr
    assert "Traceback" not in ended.stderr
