"""`make gpu`: its parts one after the other, what it keeps of them, and their toys on a CPU."""

import argparse
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import gpu, pack, run
from support.errors import UsageError

STUBBORN = (
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('begun', flush=True); time.sleep(99)"
)


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Calls the command; its parts are Python programs, given by name."""
    monkeypatch.setattr(gpu, "LEAST", 0)
    monkeypatch.setattr(gpu, "TIME_TO_END", 1)

    def call(programs: dict[str, str], *more: str) -> dict:
        monkeypatch.setattr(gpu, "commands", lambda part, *_: [sys.executable, "-c", programs[part]])
        gpu.main(["--out", str(tmp_path / "found"), "--only", ",".join(programs), *more])
        return json.loads((tmp_path / "found" / "gpu.json").read_text())

    return call


@pytest.mark.parametrize("photographs", [True, False])
def test_a_pack_may_have_no_photographs(photographs, tmp_path):
    """Four of five measuring parts refused the folder that was not there."""
    (tmp_path / "pack" / ("photographs" if photographs else "data")).mkdir(parents=True)
    options = argparse.Namespace(out=tmp_path, original=None)
    command = gpu.commands("loading", options, tmp_path / "pack", tmp_path)
    assert ("--pictures" in command) == photographs
    assert "--data" in command


def test_its_parts_run_from_wherever_it_is_called(tmp_path):
    """They run in the repository; the script's path was as seen from where the command was called."""
    finding = "import sys; sys.path.insert(0, sys.argv[1]); from benchmarks import gpu; "
    finding += "print(gpu.measure('steps')[1])"
    done = subprocess.run(
        [sys.executable, "-c", finding, str(gpu.ROOT)],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(done.stdout.strip()).is_absolute()


def test_a_part_that_fails_or_hangs_is_reported_and_the_next_one_runs(script, tmp_path, monkeypatch, capsys):
    """The one that hangs would not obey SIGTERM, and is not asked: it has no checkpoint to write."""
    monkeypatch.setitem(gpu.LIMITS, "bench", 5)
    monkeypatch.setattr(gpu, "TIME_TO_END", 60)
    programs = {"tests": "print('one'); exit(3)", "bench": STUBBORN, "steps": "print('three')"}
    with pytest.raises(SystemExit, match="1"):
        script(programs)
    found = json.loads((tmp_path / "found" / "gpu.json").read_text())["parts"]
    ended = {"tests": "failed (exit code 3)", "bench": "cut off", "steps": "done"}
    assert {part["part"]: part["ended"] for part in found} == ended
    assert all(part["seconds"] < 30 for part in found)
    text = (tmp_path / "found" / "gpu.txt").read_text()
    assert text == capsys.readouterr().out
    for line in ("no GPU here: every part runs on the CPU, with toys", "    one", "    begun", "    three"):
        assert line in text.replace("[    0 s] ", "").splitlines()


def test_the_speedrun_has_time_for_a_checkpoint_when_its_time_is_over(script, tmp_path):
    program = "import signal, time; signal.signal(15, lambda *_: print('saved') or exit()); time.sleep(99)"
    script({"speedrun": program}, "--minutes", "0.06")
    assert "    saved" in (tmp_path / "found" / "gpu.txt").read_text().splitlines()


def test_a_part_has_no_more_time_than_is_left(script, monkeypatch):
    monkeypatch.setattr(gpu, "TIME_TO_END", 0)
    found = script({"speedrun": "import time; time.sleep(99)"}, "--minutes", "0.05")
    assert [part["ended"] for part in found["parts"]] == ["cut off"]


def test_the_speedrun_is_told_where_data_and_results_are(tmp_path, make_tiny_coco, monkeypatch):
    monkeypatch.setattr(gpu, "LEAST", 0)
    paths = make_tiny_coco()
    packed, out = tmp_path / "pack.tar", tmp_path / "found"
    pack.main(["--data", str(paths["data"]), "--out", str(packed)])
    command = 'ls $COCO_ROOT/train2017 | wc -l > "$OUT/count"'
    gpu.main(["--out", str(out), "--only", "speedrun", "--pack", str(packed), "--speedrun", command])
    assert int((out / "count").read_text()) == 6


def test_wrong_use_is_one_line(tmp_path):
    for options, message in {
        ("--only", "tests,benches"): "'benches' is none of tests, bench",
        ("--pack", str(tmp_path / "none.tar")): "make it with benchmarks/pack.py",
        ("--minutes", "0"): "must be above 0",
    }.items():
        with pytest.raises(UsageError, match=message):
            gpu.main(["--out", str(tmp_path), *options])


def test_tests_and_their_figures_are_kept(tmp_path):
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite><testcase classname="a" name="one" time="1.5"><properties>'
        '<property name="GB" value="3"/></properties></testcase><testcase classname="a" name="two" time="2">'
        '<failure message="no"/></testcase></testsuite></testsuites>'
    )
    gpu.keep("tests", tmp_path, tmp_path)
    one, two = json.loads((tmp_path / "tests.json").read_text())
    assert one == {
        "test": "one", "file": "a", "seconds": 1.5, "outcome": "passed", "message": "", "GB": "3"
    }  # fmt: skip
    assert (two["outcome"], two["message"]) == ("failure", "no")


def test_a_pack_holds_small_images_and_whole_photographs(tmp_path, make_tiny_coco):
    paths = make_tiny_coco(size=(400, 300))
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    Image.effect_noise((640, 480), 50).save(photographs / "1.jpg")
    out = tmp_path / "pack.tar"
    pack.main(["--data", str(paths["data"]), "--photographs", str(photographs), "--out", str(out)])
    with tarfile.open(out) as file:
        file.extractall(tmp_path / "there", filter="data")
    there = tmp_path / "there"
    assert (there / "photographs" / "1.jpg").read_bytes() == (photographs / "1.jpg").read_bytes()
    for split in ("train", "val", "unlabeled"):
        for image in paths[f"{split}_images"].iterdir():
            with Image.open(there / "data" / f"{split}2017" / image.name) as small:
                assert small.size == (149, 112)
    for file in paths["processed"].iterdir():
        assert (there / "data" / "processed" / file.name).read_bytes() == file.read_bytes()


# --- the toys ---


@pytest.mark.parametrize(
    ("subject", "work"),
    [
        ("steps", "MAE step, modern, eager"),
        ("search", "beam search, eager"),
        ("feeding", "decoding of JPEGs"),
    ],
)
def test_a_subject_runs_as_a_toy(subject, work, tmp_path, make_tiny_coco):
    paths = make_tiny_coco()
    options = ["--only", subject, "--quick", "--repeats", "1", "--device", "cpu"]
    options += ["--pictures", str(paths["train_images"]), "--data", str(paths["data"])]
    run.main([*options, "--out", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert work in {row["what"] for row in rows}
    assert all(row["rate"] > 0 for row in rows)


def test_nothing_is_measured_in_a_rehearsal(tmp_path):
    options = ["--only", "steps", "--quick", "--device", "cpu", "--rehearse"]
    run.main([*options, "--out", str(tmp_path / "rows.json")])
    assert (
        not (tmp_path / "rows.json").exists() or not json.loads((tmp_path / "rows.json").read_text())["rows"]
    )
