"""Pictures of every kind against colours and rotations worked out by hand; transforms against torchvision."""

import io
import warnings
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as F

from image_transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EvaluationTransform,
    TrainingTransform,
    denormalize,
    load_image,
    normalize,
    stack_images,
    to_rgb,
    to_tensor,
)
from support.errors import RunError
from training.sampling import seeded

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def noise(height: int = 40, width: int = 60, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def saved(tmp_path: Path, image: Image.Image, name: str, **options) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


def reopened(image: Image.Image, kind: str, **options) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def array(pixels: torch.Tensor | Image.Image) -> np.ndarray:  # (h, w, 3), int
    return np.asarray(pixels if isinstance(pixels, Image.Image) else pixels.permute(1, 2, 0)).astype(int)


# ------------------------------------------------------------------------------------ upright RGB

# What was done to the upright picture to give the stored one (Exif 2.3, tag 0x0112), undone with numpy.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "cmyk.jpg"])
def test_a_picture_stands_upright_whatever_its_exif_says(tmp_path, orientation, kind):
    """Both decoders: ordinary JPEGs take torchvision's, the other kinds Pillow's."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(noise())
    image = image.convert("CMYK") if kind.startswith("cmyk") else image
    plain = saved(tmp_path, image, f"plain.{kind}")
    turned = saved(tmp_path, image, f"turned.{kind}", exif=exif)
    expected = UPRIGHT[orientation](array(load_image(plain)))
    np.testing.assert_array_equal(array(load_image(turned)), expected)


def test_garbled_exif_does_not_cost_a_good_picture(tmp_path):
    path = saved(tmp_path, Image.fromarray(noise()), "garbled.png", exif=b"Exif\0\0garbage")
    np.testing.assert_array_equal(array(load_image(path)), noise())


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, WHITE),
        ("L", 100, (100, 100, 100)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("CMYK", (0, 255, 255, 0), RED),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (0, 0), WHITE),
        ("RGBA", (1, 2, 3, 255), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 0), WHITE),  # clear: the colour beneath must not show
        ("RGBA", (255, 0, 0, 128), (255, 127, 127)),  # half red, half white
        ("I;16", 65535, WHITE),
        ("I;16", 128 * 257, (128, 128, 128)),  # Pillow's own conversion gives 255 for all above 255
        ("I;16B", 128 * 257, (128, 128, 128)),
        ("I", 100, (100, 100, 100)),
        ("F", 100.0, (100, 100, 100)),
        ("F", 0.5, (128, 128, 128)),
    ],
)
def test_every_mode_becomes_the_right_colour(mode, colour, expected):
    rgb = to_rgb(Image.new(mode, (5, 4), colour))
    assert rgb.mode == "RGB"
    assert rgb.size == (5, 4)
    assert rgb.getpixel((2, 2)) == expected


@pytest.mark.parametrize("scale", [1.0, 255.0, 65535.0, 2.0**30])
def test_wide_grey_is_scaled_and_not_clipped(scale):
    """A ramp stays a ramp; clipped, it would be white but for its darkest part (Pillow#2574)."""
    ramp = np.linspace(0, 1, 256, dtype=np.float32)
    modes = [Image.fromarray(np.tile(ramp * scale, (4, 1)))]
    if scale > 1:
        modes.append(Image.fromarray(np.tile(ramp * scale, (4, 1)).astype(np.int32)))
    for image in modes:
        assert image.mode in ("F", "I")
        np.testing.assert_allclose(array(to_rgb(image))[0, :, 0], np.arange(256), atol=1)


def test_negative_and_broken_floats_are_stretched():
    image = Image.fromarray(np.array([[-5.0, 0.0, 5.0, np.nan]], dtype=np.float32))
    assert array(to_rgb(image))[0, :, 0].tolist() == [0, 128, 255, 128]


def test_16_bit_files_keep_their_greys(tmp_path):
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (4, 1))
    for name in ("grey.png", "grey.tif"):
        path = saved(tmp_path, Image.fromarray(ramp), name)
        np.testing.assert_array_equal(array(load_image(path))[0, :, 1], np.arange(256))


def test_palettes_with_and_without_a_clear_entry(tmp_path):
    image = Image.new("P", (4, 2))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2, 1] * 2)
    opaque = load_image(saved(tmp_path, image, "opaque.png"))
    clear = load_image(saved(tmp_path, image, "clear.png", transparency=1))
    gif = load_image(saved(tmp_path, image, "clear.gif", transparency=1))
    assert array(opaque)[0].tolist() == [list(c) for c in (RED, GREEN, BLUE, GREEN)]
    assert array(clear)[0].tolist() == [list(c) for c in (RED, WHITE, BLUE, WHITE)]
    assert array(gif)[0].tolist() == [list(c) for c in (RED, WHITE, BLUE, WHITE)]


