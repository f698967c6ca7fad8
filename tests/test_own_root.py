"""Data roots of one's own, in COCO's layout: nothing is downloaded into them, and nothing replaced."""

import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from coco import inventory, own_root
from coco.inventory import ARCHIVES
from images.image_folders import image_name
from paths import SPLITS, locations
from process_coco import main
from support.errors import UsageError
from support.files import Record
from tests.test_process_coco import IDS, QuietHandler, annotations, data, jpeg, load, server, source
from tests.training_cases import ended

__all__ = ["data", "server", "source"]  # fixtures
OWN = {"train": [3, 7, 9, 31], "val": [5, 11, 13]}  # some bear the numbers of images in the archives


@pytest.fixture
def coco(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A server in COCO's place, whose archives hold other images than COCO's."""
    monkeypatch.setattr(inventory, "COCO", server)
    monkeypatch.setattr(inventory, "PINS", dict.fromkeys(ARCHIVES))
    monkeypatch.setattr(own_root, "COCO_IMAGES", {split: len(IDS[split]) for split in ("train", "val")})
    return server


@pytest.fixture
def own(data: Path) -> dict[str, Path]:
    """Six images of somebody's own with captions, in two splits."""
    where = locations(data)
    where["annotations"].mkdir(parents=True)
    for split, ids in OWN.items():
        where[f"{split}_captions"].write_text(json.dumps(annotations(ids)))
        where[f"{split}_images"].mkdir()
        for image_id in ids:
            (where[f"{split}_images"] / image_name(image_id)).write_bytes(jpeg(image_id + 1))
    return where


def png(seed: int) -> bytes:
    buffer = BytesIO()
    Image.effect_noise((40 + seed, 30), 50).save(buffer, "PNG")
    return buffer.getvalue()


def files_of(where: dict[str, Path]) -> dict[str, bytes]:
    """All but what processing writes."""
    root = where["data"]
    files = (path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
    names = {str(path.relative_to(root)): path.read_bytes() for path in files}
    return {name: content for name, content in names.items() if not name.startswith("processed/")}


HARMS = {
    "none": lambda folder: None,
    "one is missing": lambda folder: (folder / image_name(9)).unlink(),
    "a PNG": lambda folder: (folder / image_name(9)).write_bytes(png(3)),
    "a film behind the JPEG's end": lambda folder: (folder / image_name(9)).write_bytes(jpeg(9) + b"x" * 999),
    "one is cut": lambda folder: (folder / image_name(9)).write_bytes(jpeg(9)[:-300]),
}


@pytest.mark.parametrize("harm", HARMS)
def test_into_one_s_own_data_nothing_is_downloaded(
    coco: str, own: dict[str, Path], harm: str, capsys: pytest.CaptureFixture
) -> None:
    """One image missing, or one that looked cut, and COCO's 19 GB came, over one's own images."""
    HARMS[harm](own["train_images"])
    before = files_of(own)
    main(["--data", str(own["data"])])
    assert files_of(own) == before
    assert QuietHandler.asked == []
    there = [image_id for image_id in OWN["train"] if (harm, image_id) != ("one is missing", 9)]
    assert load(own["train_image_ids"]) == there
    assert [entry["image_id"] for entry in load(own["train_tokenized"])] == [
        i for i in there for _ in range(5)
    ]
    said = capsys.readouterr()
    assert "not COCO's captions" in said.out
    warning = "train: 1 of 4 images that the captions list are not there: 000000000009.jpg: training goes on"
    assert (warning in said.err) == (harm == "one is missing")
    main(["--data", str(own["data"]), "--resize", "64"] if harm == "none" else ["--data", str(own["data"])])
    assert ("nothing to do" in capsys.readouterr().out) == (harm != "none")


def test_an_archive_s_images_do_not_replace_one_s_own(coco: str, own: dict[str, Path]) -> None:
    """Also where the source is named, and the images that are missing are to come from it."""
    (own["train_images"] / image_name(3)).unlink()
    before = files_of(own)
    with pytest.raises(UsageError, match=r"train2017\.zip, 2 in all, .*: 0+7\.jpg, 0+9\.jpg: .*--own DIR"):
        main(["--data", str(own["data"]), "--source", coco])
    after = files_of(own)
    assert {name: after[name] for name in before} == before
    own["val_captions"].unlink()
    with pytest.raises(
        UsageError, match=r"annotations_trainval2017\.zip.*: captions_train2017\.json: .*--data"
    ):
        main(["--data", str(own["data"]), "--source", coco])
    assert (
        files_of(own)["annotations/captions_train2017.json"] == before["annotations/captions_train2017.json"]
    )


def test_images_without_captions_are_not_mixed_with_coco_s(coco: str, own: dict[str, Path]) -> None:
    shutil.rmtree(own["annotations"])
    before = files_of(own)
    with pytest.raises(
        UsageError, match=r"train2017 holds 2 images that are not COCO's: 0+3\.jpg, 0+31\.jpg: "
    ):
        main(["--data", str(own["data"])])
    assert not any("GET /zips/" in request for request in QuietHandler.asked)
    after = files_of(own)
    assert {name: after[name] for name in before} == before


def test_a_download_of_coco_that_was_broken_off_goes_on(coco: str, source: Path, data: Path) -> None:
    """Its captions are there, its images half, without a word of where they came from."""
    main(["--data", str(data), "--splits", "train", "val"])
    where = locations(data)
    whole = files_of(where)
    (where["train_images"] / image_name(7)).unlink()
    (where["val_images"] / image_name(11)).write_bytes(jpeg(11)[:100])
    where["record"].unlink()
    main(["--data", str(data), "--splits", "train", "val"])
    assert files_of(where) == whole


@pytest.mark.parametrize(
    "left", ["", '{"info": {"desc', '{"info": {"description": "COCO 2017 Dataset", "url']
)
def test_coco_s_caption_file_that_an_unzip_left_cut_is_told_from_one_s_own(
    data: Path, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, record = locations(data), Record(data / "record.json")
    where["annotations"].mkdir(parents=True)
    where["train_captions"].write_text(left)
    assert not own_root.is_own_root(where, record)
    where["train_captions"].write_text('{"images": [{"id": 7,}]}')
    with pytest.raises(
        UsageError, match=r"captions_train2017\.json is not whole .*line 1 column 2.*: mend it"
    ):
        own_root.is_own_root(where, record)


def test_the_caption_files_of_coco_are_known_by_how_many_images_they_list(data: Path) -> None:
    where, record = locations(data), Record(data / "record.json")
    where["annotations"].mkdir(parents=True)
    for number, own in ((118_287, False), (118_286, True), (5_000, True)):
        content = {"images": [{"id": image_id} for image_id in range(number)], "annotations": []}
        where["train_captions"].write_text(json.dumps(content))
        assert own_root.is_own_root(where, record) == own
    where["train_captions"].unlink()
    where["val_captions"].write_text(json.dumps(content))
    assert not own_root.is_own_root(where, record)


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


NOT_READY = {
    "no images": (
        lambda own: shutil.rmtree(own["val_images"]),
        "holds none of the 3 images that .*--own DIR",
    ),
    "other names": (
        lambda own: [
            path.rename(path.with_name(f"{path.stem}_a.jpg")) for path in own["train_images"].iterdir()
        ],
        r"train2017 holds none of the 4 images that .*: 0+3\.jpg, .* --own DIR",
    ),
    "no captions": (lambda own: edited(own["val_captions"], annotations=[]), "val2017.json holds no caption"),
    "nothing listed": (
        lambda own: edited(own["val_captions"], annotations=[], images=[]),
        "val2017.json lists no image",
    ),
    "captions of others": (
        lambda own: edited(own["val_captions"], annotations=annotations([77, 78])["annotations"]),
        r"none of the 10 captions in .*val2017\.json is of an image in .*val2017: .* images 77, 77, ",
    ),
    "no val captions": (
        lambda own: own["val_captions"].unlink(),
        "val2017.json is not there, .* leave val out with --splits train test unlabeled. Training needs",
    ),
    "no train captions": (
        lambda own: own["train_captions"].unlink(),
        "captions_train2017.json is not there, ",
    ),
    "a link to nowhere": (
        lambda own: (own["data"] / "unlabeled2017").symlink_to("/mnt/not mounted"),
        "unlabeled2017 is a link to /mnt/not mounted, which is not there",
    ),
}


@pytest.mark.parametrize("kind", NOT_READY)
def test_data_that_cannot_be_trained_on_are_an_error_and_not_ready(
    coco: str, own: dict[str, Path], kind: str, capsys: pytest.CaptureFixture
) -> None:
    change, message = NOT_READY[kind]
    change(own)
    with pytest.raises(UsageError, match=message):
        main(["--data", str(own["data"])])
    assert QuietHandler.asked == []
    assert "ready" not in capsys.readouterr().out


def test_train_alone_is_processed_where_it_is_asked_for(coco: str, own: dict[str, Path]) -> None:
    own["val_captions"].unlink()
    main(["--data", str(own["data"]), "--splits", "train"])
    assert load(own["train_image_ids"]) == OWN["train"]
    assert not own["val_image_ids"].exists()


def test_a_check_of_nothing_is_an_error(
    coco: str, own: dict[str, Path], capsys: pytest.CaptureFixture
) -> None:
    """It said "all 0 pictures can be read"."""
    for split in SPLITS:
        shutil.rmtree(own[f"{split}_images"], ignore_errors=True)
    flags = ["--data", own["data"], "--captions-only", "--check"]
    code, message = ended(main, *flags, capsys=capsys)
    assert code == 2
    assert "--check: there is no image in " in message
