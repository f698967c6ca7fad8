"""process_coco.py end to end on tiny archives in COCO's layout, from a folder and from a server."""

import functools
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import process_coco
from coco import inventory
from coco.caption_files import read_captions
from coco.inventory import ARCHIVES
from coco.tokenizer import load_tokenizer
from images.image_folders import image_name
from paths import SPLITS, locations
from process_coco import main
from support.errors import RunError, UsageError
from tests.hostile_server import skip_waits

REPOSITORY = Path(process_coco.__file__).parent
IDS = {
    "train": [7, 9, 2**31 + 5],
    "val": [11, 800_000_000_001],
    "test": [21],
    "unlabeled": [31, 3_800_000_000],
}
WORDS = ("red", "green", "blue", "small", "large")


def jpeg(seed: int) -> bytes:
    buffer = BytesIO()
    Image.effect_noise((40 + seed % 7, 30), 50).save(buffer, "JPEG")
    return buffer.getvalue()


def annotations(ids: list[int]) -> dict[str, Any]:
    captions = [(i, f"  A {word} dog, number {i}. ") for i in ids for word in WORDS]
    return {
        "images": [{"id": i, "file_name": image_name(i), "width": 40, "height": 30} for i in reversed(ids)],
        "annotations": [{"id": n, "image_id": i, "caption": text} for n, (i, text) in enumerate(captions)],
    }


