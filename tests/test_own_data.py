"""`process_coco.py --own`: from a folder of images and captions to a data root that trains."""

import json
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

import caption
import coco_samples
import evaluate_captioner
import process_coco
import train_captioner
import train_encoder
from coco.inventory import Inventory
from images.image_folders import by_hash
from own_data import data_root
from own_data.folder_index import FolderIndex
from paths import locations
from process_coco import main
from support.files import read_json
from tests.training_cases import ended, write_config

COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")


def draw(path: Path, number: int, kind: str = "JPEG") -> None:
    """An image that differs from those of other numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (24, 18), COLORS[number % 8])
    image.putpixel((number % 24, number // 24 % 18), (255, 0, 255))
    image.save(path, kind)


def make_flickr(folder: Path, number: int, images: str = "Images") -> Path:
    """A folder like Flickr8k's: `captions.txt` with two captions an image."""
    names = [f"{n}_{n * 7919:06x}.jpg" for n in range(number)]
    for n, name in enumerate(names):
        draw(folder / images / name, n)
    rows = [f'{name},"a {COLORS[n % 8]} wall, no {what}"' for n, name in enumerate(names) for what in "ab"]
    (folder / "captions.txt").write_text("\n".join(["image,caption", *rows, ""]))
    return folder


def own(folder: Path, data: Path, *flags: str) -> dict[str, Path]:
    main(["--own", str(folder), "--data", str(data), *flags])
    return locations(data)


def splits_of(where: dict[str, Path]) -> dict[str, set[str]]:
    """By split, the names of the images with captions; test's lie among val's."""
    names = read_json(where["file_names"], {})
    read = {split: json.loads(where[f"{split}_captions"].read_text()) for split in ("train", "val")}
    found = {split: {image["file_name"] for image in content["images"]} for split, content in read.items()}
    test = {names[str(image_id)] for image_id in read_json(where["split_file"], {}).get("test", [])}
    return {"train": found["train"], "val": found["val"] - test, "test": test}


def names_in(where: dict[str, Path], split: str) -> set[str]:
    """Where the images in a split's folder came from."""
    names, folder = read_json(where["file_names"], {}), where[f"{split}_images"]
    return {names[str(int(path.stem))] for path in folder.glob("*.jpg")}


def snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def refused(*arguments: object, capsys: pytest.CaptureFixture) -> str:
    code, message = ended(main, *arguments, capsys=capsys)
    assert code == 2
    assert message.count("\n") == 1, message
    return message


# What it makes


def test_every_image_keeps_its_captions_and_can_be_traced(tmp_path):
    folder = make_flickr(tmp_path / "walls", 20)
    before = snapshot(folder)
    where = own(folder, tmp_path / "root")
    names = read_json(where["file_names"], {})
    captions = {name: [] for name in names.values()}
    for split in ("train", "val"):
        content = json.loads(where[f"{split}_captions"].read_text())
        assert torch.load(where[f"{split}_image_ids"]) == sorted(image["id"] for image in content["images"])
        for image in content["images"]:
            assert names[str(image["id"])] == image["file_name"]
            link = where[f"{split}_images"] / f"{image['id']:012d}.jpg"
            assert link.read_bytes() == (folder / image["file_name"]).read_bytes()
            assert link.stat().st_ino == (folder / image["file_name"]).stat().st_ino
        for annotation in content["annotations"]:
            captions[names[str(annotation["image_id"])]].append(annotation["caption"])
    for n in range(20):
        color = COLORS[n % 8]
        assert captions[f"Images/{n}_{n * 7919:06x}.jpg"] == [f"a {color} wall, no {x}" for x in "ab"]
    assert snapshot(folder) == before


def test_without_splits_a_hash_of_the_name_decides_and_more_images_move_none(tmp_path, capsys):
    folder = make_flickr(tmp_path / "walls", 40)
    where = own(folder, tmp_path / "root", "--val-fraction", "0.25")
    assert "a hash of the names takes 0.25" in capsys.readouterr().out
    first = splits_of(where)
    names = {name for split in first.values() for name in split}
    assert first["val"] == {name for name in names if by_hash(name) < 0.25}
    assert 0 < len(first["val"]) < 20
    make_flickr(folder, 60)
    lines = (folder / "captions.txt").read_text().splitlines()
    (folder / "captions.txt").write_text("\n".join([lines[0], *reversed(lines[1:])]))
    second = splits_of(own(folder, tmp_path / "root", "--val-fraction", "0.25"))
    assert {split: names & second[split] for split in second} == first
    assert len(second["train"] | second["val"]) == 60


