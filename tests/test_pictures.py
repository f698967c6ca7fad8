"""What --check lists, of pictures whose trouble is known: all that are bad, and none that is merely odd."""

import io
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from image_transforms import load_image
from images.image_folders import image_name
from process_coco import check_the_images
from support.errors import RunError


def drawn() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(drawn(), exif=exif)


def claiming(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header claims another size."""
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[place + 4 :]


JPEG = encoded(drawn())
PNG = encoded(drawn(), "PNG")
WIDE = Image.fromarray(np.asarray(drawn().convert("L")).astype(np.uint16) * 257)
ODD = {
    "plain": JPEG,
    "grey": encoded(drawn().convert("L")),
    "progressive": encoded(drawn(), progressive=True),
    "CMYK": encoded(drawn().convert("CMYK")),
    "a PNG under the name of a JPEG": PNG,
    "a WebP under the name of a JPEG": encoded(drawn(), "WEBP"),
    "16 bits": encoded(WIDE, "PNG"),
    "a TIFF of 16 bits": encoded(WIDE, "TIFF"),
    "palette and alpha": encoded(drawn().quantize(64), "PNG", transparency=bytes(range(0, 256, 4))),
    "something behind the end": JPEG + b"signature" * 50,
    **{f"EXIF {orientation}": turned(orientation) for orientation in range(1, 9)},
}
BAD = {
    "empty": b"",
    "cut after the header": JPEG[:650],
    "cut at half": JPEG[: len(JPEG) // 2],
    "cut by a byte": JPEG[:-1],
    "the end is zeros": JPEG[:-1000] + bytes(1000),
    "all zeros": bytes(len(JPEG)),
    "the beginning is lost": JPEG[10:],
    "a PNG that is cut": PNG[:-1000],
    "a PNG with a byte changed": PNG[:3000] + bytes([PNG[3000] ^ 255]) + PNG[3001:],
    "a BMP that is cut": encoded(drawn(), "BMP")[:-5000],
    "a web page": b"<!DOCTYPE html>\n<html>404</html>",
    "200 megapixels by its header": claiming(JPEG, 20_000, 10_000),
    "a program in PostScript": encoded(drawn(), "EPS"),
    "the last bytes are zeros": JPEG[:-60] + bytes(60),  # which decode to grey without an error
}


def readable(read: Callable, path: object) -> bool:
    try:
        read(path)
    except RunError:
        return False
    return True


def test_check_lists_the_bad_with_reasons_and_nothing_else(tmp_path, capsys):
    """A count of files, `Image.verify()` and the names' endings each pass some of these."""
    folder = tmp_path / "val2017"
    folder.mkdir()
    kinds = {}
    for number, (kind, data) in enumerate({**ODD, **BAD}.items()):
        kinds[folder / image_name(number)] = kind
        (folder / image_name(number)).write_bytes(data)
    with pytest.raises(RunError, match=f"^{len(BAD)} of {len(kinds)} pictures cannot be read"):
        check_the_images([folder])
    said = capsys.readouterr().out.splitlines()
    listed = [kind for path, kind in kinds.items() if any(line.startswith(f"{path}: ") for line in said)]
    assert listed == [*BAD]
    assert len(said) == len(listed)


@pytest.mark.parametrize("kind", [*ODD, *BAD])
def test_training_reads_what_check_passes(tmp_path, kind):
    path = tmp_path / image_name(1)
    path.write_bytes((ODD | BAD)[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        assert readable(load_image, path) == (kind in ODD)