def make_source(folder: Path, captions: dict[str, Any] | None = None) -> Path:
    """The five archives, with annotations that are no captions, as COCO's have."""
    captions = {split: annotations(IDS[split]) for split in ("train", "val")} | (captions or {})
    for name in ARCHIVES.values():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / ARCHIVES["annotations"], "w") as file:
        for split, content in captions.items():
            file.writestr(f"annotations/captions_{split}2017.json", json.dumps(content))
            file.writestr(f"annotations/instances_{split}2017.json", "{}")
    for split in SPLITS:
        with zipfile.ZipFile(folder / ARCHIVES[split], "w") as file:
            for image_id in IDS[split]:
                file.writestr(f"{split}2017/{image_name(image_id)}", jpeg(image_id))
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "source")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def server(source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of Python's own file server over the archives; `server_log` has what it was asked."""
    skip_waits(monkeypatch)
    handler = functools.partial(QuietHandler, directory=str(source))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        QuietHandler.asked = []
        yield f"http://127.0.0.1:{httpd.server_address[1]}/"
        httpd.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012 - one list for all requests

    def log_request(self, *_: object) -> None:
        self.asked.append(f"{self.command} {self.path}")

    def log_message(self, *_: object) -> None:
        """Silence."""


def process(source: Path | str, data: Path, *flags: str) -> None:
    main(["--source", str(source), "--data", str(data), *flags])


def snapshot(data: Path) -> dict[Path, tuple[int, int]]:
    files = [path for path in data.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


# What it makes


def test_structures_are_those_of_the_write_up(source: Path, data: Path) -> None:
    """Against the annotation files as json reads them, and the pictures as they lie there."""
    process(source, data)
    where = locations(data)
    tokenizer = load_tokenizer(where["tokenizer"])
    for split in ("train", "val"):
        content = json.loads(where[f"{split}_captions"].read_text())
        assert load(where[f"{split}_image_ids"]) == IDS[split]
        expected = [
            (i, [a["caption"].strip() for a in content["annotations"] if a["image_id"] == i])
            for i in IDS[split]
        ]
        assert load(where[f"{split}_im2capts"]) == expected
        tokenized = load(where[f"{split}_tokenized"])
        assert [entry["image_id"] for entry in tokenized] == [a["image_id"] for a in content["annotations"]]
        for entry, annotation in zip(tokenized, content["annotations"]):
            assert tokenizer.decode(entry["caption"]) == annotation["caption"].strip().lower()
            assert entry["caption"][0] == tokenizer.token_to_id("<SOS>")
            assert entry["caption"][-1] == tokenizer.token_to_id("<EOS>")
    assert load(where["unlabeled_image_ids"]) == IDS["unlabeled"]
    for split in SPLITS:
        names = sorted(path.name for path in where[f"{split}_images"].iterdir())
        assert names == [image_name(i) for i in IDS[split]]
    assert sorted(path.name for path in where["annotations"].iterdir()) == [
        "captions_train2017.json",
        "captions_val2017.json",
    ]
    assert not where["downloads"].exists(), "archives in a folder are read in place"


def test_tokenizer_learns_from_the_training_captions_only(tmp_path: Path) -> None:
    val = annotations(IDS["val"])
    for annotation in val["annotations"]:
        annotation["caption"] = "zyzzyva zyzzyva zyzzyva"
    process(make_source(tmp_path / "source", {"val": val}), tmp_path / "data")
    tokens = load_tokenizer(locations(tmp_path / "data")["tokenizer"]).get_vocab()
    assert "Ġdog" in tokens
    assert not any("zy" in token for token in tokens)


def test_captions_of_every_kind_of_trouble(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """0 to 7 captions a picture; blank, null and missing ones; of an absent picture; half a sign."""
    train = annotations(IDS["train"])
    seven = [{"image_id": 7, "caption": f"dog {n}"} for n in range(7)]
    odd = [{"image_id": 9, "caption": text} for text in ("", "  \n", None, "a \ud83d dog")]
    train["annotations"] = [*seven, *odd, {"image_id": 9}, {"image_id": 12345, "caption": "nowhere"}]
    train["images"].append({"id": 777})
    process(make_source(tmp_path / "source", {"train": train}), tmp_path / "data")
    where = locations(tmp_path / "data")
    assert [(i, len(texts)) for i, texts in load(where["train_im2capts"])] == [(7, 7), (9, 1), (2**31 + 5, 0)]
    assert [entry["image_id"] for entry in load(where["train_tokenized"])] == [7] * 7 + [9]
    assert load(where["train_im2capts"])[1][1] == ["a ? dog"]
    said = capsys.readouterr().out
    assert "train: 4 captions are blank; they are of the pictures: 9, 9, 9, 9" in said
    assert "train: 1 captions are of pictures that are not there: 12345" in said
    assert "train: 1 pictures are listed but not there: 777" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not whole"),
        ('{"images": [], "annotations": [{"image_id": 7, "cap', "not whole"),
        ("[" * 100_000, "not whole"),
        ('{"images": [{"id": ' + "9" * 5000 + "}]}", "not whole"),
        ("[]", 'no list "images"'),
        ('{"images": {}, "annotations": []}', 'no list "images"'),
        ('{"images": []}', 'no list "annotations"'),
        ('{"images": [7], "annotations": []}', 'whole number as "id"'),
        ('{"images": [{"id": "7a"}], "annotations": []}', 'whole number as "id", got \'7a\''),
        ('{"images": [{"id": 7.5}], "annotations": []}', 'images[0] needs a whole number as "id", got 7.5'),
        ('{"images": [{"id": NaN}], "annotations": []}', 'whole number as "id", got nan'),
        ('{"images": [{"id": 9007199254740993.0}], "annotations": []}', 'whole number as "id"'),
        ('{"images": [{"id": ""}], "annotations": []}', 'whole number as "id"'),
        ('{"images": 3, "annotations": []}', 'no list "images"'),
        ('{"annotations": [{"image_id": 1e400, "caption": "x"}]}', 'annotations[0] needs'),
        ('{"images": [{"id": true}], "annotations": []}', 'whole number as "id"'),
        ('{"images": [{"id": 9223372036854775808}], "annotations": []}', 'whole number as "id"'),
        ('{"images": [], "annotations": [{"image_id": -1, "caption": "x"}]}', 'annotations[0] needs'),
        ('{"images": [], "annotations": [{"image_id": 1, "caption": 5}]}', "caption that is no text: 5"),
    ],
)  # fmt: skip
def test_broken_annotations_are_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "annotations" / "captions_train2017.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(UsageError) as error:
        main(["--captions-only", "--data", str(tmp_path), "--splits", "train"])
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("spelled", [float, str, lambda image_id: f"{image_id:012d}"])
def test_ids_are_taken_as_pandas_and_others_spell_them(tmp_path: Path, spelled: Any) -> None:
    """A column of whole numbers in which one is missing comes out of pandas as 7.0, 9.0, ..."""
    content = annotations(IDS["train"])
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(content))
    expected = read_captions(path)
    for image in content["images"]:
        image["id"] = spelled(image["id"])
    for annotation in content["annotations"]:
        annotation["image_id"] = spelled(annotation["image_id"])
    path.write_text(json.dumps(content))
    assert read_captions(path) == expected
    assert {type(image_id) for image_id in read_captions(path).image_ids} == {int}


