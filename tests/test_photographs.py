"""`make photographs`: all stages in a row, stopped in two ways, called again, and when all is done."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training_cases import ONE_LAYER, ROOT, write_config
from training import checkpoints

# Runs a script; at the second step of the stage that the file `stop` names, a signal comes as it says, once.
RUN = """
import os, runpy, signal, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, os.getcwd())
from training.loop import Trainer
stop, queue_step, steps = __file__ + ".stop", Trainer.queue_step, []
stage = "self_critical" if "--self-critical" in sys.argv else sys.argv[0]

def stopped(trainer, *given):
    steps.append(1)
    if len(steps) == 2 and os.path.exists(stop):
        where, how = open(stop).read().split()
        if where == stage:
            os.unlink(stop)
            os.killpg(0, signal.SIGINT) if how == "Ctrl-C" else os.kill(os.getppid(), signal.SIGTERM)
            signal.sigtimedwait([], 1)  # make's signal is on its way
    return queue_step(trainer, *given)

Trainer.queue_step = stopped
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def make(make_tiny_coco, tmp_path):
    """A function that calls `make photographs` with tiny models, to be stopped in a stage or not."""
    data = make_tiny_coco(train=10, val=4, unlabeled=3)["data"]
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    shorter = {"total_epochs": 2, "decoder": {**ONE_LAYER}}
    for name, more in {
        "mae_config.yaml": {"encoder": {**ONE_LAYER}},
        "captioner_config.yaml": {"self_critical_epochs": 2, "self_critical_samples": 2},
    }.items():
        write_config(recipe, name, **shorter, **more).rename(recipe / name)
    run = tmp_path / "run.py"
    run.write_text(RUN)

    def call(stop: str = "") -> tuple[int, str]:
        if stop:
            Path(f"{run}.stop").write_text(stop)
        done = subprocess.run(
            ["make", "photographs", f"DATA={data}", f"RECIPE={recipe}", f"CHECKPOINTS={tmp_path / 'out'}",
             f"RUN={sys.executable} {run}"],
            cwd=ROOT, start_new_session=True, capture_output=True, text=True,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    return call


@pytest.mark.timeout(600)
def test_it_goes_on_where_it_was_stopped_and_does_nothing_when_all_is_done(make, tmp_path):
    out = tmp_path / "out"
    code, said = make("train_encoder.py Ctrl-C")
    assert code != 0
    assert "stopped by SIGINT" in said
    assert [path.name for path in checkpoints.existing(out / "encoder")] == ["checkpoint0-step2.pt"]
    assert not (out / "captioner").exists(), "the next stage began on a stage that was stopped"

    code, said = make("self_critical SIGTERM")
    assert code != 0
    assert "stopped by SIGTERM" in said
    assert [path.name for path in checkpoints.existing(out / "self_critical")] == ["checkpoint0-step2.pt"]
    for stage in ("encoder", "captioner"):
        assert checkpoints.existing(out / stage)[-1].name == "checkpoint2.pt"

    code, said = make()
    assert code == 0, said
    assert said.count("epochs are done") == 2
    assert "BLEU-4" in said
    assert checkpoints.existing(out / "self_critical")[-1].name == "checkpoint2.pt"
    assert (out / "report.html").stat().st_size > 1000

    files = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    code, said = make()
    assert code == 0, said
    assert said.count("all 2 epochs are done") == 3
    assert "BLEU-4" not in said
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == files


def test_each_data_root_has_checkpoints_of_its_own():
    """One for all of them: with a second root, `make photographs` did nothing and was content."""
    folders = {}
    for data in ("data/first", "data/second/", "/some where/third", "second"):
        command = ["make", "-n", "photographs", f"DATA={data}", f"RUN={sys.executable}"]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        (folders[data],) = {*re.findall(r"--out '(\S+)'", said)}
    assert folders == {
        "data/first": "checkpoints/first", "data/second/": "checkpoints/second",
        "/some where/third": "checkpoints/third", "second": "checkpoints/second",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["Tom & Ann", "photos (1)"])
def test_a_name_with_signs_that_a_shell_heeds_stays_one_word(name):
    command = ["make", "-n", "photographs", f"DATA=data/{name}", "RUN=run"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [shlex.split(line) for line in said.replace("\\\n", " ").splitlines() if line.startswith("run ")]
    folder = f"checkpoints/{name.replace(' ', '-')}"
    assert [line[line.index("--out") + 1] for line in lines[:3]] == [folder] * 3
    assert lines[3][-1] == f"{folder}/report.html"
    assert all(line[line.index("--data") + 1] == f"data/{name}" for line in lines)


def test_without_a_data_root_it_says_so():
    command = ["make", "photographs", f"RUN={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("name a data root: make photographs DATA=DIR\n")
