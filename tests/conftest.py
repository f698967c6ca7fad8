"""Fixtures for all tests: tiny data sets in COCO's layout, already processed, drawn on the spot."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from images.image_folders import image_name
from paths import locations
from support import interrupts, memory

# Tests run side by side; two processes with a thread for each core mostly wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)

SPECIAL_TOKENS = ("<PAD>", "<SOS>", "<EOS>", "<UNK>")
COLOURS = ("red", "green", "blue", "yellow")
RGB = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220), "yellow": (230, 220, 30)}
TEMPLATES = (
    "A {0} square in front of a {1} wall.",
    "The wall is {1}, the square is {0}.",
    "one {0} square",
    "A {0} thing, left of the middle, on {1}.",
    "a square that is {0} hangs on a bright {1} wall",
)
WORDS = sorted({word for template in TEMPLATES for word in template.lower().replace(",", " ,").split()})


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Iterator[None]:
    """A script called in this process takes over the signals; the next test finds them as before."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
    interrupts._received = None


@pytest.fixture(autouse=True)
def memory_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training called in this process would have it keep memory for good; test_memory.py tries that."""
    monkeypatch.setattr(memory, "keep_freed", lambda device: None)


@pytest.fixture
def make_tiny_coco(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """A function that draws a processed data set and returns its file locations.

    Keyword arguments, all optional:
        name: folder under the test's temporary folder; also holds `checkpoints/`.
        train, val, unlabeled: numbers of pictures.
        size: (width, height) of the pictures.  Each is a square of one colour at the left, on another colour.
        captions: captions of a picture, 0 to 5; the fourth speaks of "left".
        first_id: id of the first train picture.  The ids ascend; from the third picture on they exceed 2^31.
    """

    def make(
        name: str = "coco",
        train: int = 6,
        val: int = 4,
        unlabeled: int = 3,
        size: tuple[int, int] = (64, 48),
        captions: int = 5,
        first_id: int = 9,
    ) -> dict[str, Path]:
        paths = locations(tmp_path / name, tmp_path / name / "checkpoints")
        paths["processed"].mkdir(parents=True)
        paths["annotations"].mkdir()
        tokenizer = tiny_tokenizer()
        tokenizer.save(str(paths["tokenizer"]))
        drawn = 0
        for split, count in (("train", train), ("val", val), ("unlabeled", unlabeled)):
            paths[f"{split}_images"].mkdir()
            pictures = {}
            for number in range(drawn, drawn + count):
                image_id = first_id + number + (2**31 if number >= 2 else 0)
                colours = COLOURS[number % 4], COLOURS[(number + 1 + number // 4) % 4]
                draw(size, *colours).save(paths[f"{split}_images"] / image_name(image_id), quality=95)
                pictures[image_id] = [text.format(*colours) for text in TEMPLATES[:captions]]
            drawn += count
            write_processed(paths, split, pictures, tokenizer)
        return paths

    return make


@pytest.fixture
def tiny_coco(make_tiny_coco: Callable[..., dict[str, Path]]) -> dict[str, Path]:
    """The file locations of a tiny processed data set: 6 train, 4 val and 3 unlabeled pictures."""
    return make_tiny_coco()


def draw(size: tuple[int, int], colour: str, ground: str) -> Image.Image:
    """A square at the left: a picture that differs from its mirror image."""
    width, height = size
    picture = Image.new("RGB", size, RGB[ground])
    side = height // 2
    picture.paste(RGB[colour], (width // 16, height // 4, width // 16 + side, height // 4 + side))
    return picture


def write_processed(
    paths: dict[str, Path], split: str, pictures: dict[int, list[str]], tokenizer: Tokenizer
) -> None:
    """What `process_coco.py` writes of a split, and the annotation file it reads."""
    torch.save(sorted(pictures), paths[f"{split}_image_ids"])
    if split == "unlabeled":
        return
    pairs = [(image_id, text) for image_id, texts in pictures.items() for text in texts]
    tokenized = [{"caption": tokenizer.encode(text).ids, "image_id": image_id} for image_id, text in pairs]
    torch.save(tokenized, paths[f"{split}_tokenized"])
    torch.save(sorted(pictures.items()), paths[f"{split}_im2capts"])
    annotations = {
        "images": [{"id": image_id, "file_name": image_name(image_id)} for image_id in pictures],
        "annotations": [
            {"id": number, "image_id": image_id, "caption": text}
            for number, (image_id, text) in enumerate(pairs)
        ],
    }
    paths[f"{split}_captions"].write_text(json.dumps(annotations))


def tiny_tokenizer() -> Tokenizer:
    """One token a word or sign, for the words that the tiny data sets use."""
    vocabulary = (*SPECIAL_TOKENS, *COLOURS, ".", ",", *(w for w in WORDS if w.strip("{}.").isalpha()))
    words = dict.fromkeys(word.strip(".") or word for word in vocabulary)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<UNK>"))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<SOS> $A <EOS>",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("<SOS>", "<EOS>")],
    )
    return tokenizer
