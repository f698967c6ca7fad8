"""How many pixels an image may have, and how a large JPEG is decoded: less of it, and no word said."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from image_transforms import load_image
from images import image_files
from images.image_folders import decoding_error
from images.resized_copies import copy_picture
from support.errors import RunError
from tests.test_image_files import scene
from tests.test_image_transforms import array, huge_png
from tests.test_jpeg import encoded
from tests.test_pictures import claiming
from tests.training_cases import ROOT

MEASURED = """
import json, resource, sys
from image_transforms import load_image
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
for path in sys.argv[1:]:
    before = peak()
    try:
        result = list(load_image(path).shape)
    except Exception as error:
        result = str(error)
    print(json.dumps([result, peak() - before]))
"""


@pytest.fixture
def small_limits(monkeypatch):
    """Limits that small images reach."""
    monkeypatch.setattr(image_files, "FULL_PIXELS", 200 * 150 - 1)
    monkeypatch.setattr(image_files, "REDUCED_SIDE", 32)
    monkeypatch.setattr(image_files, "MOST_PIXELS", 100_000)


def test_memory_is_as_said_and_no_library_speaks(tmp_path):
    """A bomb; a photograph of 200 megapixels, of which only the first blocks are there, the others grey."""
    (tmp_path / "bomb.png").write_bytes(huge_png(60_000, 60_000))
    phone = claiming(encoded(scene()), 16_320, 12_240) + bytes(500_000)
    (tmp_path / "phone.jpg").write_bytes(phone)
    command = [sys.executable, "-c", MEASURED, tmp_path / "bomb.png", tmp_path / "phone.jpg"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (refusal, for_bomb), (shape, for_phone) = map(json.loads, done.stdout.splitlines())
    assert refusal.endswith("it has 3,600,000,000 pixels, and at most 250,000,000 are read: scale it down")
    assert for_bomb < 20  # MB
    assert shape == [3, 3060, 4080]
    assert for_phone < 250  # and 600 for the pixels alone in full
    assert done.stderr == ""


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_above_the_limit_one_line_says_the_numbers(tmp_path, small_limits, recwarn, kind):
    path = tmp_path / "1.jpg"
    path.write_bytes(encoded(scene(400, 250), kind))
    assert decoding_error(path) is None
    assert load_image(path).shape[0] == 3
    path.write_bytes(encoded(scene(400, 251), kind))
    reason = "it has 100,400 pixels, and at most 100,000 are read: scale it down"
    assert decoding_error(path) == reason
    assert copy_picture(path, tmp_path / "copies", 64) == reason
    with pytest.raises(RunError, match=reason):
        load_image(path)
    assert not recwarn.list
    assert Image.MAX_IMAGE_PIXELS == 89_478_485  # other programs' limit is left alone


def test_up_to_the_size_for_it_no_bit_changes(tmp_path, small_limits, monkeypatch):
    data = encoded(scene(200, 150))
    (tmp_path / "1.jpg").write_bytes(data)
    reduced = load_image(tmp_path / "1.jpg")
    monkeypatch.setattr(image_files, "FULL_PIXELS", 200 * 150)
    full = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    assert torch.equal(load_image(tmp_path / "1.jpg"), full)
    assert reduced.shape == (3, 38, 50)  # a quarter, rounded up: an eighth would be below 32


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_large_jpeg_is_the_same_image_smaller(tmp_path, small_limits, monkeypatch, mode):
    """Also turned, and also for a copy; Pillow's box filter on the full image is the oracle."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "1.jpg"
    path.write_bytes(encoded(scene(240, 160).convert(mode), exif=exif, quality=95))
    image = load_image(path)
    expected = scene(240, 160).convert(mode).convert("RGB").reduce(4).transpose(Image.Transpose.ROTATE_270)
    assert image.shape == (3, 60, 40)
    assert np.abs(array(image) - array(expected)).mean() < 3
    (tmp_path / "copies").mkdir()
    assert copy_picture(path, tmp_path / "copies", 40) is None
    assert np.abs(array(load_image(tmp_path / "copies" / "1.jpg")) - array(expected)).mean() < 4


def test_a_header_that_claims_what_the_file_cannot_hold_is_refused(tmp_path):
    path = tmp_path / "1.jpg"
    path.write_bytes(claiming(encoded(scene()), 20_000, 10_000))
    size = path.stat().st_size
    assert decoding_error(path) == f"its {size:,} bytes cannot hold the 20,000 × 10,000 pixels it claims"


@pytest.mark.parametrize("progressive", [False, True])
def test_no_flat_image_is_taken_for_such(tmp_path, progressive):
    """Of one color, and coded as tightly as can be."""
    path = tmp_path / "1.jpg"
    flat = Image.new("L", (4000, 3000), 99)
    path.write_bytes(encoded(flat, optimize=True, progressive=progressive, quality=1))
    assert decoding_error(path) is None
