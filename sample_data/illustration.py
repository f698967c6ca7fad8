"""Draws small flat-vector pictures: one of four grounds, a few things on it or above it, soft shadows.

Everything is drawn `SUPERSAMPLING` times too large and then averaged down, which makes the edges smooth.
Knows nothing of scenes or captions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw, ImageFilter

from sample_data.things import COLOURS, INK, THINGS, WHITE, Brush, Colour, blend

SUPERSAMPLING = 4

# Each ground fills the canvas; `unit` is its shorter side in pixels, `horizon` the row where the sky ends.


def gradient(canvas: Image.Image, top: int, bottom: int, colours: Sequence[Colour]) -> None:
    """Fills rows `top` to `bottom` with colours that run into each other from top to bottom."""
    strip = Image.new("RGB", (1, len(colours)))
    strip.putdata(list(colours))
    box = (0, 0.5, 1, len(colours) - 0.5)  # from the middle of the first colour to the middle of the last
    column = strip.resize((1, bottom - top), Image.Resampling.BILINEAR, box)
    canvas.paste(column.resize((canvas.width, bottom - top), Image.Resampling.NEAREST), (0, top))


def hill(canvas: Image.Image, random: Random, top: float, rise: float, fill: Colour) -> None:
    """A rolling silhouette: below it everything is `fill`."""
    phases = random.uniform(0, 6.3), random.uniform(0, 6.3)
    width, height = canvas.size
    points = []
    for step in range(41):
        wave = math.sin(step * 0.16 + phases[0]) + 0.5 * math.sin(step * 0.37 + phases[1])
        points.append((width * step / 40, top - rise * wave))
    ImageDraw.Draw(canvas).polygon([(0, height), *points, (width, height)], fill=fill)


def scatter(
    random: Random, canvas: Image.Image, top: float, bottom: float, count: int
) -> list[tuple[float, float]]:
    return [(random.uniform(0, canvas.width), random.uniform(top, bottom)) for _ in range(count)]


def cloud(canvas: Image.Image, x: float, y: float, size: float, fill: Colour) -> None:
    brush = Brush(canvas, x, y, size)
    brush.rectangle(-1.0, 0.0, 1.0, 0.5, fill, corner=0.25)
    brush.disc(-0.35, 0.5, 0.38, fill)
    brush.disc(0.3, 0.42, 0.3, fill)


def meadow(canvas: Image.Image, random: Random, unit: float, horizon: int) -> None:
    gradient(canvas, 0, horizon, [(148, 208, 244), (226, 244, 252)])
    for x, y in scatter(random, canvas, 0.06 * unit, horizon - 0.22 * unit, 2):
        cloud(canvas, x, y, unit * random.uniform(0.07, 0.1), (250, 253, 255))
    gradient(canvas, horizon, canvas.height, [(186, 222, 132), (146, 196, 92)])
    hill(canvas, random, horizon - 0.01 * unit, 0.022 * unit, (172, 214, 146))
    hill(canvas, random, horizon + 0.05 * unit, 0.012 * unit, (178, 218, 118))
    gradient(canvas, round(horizon + 0.09 * unit), canvas.height, [(178, 218, 118), (140, 192, 88)])
    for x, y in scatter(random, canvas, horizon + 0.12 * unit, canvas.height, 26):
        brush = Brush(canvas, x, y, 0.03 * unit)
        brush.line([(-0.4, 0.9), (0.0, 0.0), (0.4, 0.9)], (120, 176, 76), 0.22)
    for x, y in scatter(random, canvas, horizon + 0.12 * unit, canvas.height, 9):
        Brush(canvas, x, y, 0.022 * unit).disc(0.0, 0.0, 0.42, (252, 252, 240))


def beach(canvas: Image.Image, random: Random, unit: float, horizon: int) -> None:
    gradient(canvas, 0, horizon, [(126, 206, 236), (232, 246, 244)])
    x, y = random.uniform(0.1, 0.9) * canvas.width, random.uniform(0.1, 0.25) * unit
    for radius, share in ((0.1, 0.25), (0.075, 0.5), (0.05, 1.0)):  # a pale sun in two rings of haze
        Brush(canvas, x, y, unit).disc(0.0, 0.0, radius, blend((170, 224, 240), (255, 253, 236), share))
    shore = round(horizon + 0.085 * unit)
    gradient(canvas, horizon, shore + 1, [(58, 160, 188), (128, 212, 214)])
    for x, y in scatter(random, canvas, horizon + 0.015 * unit, shore - 0.025 * unit, 7):
        Brush(canvas, x, y, unit).line([(-0.04, 0.0), (0.04, 0.0)], (190, 234, 236), 0.007)
    gradient(canvas, shore, canvas.height, [(248, 232, 196), (234, 208, 158)])
    Brush(canvas, 0, shore, unit).rectangle(-0.1, -0.012, canvas.width / unit + 0.1, 0.006, (250, 252, 250))
    for x, y in scatter(random, canvas, shore + 0.05 * unit, canvas.height, 40):
        Brush(canvas, x, y, unit).disc(0.0, 0.0, 0.004, (216, 186, 134))
    for x, y in scatter(random, canvas, shore + 0.06 * unit, canvas.height, 3):
        Brush(canvas, x, y, 0.03 * unit).pie(-0.5, -0.5, 0.5, 0.5, 200, 340, (255, 244, 226))


def snow(canvas: Image.Image, random: Random, unit: float, horizon: int) -> None:
    gradient(canvas, 0, horizon, [(164, 184, 212), (220, 230, 240)])
    gradient(canvas, horizon, canvas.height, [(208, 221, 236), (226, 235, 245)])
    hill(canvas, random, horizon - 0.06 * unit, 0.06 * unit, (190, 206, 226))
    hill(canvas, random, horizon, 0.03 * unit, (208, 221, 236))
    hill(canvas, random, horizon + 0.03 * unit, 0.01 * unit, (226, 235, 245))
    gradient(canvas, round(horizon + 0.05 * unit), canvas.height, [(226, 235, 245), (250, 252, 255)])
    for x, y in scatter(random, canvas, 0, canvas.height, 46):
        Brush(canvas, x, y, unit).disc(0.0, 0.0, random.uniform(0.005, 0.011), WHITE)


def street(canvas: Image.Image, random: Random, unit: float, horizon: int) -> None:
    gradient(canvas, 0, horizon, [(22, 24, 62), (70, 66, 122)])
    for x, y in scatter(random, canvas, 0, horizon - 0.12 * unit, 26):
        Brush(canvas, x, y, unit).disc(0.0, 0.0, random.uniform(0.002, 0.006), (236, 236, 250))
    x, y = random.uniform(0.1, 0.9) * canvas.width, random.uniform(0.1, 0.22) * unit
    Brush(canvas, x, y, unit).disc(0.0, 0.0, 0.055, (244, 240, 220))
    Brush(canvas, x, y, unit).disc(0.03, 0.018, 0.05, (34, 35, 76))
    left = -0.1 * unit
    while left < canvas.width:  # a skyline of dark towers with a few lit windows
        width, height = unit * random.uniform(0.09, 0.17), unit * random.uniform(0.06, 0.24)
        tower = Brush(canvas, left, horizon, unit)
        tower.rectangle(0.0, 0.0, width / unit, height / unit, (46, 45, 90))
        for _ in range(4):
            x, y = random.uniform(0.01, width / unit - 0.02), random.uniform(0.01, height / unit - 0.015)
            tower.rectangle(x, y, x + 0.012, y + 0.014, (214, 190, 130))
        left += width + unit * random.uniform(-0.01, 0.04)
    gradient(canvas, horizon, canvas.height, [(104, 106, 128), (76, 78, 100)])
    Brush(canvas, 0, horizon, unit).rectangle(-0.1, -0.045, canvas.width / unit + 0.1, 0.0, (134, 134, 152))
    middle, offset = horizon + (canvas.height - horizon) * 0.62, random.uniform(0, 0.3)
    for step in range(-1, math.ceil(canvas.width / unit / 0.3) + 1):
        dash = Brush(canvas, (step * 0.3 + offset) * unit, middle, unit)
        dash.polygon([(0.0, 0.0), (0.15, 0.0), (0.16, 0.014), (0.015, 0.014)], (214, 214, 204))


GROUNDS = {"meadow": meadow, "beach": beach, "snow": snow, "street": street}


@dataclass(frozen=True)
class Placed:
    """One thing in the picture; lengths are in units of the picture's shorter side."""

    shape: str  # a key of `THINGS`
    colour: str  # a key of `COLOURS`
    x: float  # its middle, from the left
    base: float  # its foot, from the top
    height: float