@pytest.mark.parametrize("listed", [{}, {"images": None}, {"images": []}])
def test_without_a_list_of_images_they_are_those_that_have_captions(tmp_path: Path, listed: dict) -> None:
    content = listed | {"annotations": annotations(IDS["train"])["annotations"]}
    content["annotations"].append({"image_id": 5, "caption": " "})
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(content))
    assert read_captions(path).image_ids == [5, *IDS["train"]]


# What it does again, and what not


def test_second_run_does_nothing(source: Path, data: Path, capsys: pytest.CaptureFixture) -> None:
    process(source, data)
    before = snapshot(data)
    capsys.readouterr()
    for name in ARCHIVES.values():
        (source / name).unlink()  # nor does it need the archives
    process(source, data)
    assert capsys.readouterr().out == f"{data}: everything is there and unchanged, nothing to do\n"
    assert snapshot(data) == before


def test_second_run_imports_nothing_heavy(source: Path, data: Path) -> None:
    """It is to take a second, and torch alone takes two."""
    process(source, data)
    code = (
        "import sys, process_coco; process_coco.main(sys.argv[1:]); "
        "assert not {'torch', 'tokenizers', 'requests', 'PIL'} & set(sys.modules), sorted(sys.modules)"
    )
    flags = ["--source", str(source), "--data", str(data)]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout


def test_half_a_folder_is_completed(source: Path, data: Path) -> None:
    """The folder is there, so the download was taken for done: with half of its files, the last one cut."""
    where = locations(data)
    where["train_images"].mkdir(parents=True)
    with zipfile.ZipFile(source / ARCHIVES["train"]) as file:
        for number, member in enumerate(file.infolist()[:2]):
            content = file.read(member)
            (data / member.filename).write_bytes(content if number == 0 else content[:-300])
    process(source, data)
    check_pictures_are_the_archive_s(source, data)


def test_user_s_own_folder_is_taken_when_whole(source: Path, data: Path) -> None:
    for split in ("train", "val"):
        with zipfile.ZipFile(source / ARCHIVES[split]) as file:
            file.extractall(data)
        (source / ARCHIVES[split]).unlink()
    before = snapshot(data)
    process(source, data, "--splits", "train", "val")
    after = snapshot(data)
    assert all(after[path] == before[path] for path in before)
    assert load(locations(data)["val_image_ids"]) == IDS["val"]


@pytest.mark.parametrize("padded", [False, True])
def test_user_s_own_folder_with_a_cut_picture_is_not(source: Path, data: Path, padded: bool) -> None:
    """Every name is there, and one of the files is not whole: no list of names can see that."""
    with zipfile.ZipFile(source / ARCHIVES["val"]) as file:
        file.extractall(data)
    picture = locations(data)["val_images"] / image_name(IDS["val"][1])
    picture.write_bytes(picture.read_bytes()[:-300] + bytes(300 * padded))
    process(source, data)
    check_pictures_are_the_archive_s(source, data)


