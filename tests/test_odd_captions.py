"""Captions of every kind of trouble, from the caption file through training to the scores."""

import json
import math
import shutil

import pytest
import torch

import evaluate_captioner
import process_coco
from coco.data import CocoData
from coco_loader import ImgFirstDataset
from image_transforms import EvaluationTransform
from support.errors import UsageError
from tests.training_cases import STACK, ended, state_of, train_captions, train_mae, write_config

MISSING = object()
# By picture, in order of its id: what its captions say.  The kept ones are those that are not blank.
TRAIN = [
    ["a red square"],
    [],
    [None, "", "  \n ", MISSING],
    [f"square number {n}" for n in range(7)],
    ["a wall " * 300],  # of 600 words; the decoder reads 30 tokens
    ["a cat", None, "<EOS> <PAD> a square <SOS>", "猫 \U0001f408 ...", "a \0 square\x07 \x1b[31m"],
]
KEPT = [1, 0, 0, 7, 1, 4]
VAL = [["a square"], [], ["", None], ["..."], ["a wall " * 300], ["a square"] * 7]
ABSENT = {"image_id": 5, "caption": "nowhere to be seen"}


@pytest.fixture
def odd_coco(make_tiny_coco):
    """A function that writes caption files and processes them; they list a picture that is not there."""
    paths = make_tiny_coco(train=len(TRAIN), val=len(VAL), unlabeled=0)
    shutil.rmtree(paths["processed"])  # what process_coco.py did not make, it would not replace

    def write(train=TRAIN, val=VAL):
        for split, captions in (("train", train), ("val", val)):
            content = json.loads(paths[f"{split}_captions"].read_text())
            listed = [image for image in content["images"] if image["id"] != ABSENT["image_id"]]
            content["annotations"] = [ABSENT] + [
                {"image_id": image["id"]} | ({} if text is MISSING else {"caption": text})
                for image, texts in zip(listed, captions, strict=True)
                for text in texts
            ]
            content["images"] = [*listed, {"id": ABSENT["image_id"]}]
            paths[f"{split}_captions"].write_text(json.dumps(content))
        process_coco.main(["--captions-only", "--data", str(paths["data"])])
        return paths

    return write


@pytest.fixture
def configs(tmp_path):
    one_layer = STACK | {"num_layers": 1}
    mae = write_config(
        tmp_path, "mae_config.yaml", splits=["train"], encoder=one_layer, decoder={**one_layer}
    )

    def captioner(**changes):
        return write_config(tmp_path, "captioner_config.yaml", decoder=one_layer, eval_freq=1, **changes)

    return mae, captioner


def test_odd_captions_are_trained_on_and_scored_as_they_are(odd_coco, configs, tmp_path, capsys):
    """Every kept caption is a sample; every picture is captioned, and scored if anybody captioned it."""
    data, (mae, captioner) = odd_coco()["data"], configs
    train_mae(data, tmp_path / "out", mae, "--epochs", "1")
    for captions, length_buckets in ((1, False), (1, True), (2, False)):
        config = captioner(captions_per_image=captions, length_buckets=length_buckets)
        train_captions(data, tmp_path / "out", config, "-p", "last", "--epochs", "1")
        state = state_of(tmp_path / "out", "captioner")
        assert state["samples"] == sum(math.ceil(kept / captions) for kept in KEPT)
        (entry,) = state["progress"]["history"]
        assert entry["skipped_steps"] == entry["unreadable_samples"] == 0
        assert all(math.isfinite(entry[key]) for key in ("train_loss", "val_loss", "bleu4"))
    results = tmp_path / "results.json"
    arguments = ["--data", data, "--out", results, "-c", tmp_path / "out" / "captioner" / "checkpoint1.pt"]
    evaluate_captioner.main([str(argument) for argument in arguments])
    metrics = json.loads((tmp_path / "results_metrics.json").read_text())
    assert len(json.loads(results.read_text())) == metrics["images"] == len(VAL)
    assert metrics["scored_images"] == 4
    assert metrics["human_images"] == 1
    assert all(math.isfinite(figure) for figure in metrics["metrics"].values())

    torch.save([(image_id, []) for image_id in range(1, 7)], data / "processed" / "val_im2capts.pt")
    code, message = ended(evaluate_captioner.main, *arguments, capsys=capsys)
    assert code == 2
    assert message.count("\n") == 1
    assert "none of the 6 pictures of val" in message, "said before any is captioned"


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_captions_cannot_be_trained_on(odd_coco, configs, tmp_path, split):
    paths = odd_coco()
    if split == "train":  # the tokenizer is there, from captions that are gone
        paths["train_captions"].write_text(json.dumps({"images": [], "annotations": []}))
        with pytest.raises(UsageError, match="holds no caption, and the tokenizer is trained on them"):
            process_coco.main(["--captions-only", "--data", str(paths["data"])])
        return
    with pytest.raises(
        UsageError, match=r"none of the 1 captions in .*captions_val2017\.json is of an image"
    ):
        odd_coco(val=[[], [None], [" "], [MISSING], [], []])
    torch.save([], paths["val_tokenized"])
    mae, captioner = configs
    train_mae(paths["data"], tmp_path / "out", mae, "--epochs", "1")
    with pytest.raises(UsageError, match=r"val_tokenized.*val split has captions of its pictures"):
        train_captions(paths["data"], tmp_path / "out", captioner(), "-p", "last", "--epochs", "1")


def test_a_share_in_which_no_picture_has_a_caption_is_said_before_training(odd_coco, configs, tmp_path):
    """BLEU was asked for at the end of the first epoch, and the epoch was lost."""
    everything = ImgFirstDataset("val", EvaluationTransform(16), data=CocoData(odd_coco()), subset=1.0)
    share = ImgFirstDataset("val", EvaluationTransform(16), data=CocoData(odd_coco()), subset=0.01)
    chosen = everything.image_ids.tolist().index(int(share.image_ids))
    data = odd_coco(val=[[] if number == chosen else ["a square"] for number in range(len(VAL))])["data"]
    mae, captioner = configs
    train_mae(data, tmp_path / "out", mae, "--epochs", "1")
    with pytest.raises(UsageError, match="none of the 1 pictures of val that were chosen has a caption"):
        train_captions(data, tmp_path / "out", captioner(), "-p", "last", "--epochs", "1", "-s", "0.01")


def test_pictures_with_a_caption_are_counted(odd_coco):
    paths = odd_coco()
    assert ImgFirstDataset("val", EvaluationTransform(16), data=CocoData(paths)).captioned == 4
    assert ImgFirstDataset("train", EvaluationTransform(16), data=CocoData(paths)).captioned == 4


@pytest.mark.parametrize(("length", "refused"), [(10_000, False), (10_001, True)])
def test_a_caption_of_absurd_length_is_refused_by_its_place(odd_coco, length, refused):
    """The tokenizer's training takes the square of a word's length: a minute for 300,000 letters."""
    train = [[], [], [], ["a square", "x" * length], [], []]
    if not refused:
        odd_coco(train=train)
        return
    with pytest.raises(UsageError, match=r"captions_train2017.json: annotations\[2\] has .* 10,001 char"):
        odd_coco(train=train)
