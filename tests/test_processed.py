"""The lists in `processed/`: whatever a file holds, it is a sound list or one line that says what to do."""

import pytest
import torch

from coco.data import CocoData, load_processed
from coco.tokenizer import load_tokenizer
from coco_loader import get_coco_loader
from image_transforms import EvaluationTransform
from support.errors import UsageError

PAIR = {"caption": [1, 5, 2], "image_id": 7}
WRONG = {
    "tokenized": {
        "no list": {"caption": [1, 2], "image_id": 7},
        "a tensor": torch.ones(3),
        "the key of an older version": [PAIR, {"tokens": [1, 2], "image_id": 7}],
        "a caption that is text": [PAIR, PAIR | {"caption": "a dog"}],
        "a caption that is missing": [PAIR, {"image_id": 7}],
        "a key more": [PAIR, PAIR | {"id": 3}],
        "a tensor for a caption": [PAIR, PAIR | {"caption": torch.tensor([1, 2])}],
        "a float among the tokens": [PAIR, PAIR | {"caption": [1, 5.0, 2]}],
        "a truth value among the tokens": [PAIR, PAIR | {"caption": [1, True, 2]}],
        "nothing between": [PAIR, PAIR | {"caption": []}],
        "a negative token": [PAIR, PAIR | {"caption": [1, -1, 2]}],
        "a token beyond 32 bits": [PAIR, PAIR | {"caption": [1, 2**31, 2]}],
        "an id that is text": [PAIR, PAIR | {"image_id": "7"}],
        "a negative id": [PAIR, PAIR | {"image_id": -7}],
        "an id beyond 64 bits": [PAIR, PAIR | {"image_id": 2**63}],
        "a number": [PAIR, 7],
    },
    "im2capts": {
        "a dict": {7: ["a dog"]},
        "a list for the pair": [(7, ["a dog"]), [9, ["a cat"]]],
        "three of a kind": [(7, ["a dog"]), (9, ["a cat"], 5)],
        "one caption that is no list": [(7, ["a dog"]), (9, "a cat")],
        "a caption that is null": [(7, ["a dog"]), (9, [None])],
        "an id that is text": [(7, ["a dog"]), ("9", ["a cat"])],
        "a negative id": [(7, ["a dog"]), (-9, ["a cat"])],
        "a number": [(7, ["a dog"]), 9],
    },
    "image_ids": {
        "a tensor": torch.tensor([7, 9]),
        "an id that is text": [7, "9"],
        "an id that is a float": [7, 9.0],
        "an id that is true": [7, True],
        "a negative id": [7, -9],
        "an id beyond 64 bits": [7, 2**63],
    },
}
MODES = {"tokenized": "caption_first", "im2capts": "image_first", "image_ids": "image_only"}


@pytest.mark.parametrize(("what", "wrong"), [(what, wrong) for what in WRONG for wrong in WRONG[what]])
def test_a_list_of_other_things_is_one_line_that_names_file_entry_and_remedy(tiny_coco, what, wrong):
    """It was a KeyError's traceback, an index beyond the embedding, or a picture -9 that cannot be found."""
    content, path = WRONG[what][wrong], tiny_coco[f"val_{what}"]
    torch.save(content, path)
    with pytest.raises(UsageError) as caught:
        get_coco_loader("val", 2, EvaluationTransform(16), mode=MODES[what], data=CocoData(tiny_coco))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert ("entry 1 is not" in message) == (type(content) is list)
    assert "remove the file and run `python process_coco.py" in message


def test_tokens_of_another_tokenizer_are_seen_where_the_tokenizer_is_known(tiny_coco):
    size = load_tokenizer(tiny_coco["tokenizer"]).get_vocab_size()
    for highest in (size - 1, size):
        entries = [PAIR, PAIR | {"caption": [1, highest, 2]}]
        torch.save(entries, tiny_coco["val_tokenized"])
        assert load_processed(tiny_coco, "val", "tokenized") == entries
        if highest < size:
            assert (
                len(get_coco_loader("val", 2, EvaluationTransform(16), data=CocoData(tiny_coco)).dataset) == 2
            )
            continue
        with pytest.raises(UsageError, match=rf"entry 1 is not .* tokens below {size}.*process_coco\.py"):
            get_coco_loader("val", 2, EvaluationTransform(16), data=CocoData(tiny_coco))


def test_what_is_unusual_and_sound_is_taken(tiny_coco):
    """No captions, a blank one, the largest id; whole lists come back as they were written."""
    sound = {
        "tokenized": [{"caption": [1, 2], "image_id": 0}, {"caption": [1, 2**31 - 1], "image_id": 2**63 - 1}],
        "im2capts": [(0, []), (2**63 - 1, ["", "é"] * 7)],
        "image_ids": [0, 2**63 - 1],
    }
    for what, entries in sound.items():
        torch.save(entries, tiny_coco[f"val_{what}"])
        assert load_processed(tiny_coco, "val", what) == entries


def test_pre_training_does_without_unlabeled_images_where_there_are_none(tiny_coco):
    """COCO's are 20 GB: a data set without them trains on the others; one that is half made still says so."""
    asked = ("train", "unlabeled")
    assert CocoData(tiny_coco).splits_with_images(asked) == ["train", "unlabeled"]
    away, copies = (tiny_coco["unlabeled_images"].with_name(name) for name in ("away", "unlabeled2017_64"))
    tiny_coco["unlabeled_images"].rename(away)  # the list of these images is still there
    assert CocoData(tiny_coco).splits_with_images(asked) == ["train"]
    away.rename(copies)
    assert CocoData(tiny_coco).splits_with_images(asked) == ["train", "unlabeled"]
    copies.rename(tiny_coco["unlabeled_images"])
    tiny_coco["unlabeled_image_ids"].unlink()
    with pytest.raises(UsageError, match=r"unlabeled_image_ids.pt is missing: run `python process_coco.py"):
        load_processed(tiny_coco, CocoData(tiny_coco).splits_with_images(asked)[1], "image_ids")
    for image in tiny_coco["unlabeled_images"].iterdir():
        image.unlink()
    assert CocoData(tiny_coco).splits_with_images(asked) == ["train"]
    assert CocoData(tiny_coco).splits_with_images(("unlabeled",)) == ["unlabeled"]
    tiny_coco["train_image_ids"].unlink()
    assert CocoData(tiny_coco).splits_with_images(asked) == ["train"]