@pytest.mark.parametrize("harm", ["lost", "cut", "emptied"])
def test_harm_done_later_is_repaired(source: Path, data: Path, harm: str) -> None:
    process(source, data)
    picture = locations(data)["unlabeled_images"] / image_name(31)
    if harm == "lost":
        picture.unlink()
    else:
        picture.write_bytes(picture.read_bytes()[: -20 if harm == "cut" else 0])
    locations(data)["val_tokenized"].write_bytes(b"")
    locations(data)["val_captions"].write_text("{")
    process(source, data)
    check_pictures_are_the_archive_s(source, data)
    assert len(load(locations(data)["val_tokenized"])) == 10
    assert load(locations(data)["unlabeled_image_ids"]) == IDS["unlabeled"]


def check_pictures_are_the_archive_s(source: Path, data: Path) -> None:
    for split in SPLITS:
        with zipfile.ZipFile(source / ARCHIVES[split]) as file:
            assert {member.filename: file.read(member) for member in file.infolist()} == {
                f"{split}2017/{path.name}": path.read_bytes() for path in (data / f"{split}2017").iterdir()
            }


def test_changed_captions_train_the_tokenizer_again(source: Path, data: Path) -> None:
    process(source, data)
    where = locations(data)
    where["train_captions"].write_text(where["train_captions"].read_text().replace("dog", "zebra"))
    main(["--captions-only", "--data", str(data)])
    tokenizer = load_tokenizer(where["tokenizer"])
    assert "Ġzebra" in tokenizer.get_vocab()
    for split, animal in (("train", "zebra"), ("val", "dog")):  # val's captions are new in the new tokens
        texts = [tokenizer.decode(entry["caption"]) for entry in load(where[f"{split}_tokenized"])]
        assert all(animal in text for text in texts), texts


# Other ways to call it


def test_captions_only_needs_no_pictures(tmp_path: Path) -> None:
    where = locations(tmp_path)
    where["annotations"].mkdir()
    for split in ("train", "val"):
        where[f"{split}_captions"].write_text(json.dumps(annotations(IDS[split])))
    main(["--captions-only", "--data", str(tmp_path)])
    assert load(where["train_image_ids"]) == IDS["train"]
    assert [i for i, _ in load(where["val_im2capts"])] == IDS["val"]
    assert not where["unlabeled_image_ids"].exists()


def test_captions_only_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="annotations is not there"):
        main(["--captions-only", "--data", str(tmp_path / "nowhere")])
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "annotations").mkdir()
    with pytest.raises(UsageError, match=r"captions_train2017\.json is not there"):
        main(["--captions-only", "--data", str(tmp_path)])


def test_download_unpacks_and_cleans_up(server: str, source: Path, data: Path) -> None:
    process(server, data)
    check_pictures_are_the_archive_s(source, data)
    left = [path.name for path in locations(data)["downloads"].iterdir()]
    assert left == ["annotations_trainval2017.zip"], "which holds annotations that were not unpacked"
    QuietHandler.asked.clear()
    process(server, data)
    assert QuietHandler.asked == []


def test_download_keeps_archives_on_demand(server: str, data: Path) -> None:
    process(server, data, "--keep-archives", "--splits", "train", "val")
    left = sorted(path.name for path in locations(data)["downloads"].iterdir())
    assert left == ["annotations_trainval2017.zip", "train2017.zip", "val2017.zip"]
    assert not (data / "test2017").exists()


@pytest.mark.parametrize("remote", [False, True])
def test_archive_that_the_source_lacks(server: str, source: Path, data: Path, remote: bool) -> None:
    (source / ARCHIVES["test"]).unlink()
    with pytest.raises(UsageError, match=r"test2017\.zip is not there.*--splits train val unlabeled"):
        process(server if remote else source, data)
    assert not any(request.startswith("GET") for request in QuietHandler.asked), "said before the first byte"
    process(server if remote else source, data, "--splits", "train", "val", "unlabeled")
    (source / ARCHIVES["val"]).unlink()
    with pytest.raises(UsageError, match=r"val2017\.zip is not there.*another --source"):
        process(server if remote else source, data.with_name("other"), "--splits", "train", "val")