def test_a_colour_key_is_transparency_too():
    image = reopened(Image.new("RGB", (3, 3), RED), "PNG", transparency=RED)
    assert to_rgb(image).getpixel((1, 1)) == WHITE


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_files_keep_their_colours(kind):
    """Adobe's CMYK JPEGs are stored inverted (Pillow writes such); a TIFF is not."""
    for colour in (RED, GREEN, BLUE, (250, 200, 20)):
        opened = reopened(Image.new("RGB", (16, 16), colour).convert("CMYK"), kind)
        assert opened.mode == "CMYK"
        np.testing.assert_allclose(to_rgb(opened).getpixel((8, 8)), colour, atol=4)


# ---------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 60}])
def test_the_fast_decoder_gives_the_pixels_of_the_plain_one(tmp_path, mode, options):
    smooth = Image.fromarray(noise(12, 16)).resize((161, 120), Image.Resampling.BICUBIC).convert(mode)
    path = saved(tmp_path, smooth, "picture.jpg", **options)
    difference = array(load_image(path)) - array(Image.open(path).convert("RGB"))
    assert np.abs(difference).max() <= 2


def whole_jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(100, 150)).save(file, "JPEG")
    return file.getvalue()


def huge_png(width: int = 20_000, height: int = 10_000) -> bytes:
    """A picture of 200 megapixels, by its header, whose checksum is right; 69 bytes long."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def nameless_chunk() -> bytes:
    """A PNG whose pixels go on in a part without a name; of all damage this alone is a SyntaxError."""
    file = io.BytesIO()
    Image.fromarray(noise()).save(file, "PNG")
    data = bytearray(file.getvalue())
    length = data.index(b"IDAT") - 4
    data[length : length + 4] = (1000).to_bytes(4, "big")
    return bytes(data)


def postscript() -> bytes:
    """A program, which Pillow would have Ghostscript run."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "EPS")
    return file.getvalue()


