"""Folders as cameras, phones and a Mac leave them; names and outputs that are not UTF-8."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import caption
from image_transforms import load_image
from images.image_files import formats, suffixes
from images.image_folders import decoding_error, find_images, in_words
from support import command_line
from support.errors import UsageError
from tests.captioner_cases import save_random_captioner
from tests.test_image_files import scene
from tests.test_jpeg import encoded
from tests.training_cases import ROOT

HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(200)
MIF1 = b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf" + bytes(200)  # as some phones write it
ODD_NAME = os.fsdecode(b"\xff.jpg")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What is an image, and what is not; made in no order."""
    folder = tmp_path / "photos"
    for place in ("sub/deep", ".thumbnails", "z.jpg"):
        (folder / place).mkdir(parents=True)
    image = encoded(scene(), "PNG")
    for name in ("b.JPG", "z.jpg/e.png", "sub/d.webp", "a.png", "sub/deep/c.avif", ODD_NAME):
        (folder / name).write_bytes(image)
    for name in (".DS_Store", "._a.png", ".thumbnails/a.png", "notes.txt", "x.mov", "y.MOV", "README"):
        (folder / name).write_bytes(b"no image")
    for name in ("IMG_1.HEIC", "sub/IMG_2.heif"):
        (folder / name).write_bytes(HEIC)
    (folder / "sub" / "round").symlink_to(folder)
    (folder / "linked.jpg").symlink_to(folder / "a.png")
    (folder / "lost.jpg").symlink_to(folder / "nowhere.png")
    (folder / "itself.jpg").symlink_to(folder / "itself.jpg")
    os.mkfifo(folder / "pipe.jpg")  # reading it would wait for ever
    (folder / "pipe.png").symlink_to(folder / "pipe.jpg")
    return folder


def test_a_folders_images_are_found_in_order_and_the_rest_is_counted(folder):
    found, left_out = find_images(folder)
    names = ["a.png", "b.JPG", "itself.jpg", "linked.jpg", "lost.jpg", ODD_NAME]
    assert [path.relative_to(folder).as_posix() for path in found] == names
    others = {".mov": 2, ".txt": 1, ".jpg": 1, ".png": 1, "without a usual ending": 1}
    assert left_out == Counter({"hidden": 3, "HEIC": 1, "folder": 2, **others})
    assert in_words(left_out) == (
        "left out 6 files of other kinds (2 .mov, 1 .jpg, 1 .png, 1 .txt, 1 without a usual ending), "
        "3 hidden files and folders, 1 HEIC image (convert to JPEG), 2 sub-folders (--recursive looks inside)"
    )
    many = in_words(Counter({f".{letter}": 1 for letter in "abcdefgh"}))
    assert many == "left out 8 files of other kinds (1 .a, 1 .b, 1 .c, 1 .d, 1 .e, 1 .f, ...)"


def test_sub_folders_are_looked_into_when_asked_for_and_no_circle_is_walked(folder):
    found, left_out = find_images(folder, recursive=True)
    names = [
        "a.png",
        "b.JPG",
        "itself.jpg",
        "linked.jpg",
        "lost.jpg",
        "sub/d.webp",
        "sub/deep/c.avif",
        "z.jpg/e.png",
        ODD_NAME,
    ]
    assert [path.relative_to(folder).as_posix() for path in found] == names
    assert left_out["HEIC"] == 2
    assert left_out["link"] == 1
    assert left_out["folder"] == 0
    assert "1 link to a folder" in in_words(left_out)


def test_nothing_left_out_is_no_line(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(encoded(scene()))
    assert caption.find_pictures([str(tmp_path)]) == [tmp_path / "a.jpg"]
    assert capsys.readouterr().err == ""


def test_a_folder_without_images_says_what_is_in_it(tmp_path):
    for name in ("a.heic", "b.heic", ".hidden"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError) as caught:
        caption.find_pictures([str(tmp_path)])
    assert str(caught.value) == (
        f"{tmp_path}: no images in this folder: left out 1 hidden file or folder, "
        "2 HEIC images (convert to JPEG)"
    )


@pytest.mark.parametrize("data", [HEIC, MIF1])
def test_a_heic_image_is_named_as_what_it_is_under_any_name(tmp_path, data):
    (tmp_path / "1.jpg").write_bytes(data)
    assert (
        decoding_error(tmp_path / "1.jpg")
        == "it is a HEIC image, which cannot be read here: convert it to JPEG"
    )


@pytest.mark.parametrize("kind", formats())
def test_each_kind_that_is_read_is_found_and_whole_or_cut(tmp_path, kind):
    """One list says both; a file that is cut is none to any reader."""
    data = encoded(scene(), kind)
    endings = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}
    path = tmp_path / f"1{endings.get(kind, '.' + kind.lower())}"
    path.write_bytes(data)
    assert find_images(tmp_path)[0] == [path]
    assert load_image(path).shape == (3, 64, 96)
    path.write_bytes(data[: len(data) * 2 // 3])
    assert decoding_error(path)


def test_kinds_that_start_programs_are_neither_found_nor_opened():
    assert not suffixes() & {".eps", ".ps", ".pdf", ".wmf", ".emf", ".ico", ".tga"}


# ------------------------------------------------------------------------------ outputs that are not UTF-8


def test_whatever_a_command_prints_no_character_ends_it(monkeypatch):
    """Every script is started by `run`."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    command_line.run(lambda: print(f"{ODD_NAME} größe 写真"))
    output.flush()
    assert output.buffer.getvalue() == b"\\udcff.jpg gr\\xf6\\xdfe \\u5199\\u771f\n"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1", "utf-16"])
def test_json_is_json_in_any_encoding_and_gives_names_back(monkeypatch, encoding):
    for names in ([ODD_NAME, "größe.jpg"], ["größe 写真 \N{FOX FACE}.jpg"]):
        output = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
        monkeypatch.setattr(sys, "stdout", output)
        print(caption.as_json([{"picture": name} for name in names]))
        output.flush()
        read = json.loads(output.buffer.getvalue().decode(encoding))
        assert [os.fsencode(entry["picture"]) for entry in read] == [os.fsencode(name) for name in names]
    if encoding == "utf-8":
        assert "größe" in output.buffer.getvalue().decode()  # plain where it can be


def test_a_name_ends_no_line_and_moves_no_cursor():
    result = {"picture": "a\n\x1b[2J\u202e é.png", "caption": "a dog", "confidence": None}
    assert caption.as_text(result) == r"a\n\x1b[2J\u202e é.png: a dog"
    ranked = result | {"n_best": [{"score": -1.0, "caption": "a cat"}]}
    assert caption.as_text(ranked).splitlines()[0] == r"a\n\x1b[2J\u202e é.png:"


def test_a_phones_folder_is_captioned_to_its_end(tmp_path, folder):
    """The whole command, its output not UTF-8."""
    for name in ("lost.jpg", "itself.jpg"):
        (folder / name).unlink()
    save_random_captioner(tmp_path / "tiny.pt")
    command = [sys.executable, "caption.py", "-c", tmp_path / "tiny.pt", "--recursive", folder]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0].rsplit("/")[-1] for line in done.stdout.splitlines()] == [
        "a.png", "b.JPG", "linked.jpg", "d.webp", "c.avif", "e.png", "\\udcff.jpg",
    ]  # fmt: skip
    left_out, first_line, no_confidence = done.stderr.splitlines()
    assert left_out.startswith("caption.py: left out ")
    assert first_line.startswith("captioner ")
    assert "confidence" in no_confidence