def test_no_room_is_said_before_the_first_byte(server: str, data: Path, monkeypatch) -> None:
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("support.files.shutil.disk_usage", lambda _: usage)
    with pytest.raises(RunError, match=r"needs 0\.00 GB free .* --data"):
        process(server, data)
    assert not any(request.startswith("GET") for request in QuietHandler.asked)


def test_coco_s_own_archives_are_pinned(server: str, data: Path, monkeypatch) -> None:
    """Another server in COCO's place: not its bytes, not its files."""
    monkeypatch.setattr(inventory, "COCO", server)
    monkeypatch.setattr("support.files.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1e12}))
    with pytest.raises(RunError, match="not the known 252,907,541"):
        process(server, data)
    assert not (data / "annotations").exists()


def test_damaged_download_is_removed(server: str, source: Path, data: Path) -> None:
    path = source / ARCHIVES["val"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(RunError, match="the download was removed"):
        process(server, data)
    path.write_bytes(whole)
    process(server, data)
    check_pictures_are_the_archive_s(source, data)


def test_two_processes_at_once_do_no_harm(server: str, source: Path, data: Path) -> None:
    command = [
        sys.executable,
        "process_coco.py",
        "--source",
        server,
        "--data",
        str(data),
        "--splits",
        "train",
        "val",
    ]
    processes = [
        subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("nothing to do" in text for text in said) == 1
    assert sum(request.startswith("GET") for request in QuietHandler.asked) == 3


def test_check_lists_the_bad_pictures(source: Path, data: Path, capsys: pytest.CaptureFixture) -> None:
    process(source, data, "--check")
    assert "all 8 pictures can be read" in capsys.readouterr().out
    zeros, other = (locations(data)["val_images"] / image_name(i) for i in IDS["val"])
    zeros.write_bytes(zeros.read_bytes()[:-300] + bytes(300))  # as large as before, and Pillow decodes it
    other.write_bytes(b"GIF" + other.read_bytes()[3:])
    with pytest.raises(RunError, match="2 of 8 pictures cannot be read"):
        process(source, data, "--check")
    said = capsys.readouterr().out
    assert f"{zeros}: its end is missing" in said
    assert f"{other}: it is damaged, or no image" in said


def test_sample_touches_nobody_s_pictures(data: Path) -> None:
    """Cut pictures of a drawing are drawn again; those in somebody's COCO are not ours to remove."""
    picture = locations(data)["val_images"] / image_name(11)
    picture.parent.mkdir(parents=True)
    picture.write_bytes(jpeg(11)[:-300])
    with pytest.raises(UsageError, match="not drawn by"):
        main(["--sample", "--data", str(data)])
    assert picture.exists()


def test_captions_come_back_without_the_server(server: str, source: Path, data: Path) -> None:
    """The annotations' archive stays here, so that a lost caption file costs no connection."""
    process(server, data)
    (source / ARCHIVES["annotations"]).unlink()
    locations(data)["val_captions"].unlink()
    process(server, data)
    assert read_captions(locations(data)["val_captions"]).image_ids == IDS["val"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--source", "nowhere"],
        ["--source", "ftp://coco"],
        ["--splits", "all"],
        ["--sample", "--captions-only"],
    ],
)
def test_wrong_use_is_exit_code_2(tmp_path: Path, flags: list[str]) -> None:
    command = [sys.executable, "process_coco.py", "--data", str(tmp_path / "data"), *flags]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_captions_are_read_behind_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text(
        "\ufeff" + json.dumps(annotations(IDS["val"])), encoding="utf-8"
    )  # a Windows editor's mark
    read = read_captions(path)
    assert read.image_ids == IDS["val"]
    assert len(read.captions) == 10
    assert read.captions[0] == (11, "A red dog, number 11.")
