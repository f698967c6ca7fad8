"""process_coco.py as two real processes on one data root, of which one is killed, or both."""

import json
import random
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from coco.inventory import ARCHIVES
from tests.test_process_coco import IDS, REPOSITORY, annotations, image_name, jpeg, make_source

pytestmark = pytest.mark.timeout(600)
DEADLINE = 60  # seconds for what takes three
# What is there first when a run has come so far.
STAGES = ("annotations.partial", "train2017.partial", "val2017", "unlabeled2017.partial")
STAGES += ("processed/tokenizer.json", "processed/train_image_ids.pt", "processed/val_image_ids.pt")


def a_longer_source(folder: Path) -> Path:
    """With 1,000 training pictures, so that unpacking is more than a moment."""
    ids = [*IDS["train"], *range(10_000, 11_000)]
    make_source(folder, {"train": annotations(ids)})
    picture = jpeg(0)
    with zipfile.ZipFile(folder / ARCHIVES["train"], "w") as file:
        for image_id in ids:
            file.writestr(f"train2017/{image_name(image_id)}", picture)
    return folder


def start(source: Path, data: Path) -> subprocess.Popen:
    command = [sys.executable, "process_coco.py", "--source", source, "--data", data]
    with open(data.with_suffix(".log"), "a") as log:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)


def wait_for(path: Path, run: subprocess.Popen) -> None:
    deadline = time.monotonic() + DEADLINE
    while not path.exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)


def files_in(data: Path) -> dict[str, bytes | dict]:
    """All that is there, but the lock; the record as values, for its order is that of the work."""
    files = {str(path.relative_to(data)): path.read_bytes() for path in data.rglob("*") if path.is_file()}
    files.pop(".lock")
    return files | {"processed/record.json": json.loads(files["processed/record.json"])}


def test_two_processes_of_which_some_are_killed_end_in_the_right_files(tmp_path: Path) -> None:
    """The one at work, the one that waits, or both, at every stage; then the other, or the next, finishes."""
    draw = random.Random(5)
    source = a_longer_source(tmp_path / "source")
    assert start(source, tmp_path / "alone").wait(DEADLINE) == 0
    expected = files_in(tmp_path / "alone")
    killed = {"worker": 0, "waiting": 0, "both": 0}
    for number, (stage, whom) in enumerate((stage, whom) for stage in STAGES for whom in killed):
        data = tmp_path / f"{number}"
        runs = [worker := start(source, data)]
        try:
            wait_for(data / ".lock", worker)
            runs.append(waiting := start(source, data))
            wait_for(data / stage, worker)
            time.sleep(draw.uniform(0, 0.05))
            victims = {"worker": [worker], "waiting": [waiting], "both": [worker, waiting]}[whom]
            for victim in victims:
                victim.kill()
            codes = {run.wait(DEADLINE) for run in runs if run not in victims}
            assert codes <= {0}, data.with_suffix(".log").read_text()
            killed[whom] += all(victim.wait(DEADLINE) == -9 for victim in victims)
        finally:
            for run in runs:
                run.kill()
                run.wait(DEADLINE)
        if whom == "both":
            assert start(source, data).wait(DEADLINE) == 0
        assert files_in(data) == expected, (stage, whom)
        assert "Traceback" not in data.with_suffix(".log").read_text()
    print(f"killed: {killed}; all ended in the right files")
    assert min(killed.values()) >= len(STAGES) - 2
