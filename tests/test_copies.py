"""Pre-resized copies: what they show, when they are made again, and who reads them."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin
from torchvision.transforms.v2 import functional as F

import coco_samples
import process_coco
from coco.data import CocoData
from coco.split_file import SplitFile, folder_splits
from coco_loader import get_coco_loader
from image_transforms import EvaluationTransform, TrainingTransform, load_image
from images.image_folders import image_name
from images.resized_copies import copy_folder, with_resized
from support.errors import RunError, UsageError
from support.files import Record
from tests.training_cases import ROOT, ended, train_captions, train_mae, write_config
from training import checkpoints

SIZE = 64


def smooth(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture whose colours change slowly, so that no way of resizing can differ much from another."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # as a camera notes that it was held upright
    return exif


PICTURES = {  # id: picture, how it is saved, and the size that its copy must have
    1: (smooth(300, 200), {"format": "JPEG"}, (96, 64)),
    2: (smooth(150, 427), {"format": "JPEG", "progressive": True}, (64, 182)),
    3: (smooth(200, 200, "L"), {"format": "JPEG"}, (64, 64)),
    4: (smooth(300, 200, "CMYK"), {"format": "JPEG"}, (96, 64)),
    5: (smooth(300, 200), {"format": "JPEG", "exif": turned()}, (64, 96)),
    6: (smooth(40, 30), {"format": "JPEG"}, (40, 30)),  # never enlarged
    7: (smooth(2000, 20), {"format": "JPEG"}, (2000, 20)),
    8: (smooth(200, 300, "LA"), {"format": "PNG"}, (64, 96)),
}


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for image_id, (picture, options, _) in PICTURES.items():
        picture.save(folder / image_name(image_id), **options)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def inodes(folder: Path) -> dict[str, int]:
    """What changes when a file is made again, even if the new one is equal."""
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


# ---------------------------------------------------------------------------------------- the copies


def test_a_copy_shows_what_its_original_shows(originals, tmp_path):
    """Grey, CMYK, turned, transparent or small: upright RGB, its pixels near torchvision's resize."""
    copies = tmp_path / "copies"
    assert copy_folder(originals, copies, SIZE) == 0
    assert sorted(contents(copies)) == sorted(contents(originals))
    reference = io.BytesIO()
    smooth(64, 64).save(reference, "JPEG", quality=95)
    for image_id, (_, _, (width, height)) in PICTURES.items():
        original, copy = originals / image_name(image_id), copies / image_name(image_id)
        with Image.open(copy) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (width, height))
            assert image.quantization == Image.open(reference).quantization
            assert JpegImagePlugin.get_sampling(image) == 2  # 4:2:0
            assert not image.getexif()
        expected = F.resize(load_image(original), [height, width], antialias=True)
        difference = (load_image(copy).int() - expected.int()).abs().float()
        assert difference.mean() < 3, image_id
        assert copy.stat().st_mtime_ns == original.stat().st_mtime_ns


def test_what_a_killed_run_left_is_completed_and_not_made_again(originals, tmp_path):
    """Half of the copies; one cut and one of zeros, as a power cut leaves them; half a temporary file."""
    copies = tmp_path / "copies"
    copy_folder(originals, copies, SIZE)
    whole = contents(copies)
    missing, cut, zeros = (image_name(number) for number in (1, 2, 3))
    (copies / missing).rename(copies / f"{missing}.tmp")
    with open(copies / f"{missing}.tmp", "r+b") as file:
        file.truncate(500)
    for name, data in ((cut, whole[cut][:500]), (zeros, bytes(len(whole[zeros])))):
        stamp = (copies / name).stat().st_mtime_ns
        (copies / name).write_bytes(data)
        os.utime(copies / name, ns=(stamp, stamp))
    before = inodes(copies)
    assert copy_folder(originals, copies, SIZE) == 0
    assert contents(copies) == whole
    after = inodes(copies)
    assert all(after[name] == before[name] for name in whole if name not in (missing, cut, zeros))


def test_a_changed_original_is_copied_again_and_no_other(originals, tmp_path):
    copies = tmp_path / "copies"
    copy_folder(originals, copies, SIZE)
    before = inodes(copies)
    stamp = (originals / image_name(1)).stat().st_mtime_ns
    smooth(300, 200, seed=1).save(originals / image_name(1), "JPEG")
    os.utime(originals / image_name(1), ns=(stamp, stamp - 10**9))  # older, as from another archive
    copy_folder(originals, copies, SIZE)
    after = inodes(copies)
    assert {name for name in after if after[name] != before[name]} == {image_name(1)}
    expected = F.resize(load_image(originals / image_name(1)), [64, 96], antialias=True)
    assert (load_image(copies / image_name(1)).int() - expected.int()).abs().float().mean() < 2


# ---------------------------------------------------------------------------------------- the command


@pytest.fixture
def data(make_tiny_coco) -> dict[str, Path]:
    return make_tiny_coco(size=(200, 150))


