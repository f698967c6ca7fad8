"""`train_encoder.py --images`: any folders of images, with no captions and no annotation file."""

import os
import re
import tracemalloc
from pathlib import Path

import pytest
import torch

import train_encoder
from coco.data import CocoData
from coco_loader import ImageOnlyDataset, LoaderOptions, get_coco_loader
from image_transforms import TrainingTransform
from images.image_folders import image_name
from own_data import images_only
from own_data.images_only import ImageFolders
from paths import locations, paths
from support.errors import RunError, UsageError
from tests.conftest import COLOURS, draw
from tests.training_cases import ONE_LAYER, assert_same, ended, record_steps, state_of, write_config

# Not in the order of their names; one with a line end, one that is not UTF-8.
NAMES = [b"b/2.jpg", b"b/10.png", b"a.jpg", b"c/d/e.webp", b"line\nend.jpg", b"\xff.jpg"]
NAMES += [f"more/{number}.jpg".encode() for number in range(9)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Some images in sub-folders, and what is none."""
    folder = tmp_path / "images"
    for number, name in enumerate(NAMES):
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        draw((60 + number, 48), COLOURS[number % 4], COLOURS[(number + 1) % 4]).save(path)
    (folder / "notes.txt").write_text("no image")
    (folder / "b" / "round").symlink_to(folder)
    return folder


@pytest.fixture
def run(folder, tmp_path):
    """Trains a tiny model on the folder, into a folder of its own."""

    def start(out: str, *more: str, images: Path | None = folder, **changes) -> None:
        layers = {"encoder": {**ONE_LAYER}, "decoder": {**ONE_LAYER}, "batch_size": 4}
        config = write_config(tmp_path, "mae_config.yaml", **(layers | changes))
        source = ["--images", str(images), "--val-fraction", "0.2"] if images else []
        train_encoder.main([*source, "--out", str(tmp_path / out), "--config", str(config), *more])

    return start


def names_of(data: ImageFolders, split: str, folder: Path) -> list[str]:
    return [os.path.relpath(data.image_file(split, number), folder) for number in data.image_ids(split)]


def test_all_images_are_in_one_split_and_more_of_them_move_none(folder, capsys):
    data = ImageFolders.find(paths, [str(folder)], 0.2)
    splits = {split: names_of(data, split, folder) for split in ("train", "val")}
    assert sorted(splits["train"] + splits["val"]) == sorted(map(os.fsdecode, NAMES))
    assert all(names == sorted(names) for names in splits.values())
    assert capsys.readouterr().err == (
        "images: left out 1 file of other kinds (1 .txt), 1 link to a folder\n"
    )
    for number in range(43):
        draw((40, 40), "red", "blue").save(folder / f"{number}.jpg")
    more = ImageFolders.find(paths, [str(folder)], 0.2)
    for split, names in splits.items():
        assert set(names) < set(names_of(more, split, folder))
    assert more.digest != data.digest


@pytest.mark.parametrize("spelled", ["./images", "images/", ".//images//", "images/b/.."])
def test_a_folder_may_be_spelled_in_any_way(folder, spelled, monkeypatch):
    monkeypatch.chdir(folder.parent)
    data, same = (ImageFolders.find(paths, [place]) for place in (str(folder), spelled))
    assert same.digest == data.digest
    assert all(same.image_file("train", number).is_file() for number in same.image_ids("train"))


def test_batches_are_those_of_a_data_root_with_the_same_files(folder, tmp_path):
    data = ImageFolders.find(paths, [str(folder)], 0.2)
    root = locations(tmp_path / "root")
    root["train_images"].mkdir(parents=True)
    root["processed"].mkdir()
    files = [data.image_file("train", number) for number in data.image_ids("train")]
    for image_id, file in enumerate(files):
        (root["train_images"] / image_name(image_id)).write_bytes(file.read_bytes())
    torch.save(list(range(len(files))), root["train_image_ids"])
    of = {"mode": "image_only", "shuffle": True, "options": LoaderOptions(seed=3)}
    ours, theirs = (
        list(get_coco_loader("train", 4, TrainingTransform(32), data=each, **of))
        for each in (data, CocoData(root))
    )
    assert len(ours) == len(theirs) >= 3
    for one, other in zip(ours, theirs):
        assert_same((one.images, one.seeds), (other.images, other.seeds))


@pytest.mark.parametrize("cache", [False, True])
def test_a_run_resumes_exactly_and_its_checkpoint_says_what_it_saw(run, folder, tmp_path, cache, capsys):
    run("whole", "--epochs", "2")
    first_line = capsys.readouterr().out.splitlines()[0]
    assert f" images, of 15 images in {folder} · " in first_line
    with pytest.MonkeyPatch.context() as context:
        record_steps(context, stop_after=2)
        with pytest.raises(BaseException, match="SIGTERM"):
            run("parts", cache_images=cache)
    moved = folder.rename(tmp_path / "elsewhere")
    run("parts", "-c", "last", "--epochs", "2", images=moved, cache_images=cache, num_workers=1)
    whole, parts = (state_of(tmp_path / out, "encoder") for out in ("whole", "parts"))
    assert_same(whole["model"], parts["model"])
    assert_same(whole["progress"], parts["progress"])
    assert parts["images"] == {"words": f"15 images in {moved}", "sha256": whole["images"]["sha256"]}


def test_a_changed_folder_is_said_and_in_the_middle_of_an_epoch_refused(run, folder, tmp_path, capsys):
    with pytest.MonkeyPatch.context() as context:
        record_steps(context, stop_after=2)
        with pytest.raises(BaseException, match="SIGTERM"):
            run("out")
    (folder / "a.jpg").rename(folder / "z.jpg")
    with pytest.raises(UsageError, match="in the middle of an epoch it needs the same"):
        run("out", "-c", "last")
    (folder / "z.jpg").rename(folder / "a.jpg")
    run("out", "-c", "last", "--epochs", "1")
    (folder / "more" / "3.jpg").unlink()
    capsys.readouterr()
    run("out", "-c", "last", "--epochs", "2")
    assert f"was begun with --images, 15 images in {folder}, now --images, 14" in capsys.readouterr().err


def test_another_data_root_is_said_and_in_the_middle_of_an_epoch_refused(run, make_tiny_coco, capsys):
    """The same images elsewhere are the same."""
    first, second = (make_tiny_coco(name, train=8, first_id=number) for number, name in enumerate("ab", 5))
    own = {"images": None}
    run("out", "--data", str(first["data"]), "--epochs", "1", **own)
    with pytest.MonkeyPatch.context() as context:
        record_steps(context, stop_after=1)
        with pytest.raises(BaseException, match="SIGTERM"):
            run("out", "-c", "last", "--data", str(first["data"]), **own)
    with pytest.raises(UsageError, match=r"a data root, 8 training images of a, now a data root, .* of b"):
        run("out", "-c", "last", "--data", str(second["data"]), **own)
    moved = first["data"].rename(first["data"].with_name("moved"))
    run("out", "-c", "last", "--data", str(moved), "--epochs", "2", **own)
    assert "other images" not in capsys.readouterr().err
    run("out", "-c", "last", "--data", str(second["data"]), "--epochs", "2", **own)
    said = capsys.readouterr()
    assert "note: this run was begun with a data root" in said.err
    assert "all 2 epochs are done" in said.out


def test_a_run_does_not_change_from_images_to_a_data_root_or_back(run, tmp_path, tiny_coco):
    run("out", "--epochs", "1")
    with pytest.raises(UsageError, match=r"begun with --images, 15 images in .*, not with a data root"):
        run("out", "-c", "last", "--data", str(tiny_coco["data"]), images=None)
    run("root", "--data", str(tiny_coco["data"]), "--epochs", "1", images=None)
    with pytest.raises(
        UsageError, match=r"begun with a data root, \d+ training images of .*, not with --images, 15"
    ):
        run("root", "-c", "last")


def test_unreadable_images_are_named_in_a_line_each_and_too_many_end_the_run(run, folder, capsys):
    for name in NAMES:
        if name != b"a.jpg":
            (folder / os.fsdecode(name)).write_bytes(b"no image")
    with pytest.raises(RunError, match=r"allows 11; put whole files in the places of those named"):
        run("out", max_bad_fraction=0.9)
    said = capsys.readouterr().err
    assert "process_coco" not in said
    assert r"line\nend.jpg: it is" in said
    assert all(re.match("warning: left out: cannot|images: |epoch 1, ", line) for line in said.splitlines())


@pytest.mark.parametrize(
    ("names", "message"),
    [([], "of 0 images 0 fall to validation"), (["a.jpg"], "of 1 images 0 fall"), (["x.txt"], "of 0 images")],
)
def test_a_folder_with_too_few_images_is_one_line(tmp_path, names, message, capsys):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    code, said = ended(train_encoder.main, "--images", tmp_path, "--out", tmp_path / "out", capsys=capsys)
    assert code == 2
    assert message in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "{folder}", "--sample"], "leave out --sample"),
        (["--images", "{folder}", "--data", "x"], "leave out --data"),
        (["--images", "{folder}", "--split-file", "x"], "leave out --split-file"),
        (["--val-fraction", "0.5"], "name these, too"),
        (["--images", "{folder}", "{folder}/b"], "it lies in"),
        (["--images", "{folder}/b/round", "{folder}"], "it lies in"),
        (["--images", "{folder}/a.jpg"], "there is no such folder"),
    ],
)
def test_wrong_use_is_one_line(folder, options, message, capsys):
    options = [option.format(folder=folder) for option in options]
    code, said = ended(train_encoder.main, *options, capsys=capsys)
    assert code == 2
    assert message in said
    assert said.count("\n") == 1


def test_millions_of_images_are_no_millions_of_objects(tmp_path, monkeypatch):
    """ImageNet's paths as Python strings would be copied, page by page, into every loader worker."""
    number = 20_000
    found = (f"{tmp_path}/n0{i % 1000}/ILSVRC2012_{i}.JPEG" for i in range(number))
    monkeypatch.setattr(images_only, "walk", lambda *_: found)
    tracemalloc.start()
    data = ImageFolders.find(paths, [str(tmp_path)], 0.01)
    dataset = ImageOnlyDataset(["train"], TrainingTransform(32), data=data)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    path = len(str(dataset.file_of(0)))
    assert held < number * (path + 30)  # bytes; a string alone takes 50 more than its letters, its place 8
    assert len(dataset) > 0.98 * number
