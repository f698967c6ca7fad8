"""Which JPEG files are cut: whole ones with anything behind them are not, and every shorter beginning is."""

import functools
import io
import random
import struct

import numpy as np
import pytest
from PIL import Image

from images.image_files import jpeg_is_cut


def scene(seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((80, 60), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_segment(data: bytes, content: bytes, marker: int = 0xE1) -> bytes:
    """A JPEG with one more segment at its beginning."""
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + data[2:]


def motion_tail(draw: random.Random) -> bytes:
    """An MP4 as phones append it: random bytes, with markers of a JPEG among them."""
    body = bytearray(draw.randbytes(draw.randrange(20, 3000)))
    for marker in draw.choices([b"\xff\xda", b"\xff\xd9", b"\xff\xd8\xff", b"\xff\xc0", b""], k=3):
        body += marker + draw.randbytes(draw.randrange(20))
    return (
        struct.pack(">I8s8s", 24, b"ftypmp42", bytes(8)) + struct.pack(">I4s", len(body) + 8, b"mdat") + body
    )


KINDS = {
    "plain": lambda: encoded(scene()),
    "grey": lambda: encoded(scene().convert("L")),
    "progressive, of many scans": lambda: encoded(scene(), progressive=True),
    "with restart markers": lambda: encoded(scene(), restart_marker_blocks=1),
    "a thumbnail in its EXIF": lambda: with_segment(encoded(scene()), b"Exif\0\0" + encoded(scene(1))),
    "a comment that ends like a JPEG": lambda: with_segment(encoded(scene()), b"\xff\xda\xff\xd9", 0xFE),
    "filled between its segments": lambda: encoded(scene()).replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1),
}


@functools.cache
def drawn(kind: str) -> bytes:
    return KINDS[kind]()


def cut(data: bytes) -> bool:
    return jpeg_is_cut(io.BytesIO(data))


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_cut_wherever_it_stops_and_whole_whatever_follows(kind):
    """Every length; behind it nothing, or zeros, as where room was made for a file and the copy stopped."""
    data = drawn(kind)
    Image.open(io.BytesIO(data)).load()  # it is a sound one
    assert not cut(data)
    assert not cut(data + bytes(5000))
    assert not cut(data + b"\xff\xd8\xff")
    wrong = [n for n in range(3, len(data)) if not cut(data[:n]) or not cut(data[:n] + bytes(500))]
    assert wrong == []


def test_motion_photos_are_whole_and_their_first_image_is_what_counts():
    draw = random.Random(7)
    for number in range(40):
        data = drawn(draw.choice(list(KINDS)))
        tail = motion_tail(draw)
        assert not cut(data + tail), number
        assert not cut(data + tail[: draw.randrange(len(tail))]), f"{number}: the video is cut, not the image"
        place = draw.randrange(3, len(data))
        assert cut(data[:place]), number


def test_an_image_behind_the_first_says_nothing():
    """As stereo cameras write them.  The second one's markers are no end of the first."""
    both = encoded(scene(), "MPO", save_all=True, append_images=[scene(1)])
    second = both.rindex(b"\xff\xd8\xff")
    assert not cut(both)
    assert not cut(both[:second])
    assert not cut(both[: second + 300])
    assert all(cut(both[:n]) for n in range(3, both.rindex(b"\xff\xd9", 0, second) + 1))


def test_a_hole_of_zeros_in_the_image_is_seen_behind_which_a_video_follows():
    video = struct.pack(">I8s8s", 24, b"ftypmp42", bytes(8)) + b"\xff\x42\0\2\xff\xd9.."
    assert cut(drawn("plain")[:-300] + bytes(300) + video)


def test_damaged_lengths_end_the_search():
    """Segments of length 0 and 1, and a file of nothing but the beginnings of markers."""
    for middle in (b"\xff\xe0\0\0", b"\xff\xe0\0\1", b"\xff\xff", b"\xff\xda\0\0"):
        assert cut(b"\xff\xd8" + middle * 2000)