BAD_FILES = {
    "PostScript": postscript,
    "missing": lambda: None,
    "empty": lambda: b"",
    "cut": lambda: whole_jpeg()[:2000],
    "cut by little": lambda: whole_jpeg()[:-300],
    "web page": lambda: b"<!DOCTYPE html>\n<html><body>404\nNot found</body></html>",
    "200 megapixels": huge_png,
    "a chunk without a name": nameless_chunk,
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_is_read_by_what_it_is_and_not_by_its_name(tmp_path, kind):
    path = tmp_path / "000000000139.jpg"
    Image.new("RGB", (8, 6), RED).save(path, kind)
    np.testing.assert_allclose(array(load_image(path))[3, 4], RED, atol=6)


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_picture_that_cannot_be_read_is_named_in_one_line(tmp_path, kind):
    path = tmp_path / "000000000139.jpg"
    data = BAD_FILES[kind]()
    if data is not None:
        path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(RunError) as caught:
            load_image(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert "0x" not in str(caught.value)  # no object addresses
    assert "Ghostscript" not in str(caught.value)  # which was not even looked for


# ------------------------------------------------------------------------------------- transforms


def test_the_training_transform_is_torchvisions_crop():
    image = torch.from_numpy(noise(90, 130)).permute(2, 0, 1)
    reference = v2.RandomResizedCrop(32, scale=(0.2, 1.0), antialias=True)
    for seed in range(5):
        with seeded(seed):
            ours = TrainingTransform(32, flip_probability=0.0)(image)
        with seeded(seed):
            theirs = reference(image)
        assert torch.equal(ours, theirs)
        assert ours.dtype == torch.uint8


@pytest.mark.parametrize("size", [(90, 130), (130, 90), (33, 33), (400, 7), (1, 1)])
@pytest.mark.parametrize("layout", ["side by side", "planes", "grey file"])
def test_transforms_give_the_pixels_of_the_plain_torchvision_calls(tmp_path, size, layout):
    """Bit for bit, however the colours lie in memory: a decoder's picture, three planes, one plane thrice."""
    height, width = size
    image = torch.from_numpy(noise(height, width)).permute(2, 0, 1)
    if layout == "planes":
        image = image.contiguous()
    if layout == "grey file":
        image = load_image(saved(tmp_path, Image.fromarray(noise(height, width)).convert("L"), "grey.jpg"))
    for seed in range(4):
        transform = TrainingTransform(32)
        with seeded(seed):
            crop = RandomResizedCrop.get_params(image, transform.scale, transform.ratio)
            expected = F.resized_crop(image.contiguous(), *crop, [32, 32], antialias=True)
            expected = expected.flip(-1) if torch.rand(()) < 0.5 else expected
        with seeded(seed):
            assert torch.equal(transform(image), expected)
    square = F.center_crop(image.contiguous(), [min(size)] * 2)
    assert torch.equal(EvaluationTransform(32)(image), F.resize(square, [32, 32], antialias=True))


def test_crops_cover_the_scales_asked_for():
    """Each pixel of the picture holds its place, so that a crop tells its own size and position."""
    rows, columns = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij")
    image = torch.stack([rows, columns, rows]).to(torch.uint8)
    areas = []
    for seed in range(300):
        with seeded(seed):
            crop = TrainingTransform(64)(image).int()
        height, width = (crop[c].max() - crop[c].min() + 2 for c in (0, 1))  # resizing smooths the ends away
        areas.append(float(height * width) / 200**2)
    assert 0.19 < min(areas) < 0.26
    assert 0.9 < max(areas) <= 1.02
    assert 0.5 < np.mean(areas) < 0.66


def test_half_of_the_pictures_are_mirrored_and_none_without_flip():
    image = torch.zeros(3, 50, 50, dtype=torch.uint8)
    image[:, :, :25] = 255
    mirrored = {0.5: 0, 0.0: 0, 1.0: 0}
    for probability in mirrored:
        transform = TrainingTransform(20, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip_probability=probability)
        for seed in range(200):
            with seeded(seed):
                mirrored[probability] += int(transform(image)[0, 10, 0]) == 0
    assert mirrored[0.0] == 0
    assert mirrored[1.0] == 200
    assert 80 <= mirrored[0.5] <= 120
    assert TrainingTransform(20, flip_probability=0.5).without_flip() == TrainingTransform(
        20, flip_probability=0.0
    )


def test_without_flip_changes_the_mirroring_and_nothing_else():
    image = torch.from_numpy(noise(90, 130)).permute(2, 0, 1)
    transform = TrainingTransform(32)
    seen = set()
    for seed in range(10):
        with seeded(seed):
            drawn = transform(image)
        with seeded(seed):
            unmirrored = transform.without_flip()(image)
        assert torch.equal(drawn, unmirrored) or torch.equal(drawn, unmirrored.flip(-1))
        seen.add(torch.equal(drawn, unmirrored))
    assert seen == {True, False}


@pytest.mark.parametrize("size", [(60, 90), (90, 60), (64, 64), (10, 300)])
def test_evaluation_sees_the_middle_square(size):
    """The same as resizing the shorter side and cutting the middle out, but for the edges' smoothing."""
    height, width = size
    smooth = Image.fromarray(noise(6, 8)).resize((width, height), Image.Resampling.BICUBIC)
    ours = EvaluationTransform(32)(smooth)
    theirs = v2.CenterCrop(32)(v2.Resize(32, antialias=True)(to_tensor(smooth)))
    assert ours.shape == (3, 32, 32)
    assert ours.dtype == torch.uint8
    inner = (ours.int() - theirs.int())[:, 3:-3, 3:-3].abs().float()
    if size != (10, 300):  # blown up three times: half a pixel of shift shows
        assert inner.max() <= 12
    assert inner.mean() <= 3


def test_a_panorama_costs_no_more_than_a_square():
    """Resizing the shorter side first would make a picture of 224 × 448,000 pixels of this."""
    line = torch.zeros(3, 5, 10_000, dtype=torch.uint8)
    assert EvaluationTransform(224)(line).shape == (3, 224, 224)
    assert TrainingTransform(224)(line).shape == (3, 224, 224)
    assert EvaluationTransform(8)(Image.new("L", (1, 1))).shape == (3, 8, 8)


def test_a_transform_is_rebuilt_from_plain_numbers():
    for transform in (EvaluationTransform(96), TrainingTransform(64, (0.3, 0.9), flip_probability=0.1)):
        assert type(transform)(**asdict(transform)) == transform
        assert str(transform.size) in repr(transform)


def test_normalize_is_torchvisions_and_denormalize_undoes_it():
    images = torch.from_numpy(noise(20, 30)).permute(2, 0, 1)[None].repeat(2, 1, 1, 1)
    reference = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    torch.testing.assert_close(normalize(images), reference(images))
    torch.testing.assert_close(normalize(images[0]), reference(images[0]))
    every_value = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    assert torch.equal(denormalize(normalize(every_value)), every_value)
    assert torch.equal(
        denormalize(torch.full((1, 3, 2, 2), 9.0)), torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    )


def test_normalize_makes_planes_of_a_batch_whose_colours_lie_side_by_side():
    batch = stack_images([torch.from_numpy(noise(20, 30, seed=seed)).permute(2, 0, 1) for seed in range(2)])
    assert batch.is_contiguous(memory_format=torch.channels_last)
    normalized = normalize(batch)
    assert normalized.is_contiguous()
    assert normalized.dtype == torch.float32
    mean, std = (np.array(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    for picture, seed in zip(normalized, range(2)):
        expected = (noise(20, 30, seed=seed).transpose(2, 0, 1) / 255 - mean) / std
        np.testing.assert_allclose(picture, expected, rtol=1e-5, atol=1e-6)


def test_pixels_are_not_normalized_twice():
    """Other ranges than in training are a classic: BLEU falls by half and nothing complains."""
    with pytest.raises(TypeError, match="float32"):
        normalize(normalize(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)))
