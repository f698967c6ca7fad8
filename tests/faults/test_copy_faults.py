"""`process_coco.py --resize`, killed while it copies."""

import random
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import process_coco
from images.image_folders import image_name
from images.resized_copies import copy_folder, with_resized
from tests import process_cases

pytestmark = pytest.mark.timeout(600)
PICTURES, KILLS, DEADLINE = 400, 12, 60


def test_copies_are_whole_or_not_there_whenever_the_run_is_killed(make_tiny_coco, tmp_path: Path) -> None:
    """Of 400 pictures; the next run makes what is missing and no other, and no worker outlives its run."""
    data = make_tiny_coco(train=PICTURES)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((480, 360))
    for path in data["train_images"].iterdir():
        picture.save(path)
    flags = ["--source", tmp_path, "--data", data["data"], "--splits", "train"]
    process_coco.main([str(flag) for flag in flags])
    copy_folder(data["train_images"], tmp_path / "expected", 128)
    expected = (tmp_path / "expected" / image_name(9)).read_bytes()

    folder = with_resized(data, 128)["train_images"]
    draw = random.Random(3)
    seen: dict[str, int] = {}
    killed = 0
    for _ in range(KILLS):
        run = process_cases.start("process_coco.py", *flags, "--resize", 128)
        wanted = len(seen) + draw.randrange(1, 25)
        deadline = time.monotonic() + DEADLINE
        while len(list(folder.glob("*.jpg"))) < wanted and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        run.kill()
        killed += run.wait(DEADLINE) == -9
        while process_cases.alive(run) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not process_cases.alive(run)
        assert "Traceback" not in process_cases.stderr_of(run)
        now = {path.name: path.stat().st_ino for path in folder.glob("*.jpg")}
        assert seen.items() <= now.items(), "a copy that was there was made again"
        assert all((folder / name).read_bytes() == expected for name in now)
        seen = now
    print(f"{killed} kills, {len(seen)} copies")
    assert killed == KILLS
    assert len(seen) < PICTURES, "the last kill came too late to leave anything to do"
    process_coco.main([*(str(flag) for flag in flags), "--resize", "128"])
    assert len(list(folder.iterdir())) == PICTURES, "and no temporary file"
    assert all(path.read_bytes() == expected for path in folder.iterdir())
