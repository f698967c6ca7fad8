"""Inputs changed at random, each given to the function with which the product reads it.

`try_all` takes a kind of input and a count; the quick tests and tests/faults differ in the count alone.
"""

import functools
import io
import json
import os
import random
import re
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from coco.archives import extract, wanted_members
from coco.caption_files import read_captions
from coco.data import load_processed
from coco.tokenizer import load_tokenizer, train_tokenizer
from image_transforms import load_image
from images.image_folders import decoding_error
from paths import locations
from support.configuration import load_config
from support.errors import RunError, UsageError
from tests.checkpoint_cases import in_child
from tests.training_cases import write_config
from train_encoder import MaeConfig

LONGEST = 2.0  # seconds that any input may take: a bound on what a hostile file can cost
WANTED = re.compile(r"val2017/[0-9]{12}\.jpg")


class Outcome(NamedTuple):
    accepted: int
    refused: int
    slowest: float  # seconds


def picture(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((48, 36), Image.Resampling.BICUBIC).save(file, kind, quality=60)
    return file.getvalue()


def captions() -> bytes:
    ids = [7, 2**31 + 5]
    listed = [{"image_id": i, "id": n, "caption": f"A dog, number {n}."} for n in range(3) for i in ids]
    return json.dumps({"images": [{"id": i} for i in ids], "annotations": listed}).encode()


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for number in range(4):
            packed.writestr(f"val2017/{number:012d}.jpg", random.Random(number).randbytes(40) * (number + 1))
    return file.getvalue()


def processed() -> bytes:
    file = io.BytesIO()
    torch.save([{"caption": [1, 5, 9, 2], "image_id": 2**31 + n} for n in range(3)], file)
    return file.getvalue()


def read_archive(path: Path) -> None:
    folder = path.with_name("unpacked")
    if folder.exists():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    extract(path, wanted_members(path, WANTED), folder)


def check_picture(path: Path) -> None:
    """Both ways in which a picture is read: to train on it, and to check it."""
    decoding_error(path)
    load_image(path)


def read_processed(path: Path) -> None:
    load_processed({**locations(path.parent), "val_tokenized": path}, "val", "tokenized")


def configuration() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_config(Path(folder), "mae_config.yaml").read_bytes()


# By kind: the sound input, what reads it, what a mutation likes to insert.
KINDS: dict[str, tuple[Callable[[], bytes], Callable[[Path], object], bytes]] = {
    "jpeg": (
        functools.partial(picture, "JPEG"),
        check_picture,
        b"\xff\xd8\xff\xd9\xff\xda\xff\xc4\xff\xe1\0",
    ),
    "png": (functools.partial(picture, "PNG"), check_picture, b"\0\xffIHDRIDATtEXt"),
    "yaml": (
        configuration,
        lambda path: load_config(path, MaeConfig),
        b"\0\t\n #%&*!|>-?:,[]{}@.1e+nu~\xc3",
    ),
    "annotations": (captions, read_captions, b'{}[]",:0123456789-.eE\\untrfal \0\xff'),
    "zip": (archive, read_archive, b"PK\1\2\3\4\5\6../\\\0\xff"),
    "processed": (processed, read_processed, b"\x80\x02.}]qXKMJubsRc()\0\xff"),
    "tokenizer": (
        lambda: train_tokenizer(["a dog and a cat", "a dog"], 270).to_str().encode(),
        load_tokenizer,
        b'{}[]",:0123456789-.eE\\untrfal <>\0\xff',
    ),
}


def mutated(data: bytes, draw: random.Random, likely: bytes) -> bytes:
    """Some bytes flipped, replaced, cut out, doubled or zeroed, or all cut short."""
    content = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        place = draw.randrange(len(content)) if content else 0
        length = draw.choice((1, 1, 2, 4, 40))
        kind = draw.randrange(7)
        if kind == 0 and content:
            content[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            content[place : place + length] = bytes(draw.choices(likely, k=length))
        elif kind == 2:
            del content[place : place + length]
        elif kind == 3:
            content[place:place] = content[place : place + length] * draw.choice((1, 3))
        elif kind == 4:
            content[place : place + length] = b"\xff" * length
        elif kind == 5:
            content[place : place + length] = bytes(length)
        elif draw.random() < 0.2:
            del content[place:]
    return bytes(content)


def try_all(kind: str, count: int, folder: Path, seed: int = 0) -> Outcome:
    """Reads `count` mutated inputs; anything but success, UsageError or RunError passes through and fails."""
    make, read, likely = KINDS[kind]
    sound, draw = make(), random.Random(f"{kind} {seed}")
    inside = folder / "work"
    inside.mkdir()
    path = inside / "input.json"
    path.write_bytes(sound)
    read(path)  # the sound one is accepted
    accepted = refused = 0
    slowest = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(count):
            path.write_bytes(mutated(sound, draw, likely))
            started = time.monotonic()
            try:
                read(path)
                accepted += 1
                line = str(path)
            except (UsageError, RunError) as error:
                refused += 1
                line = str(error)
            assert "\n" not in line, (number, line)
            assert str(path) in line, (number, line)
            slowest = max(slowest, time.monotonic() - started)
            assert slowest < LONGEST, (number, slowest)
    assert [entry.name for entry in folder.iterdir()] == ["work"], "something was written outside"
    assert {entry.name for entry in inside.iterdir()} <= {"input.json", "unpacked", "unpacked.partial"}
    return Outcome(accepted, refused, slowest)


def no_code_runs_in(action: Callable[[], None]) -> int:
    """Runs `action` in a child in which starting a program, by whatever call, ends it with an error."""

    def guarded() -> None:
        forbidden = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.fork"}

        def watch(event: str, _: tuple) -> None:
            if event in forbidden:
                os._exit(98)

        sys.addaudithook(watch)
        action()

    return in_child(guarded)