def test_a_second_run_changes_nothing_and_looks_at_no_image(tmp_path, capsys, monkeypatch):
    folder = make_flickr(tmp_path / "walls", 20)
    where = own(folder, tmp_path / "root")
    before = snapshot(where["data"])
    monkeypatch.setattr(data_root, "read_own_data", lambda *_: pytest.fail("the folder is unchanged"))
    capsys.readouterr()
    own(folder, tmp_path / "root")
    assert snapshot(where["data"]) == before
    assert "nothing to do" in capsys.readouterr().out


def test_images_that_come_change_and_go_are_followed(tmp_path, capsys):
    folder = make_flickr(tmp_path / "walls", 20)
    draw(folder / "Images" / "extra.png", 99, "PNG")
    where = own(folder, tmp_path / "root")
    assert names_in(where, "unlabeled") == {"Images/extra.png"}
    assert where["unlabeled_image_ids"].exists()
    stays, goes = "0_000000.jpg", "2_003dde.jpg"
    (folder / "Images" / goes).unlink()
    (folder / "Images" / "extra.png").unlink()
    (folder / "Images" / stays).unlink()
    draw(folder / "Images" / stays, 77)
    own(folder, tmp_path / "root")
    split = "train" if f"Images/{stays}" in splits_of(where)["train"] else "val"
    ids = {name: int(image_id) for image_id, name in read_json(where["file_names"], {}).items()}
    link = where[f"{split}_images"] / f"{ids[f'Images/{stays}']:012d}.jpg"
    assert link.read_bytes() == (folder / "Images" / stays).read_bytes()
    assert f"Images/{goes}" not in names_in(where, "train") | names_in(where, "val")
    assert names_in(where, "unlabeled") == set()
    assert not where["unlabeled_image_ids"].exists()
    assert f"1 images are listed and not there: {goes}" in capsys.readouterr().out


def test_coco_keeps_its_ids_whatever_the_names(tmp_path):
    folder = tmp_path / "farm"
    for split, ids in (("train", (5, 7, 2**33)), ("val", (9,))):
        names = {
            5: "a/Photo 5.PNG",
            7: "b/Photo 5.webp",
            2**33: "COCO_train2014_000000000007.jpg",
            9: "ü.jpg",
        }
        for image_id in ids:
            kind = {".PNG": "PNG", ".webp": "WEBP"}.get(Path(names[image_id]).suffix, "JPEG")
            draw(folder / "pictures" / names[image_id], image_id % 100, kind)
        content = {
            "images": [{"id": i, "file_name": names[i]} for i in ids],
            "annotations": [{"image_id": i, "caption": f"number {i}"} for i in ids],
        }
        (folder / f"captions_{split}2014.json").write_text(json.dumps(content))
    where = own(folder, tmp_path / "root")
    assert torch.load(where["train_image_ids"]) == [5, 7, 2**33]
    assert torch.load(where["val_im2capts"]) == [(9, ["number 9"])]
    assert read_json(where["file_names"], {})["7"] == "pictures/b/Photo 5.webp"
    with Image.open(where["train_images"] / "000000000005.jpg") as image:
        assert image.format == "PNG"


def test_ids_that_stand_for_two_images_are_made_anew(tmp_path, capsys):
    folder = tmp_path / "farm"
    for number, split in enumerate(("train", "val")):
        draw(folder / split / "1.jpg", number)
        content = {
            "images": [{"id": 1, "file_name": "1.jpg"}],
            "annotations": [{"image_id": 1, "caption": split}],
        }
        (folder / split / "captions.json").write_text(json.dumps(content))
    where = own(folder, tmp_path / "root")
    assert splits_of(where) == {"train": {"train/1.jpg"}, "val": {"val/1.jpg"}, "test": set()}
    assert all(10**14 <= int(image_id) < 10**15 for image_id in read_json(where["file_names"], {}))
    assert "ids are made from the names" in capsys.readouterr().out


