"""All who read an image file go by one rule: the same files, the same way up."""

import io
import random
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import caption
from coco_samples import load_transformed
from image_transforms import EvaluationTransform, load_image
from images.image_folders import decoding_error, image_name, is_cut
from images.resized_copies import copy_picture
from support.errors import RunError
from tests.test_image_transforms import UPRIGHT, array
from tests.test_jpeg import encoded, motion_tail, with_segment

TRANSFORM = EvaluationTransform(32)
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" {}</rdf:RDF></x:xmpmeta>'
)
ATTRIBUTE = 'tiff:Orientation="{}"/>'
ELEMENT = "><tiff:Orientation>{}</tiff:Orientation></rdf:Description>"


def scene(width: int = 96, height: int = 64) -> Image.Image:
    """Smooth, and alike neither upside down nor mirrored nor on its side."""
    corners = np.array([[[255, 0, 0], [0, 0, 255]], [[0, 200, 0], [255, 255, 0]]], dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


def oriented(number: int | None, xmp: str | None = None, kind: str = "JPEG") -> bytes:
    """The scene with an orientation in EXIF, and with one in XMP."""
    options: dict = {"exif": Image.Exif()}
    if number is not None:
        options["exif"][0x0112] = number
    if xmp is not None and kind != "JPEG":
        options["xmp"] = xmp.encode()
    data = encoded(scene(), kind, **options)
    if xmp is not None and kind == "JPEG":
        data = with_segment(data, b"http://ns.adobe.com/xap/1.0/\0" + xmp.encode())
    return data


def grainy() -> Image.Image:
    """Of many bytes a block, so that a decoder makes much of a few zeros."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))


def stereo_with_zeros() -> bytes:
    """An MPO whose bytes are lost from the end of its first image on."""
    data = encoded(grainy(), "MPO", save_all=True, append_images=[grainy()])
    second = data.rindex(b"\xff\xd8\xff")
    return data[: second - 200] + bytes(len(data) - second + 200)


JPEG = encoded(scene(), quality=95)
GRAINY = encoded(grainy(), quality=95)
# By name: the file, and the orientation that it states, by EXIF's numbers.
ORIENTED = {
    **{f"EXIF {number}": (oriented(number), number) for number in range(1, 9)},
    "EXIF 0": (oriented(0), 1),
    "EXIF 9": (oriented(9), 1),
    "XMP alone": (oriented(None, XMP.format(ATTRIBUTE.format(6))), 6),
    "XMP alone, as an element": (oriented(None, XMP.format(ELEMENT.format(8))), 8),
    "XMP alone in a WebP": (oriented(None, XMP.format(ATTRIBUTE.format(3)), "WEBP"), 3),
    "EXIF 8 and XMP 6": (oriented(8, XMP.format(ATTRIBUTE.format(6))), 8),
    "EXIF 1 and XMP 6": (oriented(1, XMP.format(ATTRIBUTE.format(6))), 1),
    "garbage for EXIF": (with_segment(JPEG, b"Exif\0\0garbage" * 9), 1),
    "EXIF that is cut": (with_segment(JPEG, b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x05\x01"), 1),
    "garbage for XMP": (with_segment(JPEG, b"http://ns.adobe.com/xap/1.0/\0\xfftiff:Orientation=?"), 1),
    "a Motion Photo": (oriented(6) + motion_tail(random.Random(3)), 6),
    "an MPO": (encoded(scene(), "MPO", save_all=True, append_images=[scene().transpose(0)]), 1),
    "a PNG": (oriented(6, kind="PNG"), 6),
}
WHOLE = {
    **{name: data for name, (data, _) in ORIENTED.items()},
    "a WebP": encoded(scene(), "WEBP"),
    "zeros behind the end": JPEG + bytes(3000),
}
CUT = {
    "a JPEG": JPEG[: len(JPEG) // 2],
    "a JPEG by a byte": JPEG[:-1],
    "a JPEG, zeros for its end": GRAINY[:-200] + bytes(200),  # which decode to grey without an error
    "a JPEG in its thumbnail": with_segment(JPEG, JPEG)[: len(JPEG) + 6],
    "a progressive JPEG": encoded(scene(), progressive=True)[:-60],
    "an MPO, zeros from the end of its first image on": stereo_with_zeros(),
    "a PNG": encoded(scene(), "PNG")[:-60],
    "a WebP": encoded(scene(), "WEBP")[:-60],
    "a BMP": encoded(scene(), "BMP")[:-60],
    "a TIFF": encoded(scene(), "TIFF", compression="tiff_lzw")[:-60],
    "nothing": b"",
    "zeros": bytes(len(JPEG)),
}


def in_captions(path: Path) -> Tensor:
    pictures = list(caption.read_pictures([path], TRANSFORM))
    if not pictures:
        raise RunError("left out")
    return pictures[0].image


def in_copies(path: Path) -> Tensor:
    reason = copy_picture(path, path.parent / "copies", 64)
    if reason:
        raise RunError(reason)
    return TRANSFORM(load_image(path.parent / "copies" / path.name))


def in_check(path: Path) -> None:
    reason = decoding_error(path)
    if reason:
        raise RunError(reason)


def in_completeness(path: Path) -> None:
    if is_cut(path):
        raise RunError("cut")


READERS: dict[str, Callable] = {
    "training": lambda path: TRANSFORM(load_image(path)),
    "evaluation": lambda path: load_transformed(path, TRANSFORM, 0),
    "caption.py": in_captions,
    "copies": in_copies,
    "--check": in_check,
    "completeness": in_completeness,
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    (tmp_path / "copies").mkdir()

    def write(data: bytes) -> Path:
        path = tmp_path / image_name(1)
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize("name", ORIENTED)
def test_all_readers_turn_an_image_the_same_way(write, name):
    data, number = ORIENTED[name]
    path = write(data)
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
        upright = UPRIGHT[number](array(image.convert("RGB")))  # from the pixels as they lie in the file
    difference = array(load_image(path)) - upright
    assert np.abs(difference).max() <= 2  # between two JPEG decoders
    seen = {reader: read(path) for reader, read in READERS.items()}
    assert torch.equal(seen["training"], seen["evaluation"])
    assert torch.equal(seen["training"], seen["caption.py"])
    assert (seen["training"].int() - seen["copies"].int()).abs().float().mean() < 4  # a JPEG once more


@pytest.mark.parametrize("name", [*WHOLE, *(f"cut: {name}" for name in CUT)])
def test_all_readers_agree_on_which_files_are_whole(write, name):
    whole = name in WHOLE
    path = write(WHOLE[name] if whole else CUT[name.removeprefix("cut: ")])
    accepted = {}
    for reader, read in READERS.items():
        try:
            read(path)
            accepted[reader] = True
        except RunError:
            accepted[reader] = False
    assert accepted == dict.fromkeys(READERS, whole)
