"""Splits of one's own over train2017 and val2017, from the file to training and evaluation."""

import hashlib
import json
import tracemalloc

import pytest
import torch

import evaluate_captioner
import export
import train_captioner
import train_encoder
from coco.data import CocoData, load_processed
from coco.split_file import read_split_file
from coco_loader import get_coco_loader
from image_transforms import EvaluationTransform, load_image
from images.image_folders import image_name
from support.errors import UsageError
from tests.training_cases import ended, train_captions, train_mae, write_config

IN_TRAIN, IN_VAL = [3, 1, 2**31 + 7, 5], [4, 2]


def written(folder, content) -> object:
    path = folder / "splits.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def karpathys(splits) -> dict:
    """Image ids by split in the layout of dataset_coco.json.

    Its other numbers and its places lead astray: `imgid` counts pictures, and the folders are those of 2014.
    """
    images = []
    for split, ids in splits.items():
        for image_id in ids:
            folder, imgid = "train2014" if split == "train" else "val2014", len(images)
            texts = ["A dog runs.", 'A "dog", running.', "Dog {on} a [road]"]
            sentids = [7 + 3 * imgid + number for number in range(len(texts))]
            images.append(
                {
                    "filepath": folder,
                    "sentids": sentids,
                    "filename": f"COCO_{folder}_{image_id:012d}.jpg",
                    "imgid": imgid,
                    "split": split,
                    "sentences": [
                        {"tokens": text.lower().split(), "raw": text, "imgid": imgid, "sentid": sentid}
                        for text, sentid in zip(texts, sentids)
                    ],
                    "cocoid": image_id,
                }
            )
    return {"images": images, "dataset": "coco"}


def dealt_anew(paths, folder, kind="lists of ids"):
    """A split file whose splits each take pictures of both folders."""
    train, val = (load_processed(paths, split, "image_ids") for split in ("train", "val"))
    ids = {"train": [*train[:4], val[0]], "val": [train[4], val[1]], "test": [train[5], val[3]]}
    if kind == "Karpathy's":
        content = karpathys(
            {"train": ids["train"][:2], "restval": ids["train"][2:]}
            | {split: ids[split] for split in ("test", "val")}
        )
        return written(folder, content), ids
    return written(folder, ids), ids


def test_both_kinds_of_file_give_the_same_split(tmp_path):
    plain = written(tmp_path, {"train": [1, 4, 5], "val": [3], "test": [2]})
    first = read_split_file(plain, IN_TRAIN, IN_VAL)
    sha256 = hashlib.sha256(plain.read_bytes()).hexdigest()
    content = karpathys({"test": [2], "restval": [5, 4], "val": [3], "train": [1]})
    second = read_split_file(written(tmp_path, content), IN_TRAIN, IN_VAL)
    for split, ids in {"train": [1, 4, 5], "val": [3], "test": [2]}.items():
        assert first.ids[split].tolist() == second.ids[split].tolist() == ids
    assert first.sha256 == sha256 != second.sha256
    third = read_split_file(written(tmp_path, {"train": [1.0, "4", 5], "val": ["03"]}), IN_TRAIN, IN_VAL)
    assert third.ids["train"].tolist() == [1, 4, 5]
    assert third.ids["val"].tolist() == [3]
    assert [first.folder_split("train", image_id) for image_id in (1, 4, 5)] == ["train", "val", "train"]
    assert [first.folder_split("test", 2), first.folder_split("unlabeled", 4)] == ["val", "unlabeled"]