def test_split_folders_of_the_hub(tmp_path):
    """Images of the same name in each; those of test/ without captions are not for pre-training."""
    folder = tmp_path / "hub"
    for number, split in enumerate(("train", "validation", "test")):
        for image in range(2):
            draw(folder / split / f"{image}.png", number * 10 + image, "PNG")
        (folder / split / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": split}))
    where = own(folder, tmp_path / "root")
    assert splits_of(where) == {"train": {"train/0.png"}, "val": {"validation/0.png"}, "test": {"test/0.png"}}
    assert names_in(where, "unlabeled") == {"train/1.png"}
    assert names_in(where, "test") == {"validation/1.png", "test/1.png"}


def test_karpathy_s_splits_and_images_in_several_of_them(tmp_path, capsys):
    folder = tmp_path / "k"
    splits = ["train", "restval", "val", "test", "train", "train"]
    images: list[dict] = []
    for number, split in enumerate(splits):
        draw(folder / "flickr30k_images" / f"{number}.jpg", 2 if number == 0 else number)
        sentences = [{"raw": f"a {number}"}]
        images.append({"filename": f"{number}.jpg", "split": split, "sentences": sentences})
    images.append(images[4] | {"split": "test"})
    (folder / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    (folder / "test.txt").write_text("5\n")
    where = own(folder, tmp_path / "root")
    found = splits_of(where)
    assert {split: {Path(name).stem for name in names} for split, names in found.items()} == {
        "train": {"0", "1"},
        "val": {"2"},
        "test": {"3", "4", "5"},
    }
    said = capsys.readouterr().out
    assert "2 images are of several splits: test counts before val, and val before train" in said
    assert "1 images for train hold the same bytes as others for val or test: flickr30k_images/0.jpg" in said


def test_flickr8k_s_lists_and_what_is_in_none_of_them(tmp_path, capsys):
    folder = make_flickr(tmp_path / "walls", 8, "Flicker8k_Dataset")
    names = sorted(path.name for path in (folder / "Flicker8k_Dataset").iterdir())
    for name, part in {"train": names[:4], "dev": names[4:5], "test": names[5:7]}.items():
        (folder / f"Flickr_8k.{name}Images.txt").write_text("\n".join(part) + "\n")
    draw(folder / "Flicker8k_Dataset" / "uncaptioned.jpg", 50)
    with open(folder / "Flickr_8k.testImages.txt", "a") as file:
        file.write("uncaptioned.jpg\n")
    where = own(folder, tmp_path / "root")
    found = {split: {Path(name).name for name in names} for split, names in splits_of(where).items()}
    assert found == {"train": {*names[:4]}, "val": {*names[4:5]}, "test": {*names[5:7]}}
    assert names_in(where, "unlabeled") == {f"Flicker8k_Dataset/{names[7]}"}
    assert names_in(where, "test") == {"Flicker8k_Dataset/uncaptioned.jpg"}
    assert (
        "1 images have captions but no split, unlike others: their captions are left out: "
        in capsys.readouterr().out
    )


def test_the_tokenizer_follows_a_split_that_comes_and_goes(tmp_path):
    """It learns from what is for train; a list that is taken away leaves nothing that asks for it."""
    folder = make_flickr(tmp_path / "walls", 24)
    where = own(folder, tmp_path / "root")
    names = sorted(path.name for path in (folder / "Images").iterdir())
    for split, part in {"train": names[:20], "test": names[20:]}.items():
        (folder / f"{split}.txt").write_text("\n".join(part))
    for learned_from in ("splits.json", None):
        own(folder, tmp_path / "root")
        main(["--data", str(tmp_path / "root")])
        known = read_json(where["record"], {})["tokenizer"]
        assert Path(known.get("split_file", {}).get("path", "")).name == (learned_from or "")
        assert where["split_file"].exists() == (learned_from is not None)
        for split in ("train", "test"):
            (folder / f"{split}.txt").unlink(missing_ok=True)


def test_each_kind_of_trouble_is_one_line(tmp_path, capsys):
    folder = make_flickr(tmp_path / "walls", 12)
    images = folder / "Images"
    names = sorted(path.name for path in images.iterdir())
    (images / names[0]).write_bytes(b"")
    (images / names[1]).write_bytes(b"no image at all")
    (images / names[2]).rename(images / names[2].upper())  # the caption file has another case
    draw(folder / "one" / "same.jpg", 60), draw(folder / "two" / "same.jpg", 61)
    draw(folder / "names" / "B.jpg", 62), draw(folder / "names" / "b.jpg", 63)
    (folder / "backup.jpg").write_bytes((images / names[3]).read_bytes())
    for hidden in ("._x.jpg", ".DS_Store", "Thumbs.db"):
        (images / hidden).write_bytes(b"x")
    with open(folder / "captions.txt", "a") as file:
        file.write("gone.jpg,nothing\nsame.jpg,which\nnames/B.jpg,   \n")
    where = own(folder, tmp_path / "root")
    said = capsys.readouterr().out
    for line in (
        "2 files cannot be read as images, and are left out: Images/",
        "1 images are listed and not there: gone.jpg",
        "1 names stand for several different files, and are left out: same.jpg",
        "1 captions are blank, of: names/B.jpg",
        "2 names differ in case only, and on other systems would be one: names/B.jpg, names/b.jpg",
        "1 files are copies of images that captions list, and are left out: backup.jpg",
        "3 hidden files are left out: ",
        "2 images have no captions: they serve pre-training, in unlabeled2017/: names/B.jpg, names/b.jpg",
    ):
        assert said.count(f"own data: {line}") == 1, line
    found = splits_of(where)
    assert found["train"] | found["val"] == {f"Images/{n}" for n in (names[2].upper(), *names[3:])}


def test_links_in_the_folder_are_followed_and_one_that_leads_nowhere_is_left_out(tmp_path, capsys):
    """A caption file that was a link, or in a linked folder, ended in a traceback."""
    elsewhere = make_flickr(tmp_path / "elsewhere", 12)
    for link, target, place in (("captions.txt",) * 3, ("text", ".", "text/captions.txt")):
        folder = tmp_path / link.removesuffix(".txt")
        folder.mkdir()
        (folder / "pictures").symlink_to(elsewhere / "Images")
        (folder / link).symlink_to(elsewhere / target)
        (folder / "me").symlink_to("me")
        (folder / "gone.jpg").symlink_to("nowhere.jpg")
        for flags in ((), ("--caption-files", place), ("--caption-files", str(folder / place))):
            where = own(folder, tmp_path / f"{folder.name}'s root", *flags, "--val-fraction", "0.4")
            assert sum(map(len, splits_of(where).values())) == 12
        assert "2 links lead nowhere, and are left out: " in capsys.readouterr().out


def test_a_list_of_names_with_blanks_and_brackets_keeps_its_images_from_training(tmp_path, capsys):
    """One such name, and the whole list was passed over without a word: its images went to training."""
    folder = tmp_path / "walls"
    names = [f"p ({number}) ä+b.jpg" for number in range(9)]
    for number, name in enumerate(names):
        draw(folder / name, number)
    rows = [f"{name},a {COLORS[number % 8]} wall" for number, name in enumerate(names)]
    (folder / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    (folder / "test.txt").write_text("\n".join([*names[:2], "p (99).jpg"]))
    (folder / "val.txt").write_text("\n".join(names[2:4]))
    (folder / "train_notes.txt").write_text("of these images, all are walls\n")
    found = splits_of(own(folder, tmp_path / "root"))
    assert (found["test"], found["val"], found["train"]) == ({*names[:2]}, {*names[2:4]}, {*names[4:]})
    said = capsys.readouterr().out
    assert "1 of these are not there: p (99).jpg" in said
    assert "train_notes" not in said


def test_links_that_cannot_be_made_and_copies(tmp_path, capsys, monkeypatch):
    folder = make_flickr(tmp_path / "walls", 12)

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setitem(data_root.LINKS, "hard links", refuse)
    where = own(folder, tmp_path / "linked")
    assert all(path.is_symlink() for path in where["train_images"].iterdir())
    assert "12 images are symbolic links" in capsys.readouterr().out
    monkeypatch.setitem(data_root.LINKS, "symbolic links", refuse)
    for flags in ((), ("--copy",)):
        where = own(folder, tmp_path / f"copied{len(flags)}", *flags)
        for path in where["train_images"].iterdir():
            assert not path.is_symlink()
            assert path.stat().st_nlink == 1
        said = capsys.readouterr().out
        assert ("12 images are copied, as they cannot be linked" in said) == (not flags)
    monkeypatch.undo()
    where = own(folder, tmp_path / "linked", "--copy")
    assert not any(path.is_symlink() for path in where["train_images"].iterdir())


def test_an_image_is_found_wherever_it_lies(tmp_path):
    """Beside the caption file first, then where the path agrees most, then in the split's folder."""
    files = [
        "a/1.jpg",
        "b/1.jpg",
        "b/deep/2.jpg",
        "train/3.png",
        "val/3.png",
        "\u00fc.jpg",
        "Case.JPG",
        "x#1.jpg",
    ]
    for number, name in enumerate(files):
        draw(tmp_path / name, number)
    (tmp_path / "b" / "round").symlink_to(tmp_path)
    index = FolderIndex(tmp_path)
    for name, base, split, found in (
        ("1.jpg", "a", None, ["a/1.jpg"]),
        ("1.jpg", ".", None, ["a/1.jpg", "b/1.jpg"]),
        ("images/b/1.jpg", ".", None, ["b/1.jpg"]),
        ("..\\b\\1.jpg", "text", None, ["b/1.jpg"]),
        ("http://example.com/2.jpg", ".", None, ["b/deep/2.jpg"]),
        ("/home/somebody/deep/2.jpg", ".", None, ["b/deep/2.jpg"]),
        ("3.png", "text", "val", ["val/3.png"]),
        ("3.png", "train", "val", ["train/3.png"]),
        ("u\u0308.jpg", ".", None, ["\u00fc.jpg"]),
        ("case.jpg", ".", None, ["Case.JPG"]),
        ("x#1.jpg", ".", None, ["x#1.jpg"]),
        ("../../../etc/passwd", ".", None, []),
        ("", ".", None, []),
    ):
        assert index.find(name, base, split) == found, name


# What it refuses


def test_two_files_with_captions_of_the_same_images_are_named(tmp_path, capsys):
    folder = make_flickr(tmp_path / "walls", 12)
    lines = (folder / "captions.txt").read_text().splitlines()[1:]
    names = dict.fromkeys(line.partition(",")[0] for line in lines)
    (folder / "other.token").write_text("".join(f"{name}#0\tsomething else\n" for name in names))
    message = refused("--own", folder, "--data", tmp_path / "root", capsys=capsys)
    assert "captions.txt (table with commas)" in message
    assert "other.token (lines with tabs)" in message
    assert "--caption-files captions.txt or other.token" in message
    where = own(folder, tmp_path / "root", "--caption-files", "other.token")
    assert {text for _, texts in torch.load(where["train_im2capts"]) for text in texts} == {"something else"}


def test_an_image_that_somebody_put_into_the_root_is_not_replaced(tmp_path, capsys):
    folder = tmp_path / "farm"

    def write(split: str, *ids: int) -> None:
        for number in ids:
            draw(folder / f"{number}.jpg", number)
        images = [{"id": number, "file_name": f"{number}.jpg"} for number in ids]
        notes = [{"image_id": number, "caption": f"number {number}"} for number in ids]
        content = {"images": images, "annotations": notes}
        (folder / f"captions_{split}.json").write_text(json.dumps(content))

    write("train", 1, 2), write("val", 3)
    where = own(folder, tmp_path / "root")
    stranger = where["train_images"] / "000000000004.jpg"
    draw(stranger, 9)
    write("train", 1, 2, 4)
    before = stranger.read_bytes()
    message = refused("--own", folder, "--data", tmp_path / "root", capsys=capsys)
    assert f"{stranger} was not made of {folder}" in message
    refused("--own", folder, "--data", tmp_path / "root", capsys=capsys)
    assert stranger.read_bytes() == before
    stranger.unlink()
    own(folder, tmp_path / "root")
    assert stranger.samefile(folder / "4.jpg")


def test_too_few_images_for_val_and_the_fraction_that_helps(tmp_path, capsys):
    folder = make_flickr(tmp_path / "walls", 3)
    message = refused("--own", folder, "--data", tmp_path / "root", "--val-fraction", "1e-9", capsys=capsys)
    assert "all 3 images fall to train" in message
    fraction = message.partition("--val-fraction ")[2].split(",")[0]
    assert len(splits_of(own(folder, tmp_path / "root", "--val-fraction", fraction))["val"]) == 1


def test_other_data_are_left_alone(tmp_path, capsys, monkeypatch):
    folder = make_flickr(tmp_path / "walls", 12)
    foreign = tmp_path / "coco"
    draw(foreign / "train2017" / "000000000009.jpg", 9)
    assert "holds data not made of" in refused("--own", folder, "--data", foreign, capsys=capsys)
    before = snapshot(folder)
    assert "lies in" in refused("--own", folder, "--data", folder / "root", capsys=capsys)
    assert snapshot(folder) == before
    assert not (folder / "root").exists()
    own(folder, tmp_path / "root")
    other = make_flickr(tmp_path / "elsewhere" / "walls", 12)
    assert f"was made of {folder}" in refused("--own", other, "--data", tmp_path / "root", capsys=capsys)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no caption file that is known" in refused("--own", empty, "--data", tmp_path / "e", capsys=capsys)
    monkeypatch.setattr(Inventory, "download", lambda *_: pytest.fail("this is no place for COCO"))
    assert f"--own {empty}" in refused("--data", tmp_path / "e", capsys=capsys)
    (empty / "train.parquet").write_bytes(b"x")
    assert "unpack train.parquet" in refused("--own", empty, "--data", tmp_path / "e", capsys=capsys)
    own(other, tmp_path / "e")  # nothing was made in it before
    assert "name the folder with --own" in refused("--copy", capsys=capsys)
    flags = ("--data", tmp_path / "c", "--caption-column", "nope")
    assert "--caption-column nope: no table in" in refused("--own", folder, *flags, capsys=capsys)


def test_nothing_is_downloaded_into_a_root_half_made_or_whole(tmp_path, capsys, monkeypatch):
    folder = make_flickr(tmp_path / "my walls", 12)
    monkeypatch.setattr(Inventory, "download", lambda *_: pytest.fail("this is no place for COCO"))
    with monkeypatch.context() as patch:
        patch.setattr(data_root, "_write_captions", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            own(folder, tmp_path / "root")
    message = refused("--data", tmp_path / "root", capsys=capsys)
    command = message.partition("run `python process_coco.py ")[2].partition("`")[0]
    main(shlex.split(command))
    where = locations(tmp_path / "root")
    next(where["train_images"].iterdir()).unlink()
    main(["--data", str(tmp_path / "root")])
    own(folder, tmp_path / "root")
    found = splits_of(where)
    assert len(found["train"] | found["val"]) == 12
    assert len(torch.load(where["train_image_ids"])) == len(found["train"])


# What comes next


def test_a_root_trains_and_its_test_images_are_never_seen(tmp_path, capsys, monkeypatch):
    """By the commands that it prints, with small models; no flag names the splits."""
    folder = make_flickr(tmp_path / "walls", 14)
    names = sorted(path.name for path in (folder / "Images").iterdir())
    for split, part in {"train": names[:8], "val": names[8:11], "test": names[11:]}.items():
        (folder / f"{split}.txt").write_text("\n".join(part))
    monkeypatch.setattr(process_coco, "ROOT", tmp_path)
    where = own(folder, tmp_path / "data" / "walls")
    commands = [shlex.split(line) for line in capsys.readouterr().out.partition("next:\n")[2].splitlines()]
    scripts = {Path(words[1]).name: words[2:] for words in commands}
    one_epoch = {"total_epochs": 1, "warmup_epochs": 0}
    configs = {
        name: write_config(tmp_path, f"{name}_config.yaml", **one_epoch) for name in ("mae", "captioner")
    }

    seen: set[int] = set()
    load_image = coco_samples.load_image
    monkeypatch.setattr(coco_samples, "load_image", lambda path: seen.add(int(path.stem)) or load_image(path))
    train_encoder.main([*scripts["train_encoder.py"], "--config", str(configs["mae"])])
    said = capsys.readouterr().out
    assert f"{where['data']} has no unlabeled images: training on train" in said
    assert f"splits: those of {where['split_file']}" in said
    train_captioner.main([*scripts["train_captioner.py"], "--config", str(configs["captioner"])])
    origin = read_json(where["file_names"], {})
    assert {Path(origin[str(image_id)]).name for image_id in seen} == {*names[:11]}
    assert scripts["evaluate_captioner.py"][-2:] == ["--split", "test"]
    results = tmp_path / "results.json"
    for more in ([], ["--split-file", str(where["split_file"])]):
        words = [*scripts["evaluate_captioner.py"], "--out", str(results), *more]
        evaluate_captioner.main(words)
        scored = {entry["image_id"] for entry in json.loads(results.read_text())}
        assert {Path(origin[str(image_id)]).name for image_id in scored} == set(names[11:])
    caption.main([*scripts["caption.py"][:-1], str(folder / "Images" / names[0])])