def process(data: dict[str, Path], *flags: str, splits: tuple[str, ...] = ("train", "val")) -> None:
    nowhere = data["data"].parent  # all pictures are there, so no archive is looked for
    process_coco.main(["--source", str(nowhere), "--data", str(data["data"]), "--splits", *splits, *flags])


def test_the_command_copies_the_splits_asked_for_and_then_nothing(data, capsys):
    process(data, "--resize", "64")
    copies = with_resized(data, 64)
    for split, count in (("train", 6), ("val", 4)):
        assert len(contents(copies[f"{split}_images"])) == count
    assert not copies["unlabeled_images"].exists()
    before = inodes(copies["train_images"])
    capsys.readouterr()
    process(data, "--resize", "64")
    assert "nothing to do" in capsys.readouterr().out
    assert inodes(copies["train_images"]) == before


def test_the_second_run_imports_nothing_heavy(data):
    process(data, "--resize", "64", splits=("train",))
    code = (
        "import sys, process_coco; process_coco.main(sys.argv[1:]); "
        "assert not {'torch', 'numpy', 'PIL'} & set(sys.modules), sorted(sys.modules)"
    )
    flags = ["--data", str(data["data"]), "--splits", "train", "--resize", "64"]
    command = [sys.executable, "-c", code, "--source", str(data["data"].parent), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout


@pytest.mark.parametrize("harm", ["lost", "emptied", "original changed"])
def test_harm_done_later_is_noticed_and_repaired(data, harm):
    process(data, "--resize", "64")
    folder = with_resized(data, 64)["train_images"]
    whole = contents(folder)
    victim = sorted(folder.iterdir())[2]
    if harm == "original changed":
        smooth(200, 150).save(data["train_images"] / victim.name, "JPEG", quality=95)
        process(data)  # which looks at the pictures, and not at their copies
    elif harm == "lost":
        victim.unlink()
    else:
        victim.write_bytes(b"")
    assert chosen(data) is None
    process(data, "--resize", "64")
    assert chosen(data) == 64
    differing = [name for name, data in contents(folder).items() if data != whole[name]]
    assert differing == ([victim.name] if harm == "original changed" else [])


def test_an_unreadable_picture_is_named_and_costs_no_other_its_copy(data, capsys):
    victims = sorted(data["train_images"].iterdir())[1:3]
    process(data)  # the command has found all whole, and knows them by their number and size
    for victim in victims:
        size = victim.stat().st_size
        victim.write_bytes(victim.read_bytes()[: size // 2] + bytes(size - size // 2))
    capsys.readouterr()
    code, said = ended(
        process_coco.main, "--source", data["data"].parent, "--data", data["data"],
        "--splits", "train", "val", "--resize", "64", capsys=capsys,
    )  # fmt: skip
    assert code == 1
    assert "2 of 10 pictures cannot be read, all others are copied" in said
    assert len(contents(with_resized(data, 64)["train_images"])) == 4
    assert len(contents(with_resized(data, 64)["val_images"])) == 4
    assert chosen(data) is None
    assert chosen(data, ["val"]) == 64
    with pytest.raises(RunError):  # nor is the error forgotten
        process(data, "--resize", "64")
    listed = capsys.readouterr().out
    assert all(f"{victim}: " in listed for victim in victims)


def test_no_room_is_said_before_the_first_copy(data, monkeypatch):
    process(data)
    monkeypatch.setattr("support.files.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10 * 2800}))
    with pytest.raises(RunError, match=r"copying pictures to 64 pixels needs .* --data"):
        process(data, "--resize", "64")
    assert not with_resized(data, 64)["train_images"].exists()
    process(data, "--resize", "64", splits=("val",))  # four need less


def test_copies_of_no_pictures_are_refused(data, capsys):
    code, said = ended(
        process_coco.main, "--data", data["data"], "--captions-only", "--resize", "256", capsys=capsys
    )
    assert code == 2
    assert len(said.splitlines()) == 1
    assert "--resize" in said


# ------------------------------------------------------------------------------------- who reads them


def chosen(data: dict[str, Path], splits=("train",), image_size: int = 32, resume=None) -> int | None:
    found = CocoData(data).for_training(splits, image_size, resume)
    folder = data["data"] / (f"train2017_{found.resized_to}" if found.resized_to else "train2017")
    assert found.image_file("train", 7).parent == folder
    assert found.originals().image_file("train", 7).parent == data["train_images"]
    return found.resized_to


def test_the_smallest_copies_that_are_large_enough_are_chosen(data):
    assert chosen(data) is None
    process(data, "--resize", "128")
    process(data, "--resize", "64", splits=("train",))
    assert [chosen(data, image_size=size) for size in (32, 64, 65, 128, 129)] == [64, 64, 128, 128, None]
    assert chosen(data, ["train", "val"]) == 128
    assert chosen(data, ["train", "unlabeled"]) is None


def test_a_folder_alone_proves_nothing(data):
    """Copies that a killed run left are not noted, and a record of a folder that is gone is worth nothing."""
    process(data)
    copies = with_resized(data, 64)
    copy_folder(data["train_images"], copies["train_images"], 64)
    assert chosen(data) is None
    process(data, "--resize", "64")
    assert chosen(data) == 64
    copies["train_images"].rename(copies["train_images"].with_name("elsewhere"))
    assert chosen(data) is None


def test_a_run_that_goes_on_keeps_to_what_it_began_with(data):
    process(data, "--resize", "64")
    process(data, "--resize", "128")
    assert chosen(data, resume={"resized_to": 128}) == 128
    assert chosen(data, resume={"resized_to": None}) is None
    assert chosen(data, resume={}) is None  # of a version that knew no copies
    with pytest.raises(UsageError, match=r"copies of 96 pixels.*--resize 96"):
        chosen(data, resume={"resized_to": 96})


def test_machines_with_different_copies_are_refused(data, monkeypatch):
    """Else half of a batch would be blurred, and a run depend on which machine was the first."""
    monkeypatch.setattr("support.distributed.gathered", lambda size: [size, SIZE])
    with pytest.raises(UsageError, match="some machines of this run have copies"):
        chosen(data)


def test_a_split_file_needs_the_copies_of_both_folders():
    nothing = torch.zeros(0, dtype=torch.int64)
    mine = SplitFile("mine.json", "", dict.fromkeys(("train", "val", "test"), nothing), nothing)
    assert folder_splits(["train", "unlabeled"], None) == ["train", "unlabeled"]
    assert folder_splits(["train", "unlabeled"], mine) == ["train", "unlabeled", "val"]
    assert folder_splits(["unlabeled"], mine) == ["unlabeled"]


def test_a_loader_reads_the_copies_pixels(data):
    process(data, "--resize", "64")
    copies = CocoData(data).for_training(["train"], 32)
    transform = TrainingTransform(32, scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3), flip_probability=0.0)
    for batch in get_coco_loader("train", 4, transform, 1, mode="image_only", data=copies, shuffle=True):
        for picture, image_id in zip(batch.images, batch.image_ids.tolist()):
            copy = load_image(data["data"] / "train2017_64" / image_name(image_id))
            assert copy.shape == (3, 64, 85)
            assert torch.equal(picture, F.resize(copy, [32, 32], antialias=True))
            original = load_image(data["train_images"] / image_name(image_id))
            assert not torch.equal(picture, EvaluationTransform(32)(original))


def test_both_scripts_train_on_copies_and_validate_on_originals(data, tmp_path, monkeypatch, capsys):
    """Seen by what is read; and a run keeps to its pictures when it goes on, or says why it cannot."""
    read = set()

    def noted(path: Path) -> torch.Tensor:
        read.add(path.parent.name)
        return load_image(path)

    monkeypatch.setattr(coco_samples, "load_image", noted)
    out = tmp_path / "out"
    encoder = write_config(tmp_path, "mae_config.yaml", splits=["train"])
    captioner = write_config(tmp_path, "captioner_config.yaml")
    root = data["data"]
    train_mae(root, out, encoder, "--epochs", "1")
    assert "images, originals of full size" in capsys.readouterr().out
    assert read == {"train2017", "val2017"}

    process(data, "--resize", "64")
    read.clear()
    train_mae(root, out, encoder, "--epochs", "2", "-c", "last")
    assert read == {"train2017", "val2017"}
    read.clear()
    train_captions(root, out, captioner, "-p", "last", "--epochs", "1")
    assert "pairs, copies of 64 pixels" in capsys.readouterr().out
    assert read == {"train2017_64", "val2017"}
    assert checkpoints.load_named(out / "captioner", "last")[1]["resized_to"] == 64

    read.clear()
    train_mae(root, tmp_path / "anew", encoder, "--epochs", "1")
    assert read == {"train2017_64", "val2017"}
    older, checkpoint = checkpoints.load_named(tmp_path / "anew" / "encoder", "last")
    checkpoint["pictures"] = checkpoint.pop("resized_to")  # as it was called in November 2026
    checkpoints.save(older, checkpoint)
    train_mae(root, tmp_path / "anew", encoder, "--epochs", "2", "-c", "last")
    assert checkpoints.load_named(tmp_path / "anew" / "encoder", "last")[1]["resized_to"] == 64
    with_resized(data, 64)["train_images"].rename(root / "elsewhere")
    with pytest.raises(UsageError, match=r"begun with copies of 64 pixels.*--resize 64"):
        train_mae(root, tmp_path / "anew", encoder, "--epochs", "3", "-c", "last")


def test_the_record_of_copies_is_what_it_says(data):
    process(data, "--resize", "64")
    entry = Record(data["record"]).entries["train_images_64"]
    sizes = [path.stat().st_size for path in with_resized(data, 64)["train_images"].iterdir()]
    assert entry["copies"] == [6, sum(sizes)]
    assert entry["originals"] == Record(data["record"]).entries["train_images"]