def test_the_captions_in_karpathy_s_file_are_not_kept_in_memory(tmp_path):
    """All of dataset_coco.json as Python objects takes 6 times its 144 MB, in every process."""
    path = written(tmp_path, karpathys({"train": range(3000), "val": [3001]}))
    tracemalloc.start()
    try:
        read_split_file(path, range(3000), [3001])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * path.stat().st_size


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"train": [1, 4], "val": [3, 4]}, ["picture 4", "train", "val", "overlap"]),
        ({"train": [1, 1], "val": [3]}, ["picture 1", "train"]),
        ({"train": [1], "val": [3], "test": [1]}, ["picture 1", "train", "test"]),
        ({"train": [1, 98, 99], "val": [3]}, ["2 of its 4", "98"]),
        ({"train": [1], "val": []}, ["no pictures for val"]),
        ({"train": [1]}, ["no split file"]),
        ({"train": [1], "val": [3], "dev": [2]}, ["no split file"]),
        ({"train": [1], "val": 3}, ["val", "list"]),
        ({"train": ["1a"], "val": [3]}, ["train", "whole number", "'1a'"]),
        ({"train": [1.5], "val": [3]}, ["train", "whole number", "1.5"]),
        ({"train": [1, 1.0], "val": [3]}, ["picture 1", "train"]),
        ({"train": [True], "val": [3]}, ["whole number"]),
        ({"images": [{"split": "train"}]}, ["images[0]", "cocoid"]),
        ({"images": [{"split": "dev", "cocoid": 1}]}, ["images[0]", "restval"]),
        ({"images": [{"split": "restval", "cocoid": 1}, {"split": "val", "cocoid": 1}]}, ["picture 1"]),
        ("[1, 2]", ["no split file"]),
        ("{", ["no JSON"]),
    ],
)
def test_a_file_that_is_wrong_is_named_with_what_is_wrong(content, words, tmp_path):
    with pytest.raises(UsageError) as caught:
        read_split_file(written(tmp_path, content), IN_TRAIN, IN_VAL)
    assert all(word in str(caught.value) for word in ["splits.json", *words])


def test_pictures_that_share_an_id_cannot_be_told_apart(tmp_path):
    with pytest.raises(UsageError, match="4 is in train2017 and val2017"):
        read_split_file(written(tmp_path, {"train": [1], "val": [4]}), [1, 4], [4])