def illustrate(
    size: tuple[int, int], ground: str, horizon: float, things: Sequence[Placed], random: Random
) -> Image.Image:
    """One picture.

    Args:
        size: width and height in pixels.
        ground: a key of `GROUNDS`.
        horizon: where the sky ends, downwards from the top, in units of the shorter side.
        things: drawn in this order, so that a later one hides what it covers of an earlier one.
        random: for clouds, flowers, stars and tints.
    """
    canvas = Image.new("RGB", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING))
    unit = min(canvas.size)
    GROUNDS[ground](canvas, random, unit, round(horizon * unit))
    for thing in things:
        if not THINGS[thing.shape].flies:
            cast_shadow(canvas, thing, unit)
        tint = blend(COLOURS[thing.colour], random.choice([WHITE, INK]), random.uniform(0.0, 0.07))
        brush = Brush(canvas, thing.x * unit, thing.base * unit, thing.height * unit)
        THINGS[thing.shape].draw(brush, tint)
    return canvas.reduce(SUPERSAMPLING)


def cast_shadow(canvas: Image.Image, thing: Placed, unit: float) -> None:
    """A blurred dark ellipse under a thing's foot, drawn small (blurring is dear) and enlarged."""
    half, depth = (
        thing.height * THINGS[thing.shape].width * unit * 0.56,
        thing.height * unit * 0.1 + unit * 0.012,
    )
    width, height = round(2.6 * half), round(4 * depth)
    small = Image.new("L", (width // 4 + 1, height // 4 + 1))
    centre, middle = small.width / 2, small.height / 2
    box = [centre - half / 4, middle - depth / 4, centre + half / 4, middle + depth / 4]
    ImageDraw.Draw(small).ellipse(box, fill=110)
    mask = small.filter(ImageFilter.GaussianBlur(depth / 12)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    corner = (
        round(thing.x * unit - width / 2 + half * 0.1),
        round(thing.base * unit - height / 2 - depth * 0.15),
    )
    canvas.paste(INK, (*corner, corner[0] + width, corner[1] + height), mask)