@pytest.mark.parametrize("mode", ["caption_first", "image_first", "image_only"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("kind", ["lists of ids", "Karpathy's"])
def test_each_loader_reads_the_pictures_that_the_file_gives_it_from_where_they_lie(
    kind, mode, split, tiny_coco, tmp_path
):
    path, ids = dealt_anew(tiny_coco, tmp_path, kind)
    transform = EvaluationTransform(32)
    loader = get_coco_loader(split, 100, transform, mode=mode, data=CocoData.open(tiny_coco, path))
    (batch,) = loader
    assert sorted(set(batch.image_ids.tolist())) == sorted(ids[split])
    for image, image_id in zip(batch.images, batch.image_ids.tolist()):
        places = [tiny_coco[f"{folder}_images"] / image_name(image_id) for folder in ("train", "val")]
        (place,) = (place for place in places if place.exists())
        assert torch.equal(image, transform(load_image(place)))
    if mode == "image_first":
        texts = dict(
            load_processed(tiny_coco, "train", "im2capts") + load_processed(tiny_coco, "val", "im2capts")
        )
        assert batch.captions == [texts[image_id] for image_id in batch.image_ids.tolist()]
    if mode == "caption_first":
        assert len(batch.image_ids) == 5 * len(ids[split])


def test_the_autoencoder_keeps_its_unlabeled_pictures(tiny_coco, tmp_path):
    path, ids = dealt_anew(tiny_coco, tmp_path)
    data = CocoData.open(tiny_coco, path)
    splits = ["train", "unlabeled"]
    loader = get_coco_loader(splits, 100, EvaluationTransform(32), mode="image_only", data=data)
    (batch,) = loader
    unlabeled = load_processed(tiny_coco, "unlabeled", "image_ids")
    assert batch.image_ids.tolist() == [*sorted(ids["train"]), *unlabeled]


@pytest.fixture
def trained(tiny_coco, tmp_path):
    """A run with a split file, its data and the file."""
    path, ids = dealt_anew(tiny_coco, tmp_path)
    mae, config = (write_config(tmp_path, f"{name}_config.yaml") for name in ("mae", "captioner"))
    data, out = tiny_coco["data"], tmp_path / "out"
    train_mae(data, out, mae, "--epochs", "1", "--split-file", str(path))
    train_captions(data, out, config, "-p", "last", "--epochs", "1", "--split-file", str(path))
    return tiny_coco, out, path, ids, {"encoder": mae, "captioner": config}


def test_a_captioner_is_evaluated_on_what_it_was_not_trained_on(trained, tmp_path, capsys):
    paths, out, path, ids, _ = trained
    checkpoint = out / "captioner" / "checkpoint1.pt"
    options = ["-c", checkpoint, "--data", paths["data"], "--out", tmp_path / "r.json"]
    evaluate_captioner.main([*map(str, options), "--split-file", str(path), "--split", "test"])
    captioned = json.loads((tmp_path / "r.json").read_text())
    assert sorted(entry["image_id"] for entry in captioned) == sorted(ids["test"])
    signature = json.loads((tmp_path / "r_metrics.json").read_text())["signature"]
    assert "| n=2 | test of splits.json sha256 " in signature

    code, message = ended(evaluate_captioner.main, *options, capsys=capsys)  # val2017 holds a trained one
    assert code == 2
    (seen,) = set(ids["train"]) & set(load_processed(paths, "val", "image_ids"))
    assert all(word in message for word in ("1 of the 4 pictures", str(seen), "splits.json"))
    evaluate_captioner.main([*map(str, options), "--split", "train"])  # here it is the point


def test_its_card_quotes_the_evaluation_on_the_val_images_of_its_split(trained, tmp_path):
    """That has a file name of its own, which the export did not look for."""
    pytest.importorskip("safetensors")
    paths, out, path, _, _ = trained
    checkpoint = out / "captioner" / "checkpoint1.pt"
    evaluate_captioner.main(["-c", str(checkpoint), "--data", str(paths["data"]), "--split-file", str(path)])
    (metrics,) = checkpoint.parent.glob("checkpoint1_val_*_metrics.json")
    export.main(["-c", str(checkpoint), str(tmp_path / "taken")])
    signature = json.loads(metrics.read_text())["signature"]
    assert "splits.json" in signature
    assert signature in (tmp_path / "taken" / "README.md").read_text()


def test_a_captioner_of_coco_s_own_split_is_not_scored_on_another_s_test_pictures(trained, tmp_path, capsys):
    paths, out, path, ids, configs = trained
    encoder = out / "encoder" / "checkpoint1.pt"
    capsys.readouterr()
    train_captions(paths["data"], tmp_path / "own", configs["captioner"], "-p", str(encoder), "--epochs", "1")
    assert "pre-trained with the split file splits.json" in capsys.readouterr().err
    options = ["-c", tmp_path / "own" / "captioner" / "checkpoint1.pt", "--data", paths["data"]]
    more = ["--split-file", path, "--split", "test"]
    code, message = ended(evaluate_captioner.main, *options, *more, capsys=capsys)
    assert code == 2
    seen = set(ids["test"]) & set(load_processed(paths, "train", "image_ids"))
    assert f"{len(seen)} of the 2 pictures" in message
    assert "COCO's 2017 split" in message


def test_a_run_goes_on_with_the_same_split_only(trained, capsys):
    paths, out, path, _, configs = trained
    for main, stage in ((train_encoder.main, "encoder"), (train_captioner.main, "captioner")):
        options = [
            "--data",
            paths["data"],
            "--out",
            out,
            "-c",
            "last",
            "--config",
            configs[stage],
            "--epochs",
            "1",
        ]
        code, message = ended(main, *options, capsys=capsys)
        assert code == 2
        assert "splits.json" in message
        assert "--split-file" in message
        main([*map(str, options), "--split-file", str(path)])


def test_a_split_without_pictures_and_a_test_split_without_file_are_one_line(trained, tmp_path, capsys):
    paths, out, _, ids, _ = trained
    options = ["-c", out / "captioner" / "checkpoint1.pt", "--data", paths["data"], "--split", "test"]
    code, message = ended(evaluate_captioner.main, *options, capsys=capsys)
    assert code == 2
    assert "--split-file" in message
    without = written(tmp_path, {"train": ids["train"], "val": ids["val"]})
    code, message = ended(evaluate_captioner.main, *options, "--split-file", without, capsys=capsys)
    assert code == 2
    assert "no pictures for test" in message
