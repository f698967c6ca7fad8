"""Draws eight things of plain outline: house, tree, car, cat, ball, mushroom, balloon, kite.

A thing is drawn in a frame of its own: x to the right from its middle, y upwards from its foot, height 1, so
that one drawing serves every size and place.  Colours are RGB in 0-255.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
WHITE, INK = (255, 255, 255), (38, 34, 50)

COLOURS: dict[str, Colour] = {
    "red": (222, 44, 48),
    "yellow": (255, 205, 30),
    "green": (24, 150, 72),
    "blue": (38, 104, 224),
    "purple": (132, 60, 184),
    "pink": (255, 128, 186),
}


def blend(first: Colour, second: Colour, share: float) -> Colour:
    """`first` with a `share` (0 to 1) of `second` mixed in."""
    return tuple(round(a + (b - a) * share) for a, b in zip(first, second))


def light(colour: Colour, share: float = 0.3) -> Colour:
    return blend(colour, WHITE, share)


def dark(colour: Colour, share: float = 0.25) -> Colour:
    return blend(colour, INK, share)


class Brush:
    """Draws in the frame of one thing.

    Args:
        canvas: what to draw on.
        x, base: where the middle of its foot stands, in pixels from the left and the top.
        height: how tall it is, in pixels.
    """

    def __init__(self, canvas: Image.Image, x: float, base: float, height: float):
        self.draw = ImageDraw.Draw(canvas)
        self.x, self.base, self.height = x, base, height

    def points(self, xy: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(self.x + x * self.height, self.base - y * self.height) for x, y in xy]

    def polygon(self, xy: Sequence[tuple[float, float]], fill: Colour) -> None:
        self.draw.polygon(self.points(xy), fill=fill)

    def line(self, xy: Sequence[tuple[float, float]], fill: Colour, width: float) -> None:
        self.draw.line(self.points(xy), fill=fill, width=max(1, round(width * self.height)), joint="curve")

    def box(self, left: float, bottom: float, right: float, top: float) -> list[tuple[float, float]]:
        return self.points([(left, top), (right, bottom)])

    def ellipse(self, left: float, bottom: float, right: float, top: float, fill: Colour) -> None:
        self.draw.ellipse(self.box(left, bottom, right, top), fill=fill)

    def disc(self, x: float, y: float, radius: float, fill: Colour) -> None:
        self.ellipse(x - radius, y - radius, x + radius, y + radius, fill)

    def rectangle(
        self, left: float, bottom: float, right: float, top: float, fill: Colour, corner=0.0
    ) -> None:
        box = self.box(left, bottom, right, top)
        self.draw.rounded_rectangle(box, radius=corner * self.height, fill=fill)

    def pie(self, left, bottom, right, top, start: float, end: float, fill: Colour) -> None:
        """A slice of an ellipse, from `start` to `end` degrees, clockwise from three o'clock."""
        self.draw.pieslice(self.box(left, bottom, right, top), start, end, fill=fill)


# Each fills its frame from y = 0 to 1 and is as wide as `THINGS` says.


def house(brush: Brush, colour: Colour) -> None:
    brush.rectangle(-0.42, 0.0, 0.42, 0.6, colour)
    brush.rectangle(0.2, 0.0, 0.42, 0.6, dark(colour, 0.12))
    brush.rectangle(0.22, 0.7, 0.34, 0.98, dark(colour, 0.45))  # chimney
    brush.polygon([(-0.54, 0.55), (0.0, 1.0), (0.54, 0.55)], dark(colour, 0.5))
    brush.polygon([(-0.54, 0.55), (0.0, 1.0), (0.08, 0.93), (-0.38, 0.55)], dark(colour, 0.38))
    brush.rectangle(-0.1, 0.0, 0.1, 0.36, dark(colour, 0.6), corner=0.03)
    brush.disc(0.05, 0.17, 0.02, (255, 224, 130))
    for x in (-0.26, 0.28):
        brush.rectangle(x - 0.09, 0.26, x + 0.09, 0.44, WHITE, corner=0.02)
        brush.rectangle(x - 0.07, 0.28, x + 0.07, 0.42, (255, 231, 150), corner=0.01)
        brush.line([(x, 0.28), (x, 0.42)], WHITE, 0.02)
    brush.disc(0.0, 0.7, 0.075, WHITE)
    brush.disc(0.0, 0.7, 0.055, (255, 231, 150))


def tree(brush: Brush, colour: Colour) -> None:
    brush.rectangle(-0.06, 0.0, 0.06, 0.3, (122, 78, 52))
    brush.rectangle(0.01, 0.0, 0.06, 0.3, (98, 60, 44))
    for bottom, top, half in ((0.17, 0.58, 0.36), (0.4, 0.8, 0.29), (0.62, 1.0, 0.21)):
        brush.polygon([(-half, bottom), (0.0, top), (half, bottom)], colour)
        brush.polygon([(0.0, top), (half, bottom), (0.02, bottom)], dark(colour, 0.2))
        brush.polygon([(-half, bottom), (0.0, top), (-half * 0.62, bottom)], light(colour, 0.16))


def car(brush: Brush, colour: Colour) -> None:
    brush.polygon([(-0.56, 0.5), (-0.32, 0.98), (0.3, 0.98), (0.56, 0.5)], dark(colour, 0.12))
    brush.rectangle(-0.3, 0.9, 0.28, 1.0, dark(colour, 0.12), corner=0.05)
    brush.polygon([(-0.43, 0.55), (-0.26, 0.89), (-0.05, 0.89), (-0.05, 0.55)], (214, 236, 248))
    brush.polygon([(0.05, 0.89), (0.25, 0.89), (0.43, 0.55), (0.05, 0.55)], (190, 220, 240))
    brush.rectangle(-0.92, 0.16, 0.92, 0.6, colour, corner=0.16)
    brush.rectangle(-0.88, 0.5, 0.88, 0.58, light(colour, 0.35), corner=0.04)
    brush.rectangle(-0.92, 0.16, 0.92, 0.28, dark(colour, 0.3), corner=0.06)
    brush.rectangle(0.8, 0.36, 0.93, 0.5, (255, 240, 170), corner=0.04)
    brush.rectangle(-0.93, 0.36, -0.84, 0.5, (255, 120, 100), corner=0.03)
    for x in (-0.5, 0.5):
        brush.disc(x, 0.2, 0.2, INK)
        brush.disc(x, 0.2, 0.1, (208, 212, 222))


def cat(brush: Brush, colour: Colour) -> None:
    brush.line([(0.2, 0.07), (0.4, 0.1), (0.47, 0.26), (0.4, 0.42), (0.46, 0.52)], dark(colour, 0.15), 0.085)
    brush.disc(0.46, 0.52, 0.042, dark(colour, 0.15))  # the tail's tip
    brush.ellipse(-0.28, -0.12, 0.28, 0.64, colour)
    brush.ellipse(-0.15, 0.02, 0.15, 0.46, light(colour, 0.45))
    for side in (-1, 1):
        brush.ellipse(side * 0.13 - 0.1, 0.0, side * 0.13 + 0.1, 0.12, dark(colour, 0.12))
        brush.polygon([(side * 0.29, 0.68), (side * 0.26, 1.0), (side * 0.04, 0.86)], colour)
        brush.polygon([(side * 0.24, 0.76), (side * 0.23, 0.92), (side * 0.1, 0.84)], light(colour, 0.5))
    brush.ellipse(-0.31, 0.44, 0.31, 0.9, colour)
    for side in (-1, 1):
        brush.ellipse(side * 0.14 - 0.07, 0.61, side * 0.14 + 0.07, 0.77, WHITE)
        brush.ellipse(side * 0.13 - 0.04, 0.62, side * 0.13 + 0.04, 0.76, INK)
        brush.line([(side * 0.16, 0.57), (side * 0.38, 0.61)], dark(colour, 0.55), 0.014)
        brush.line([(side * 0.16, 0.54), (side * 0.38, 0.52)], dark(colour, 0.55), 0.014)
    brush.ellipse(-0.1, 0.49, 0.1, 0.61, light(colour, 0.55))
    brush.polygon([(-0.045, 0.61), (0.045, 0.61), (0.0, 0.56)], (240, 120, 130))


def ball(brush: Brush, colour: Colour) -> None:
    brush.disc(0.0, 0.5, 0.5, colour)
    brush.pie(-0.5, 0.0, 0.5, 1.0, 20, 160, dark(colour, 0.14))
    brush.ellipse(-0.5, 0.2, 0.5, 0.98, colour)  # what is left of the slice is the shaded underside
    brush.polygon(
        [
            (-0.498, 0.55),
            (-0.47, 0.67),
            (0.0, 0.58),
            (0.47, 0.67),
            (0.498, 0.55),
            (0.48, 0.38),
            (0.0, 0.3),
            (-0.48, 0.38),
        ],
        WHITE,
    )
    brush.polygon(
        [(-0.49, 0.45), (0.0, 0.38), (0.49, 0.45), (0.495, 0.49), (0.0, 0.43), (-0.495, 0.49)], colour
    )
    brush.ellipse(-0.3, 0.74, -0.06, 0.9, light(colour, 0.65))


def mushroom(brush: Brush, colour: Colour) -> None:
    brush.polygon([(-0.13, 0.5), (0.13, 0.5), (0.2, 0.04), (-0.2, 0.04)], (250, 240, 220))
    brush.polygon([(0.04, 0.5), (0.13, 0.5), (0.2, 0.04), (0.08, 0.04)], (228, 212, 190))
    brush.ellipse(-0.2, 0.0, 0.2, 0.1, (240, 226, 204))
    brush.ellipse(-0.5, 0.36, 0.5, 0.58, dark(colour, 0.4))
    brush.pie(-0.54, -0.04, 0.54, 1.0, 180, 360, colour)
    brush.ellipse(-0.54, 0.4, 0.54, 0.56, colour)
    brush.ellipse(-0.32, 0.38, 0.32, 0.5, (214, 196, 176))
    for x, y, radius in ((-0.3, 0.62, 0.075), (0.02, 0.82, 0.085), (0.3, 0.66, 0.08), (0.02, 0.6, 0.05)):
        brush.disc(x, y, radius, WHITE)


def balloon(brush: Brush, colour: Colour) -> None:
    for side in (-1, 1):
        brush.line([(side * 0.12, 0.16), (side * 0.22, 0.42)], (110, 84, 66), 0.018)
    brush.pie(-0.38, 0.24, 0.38, 1.0, 0, 360, colour)
    brush.polygon([(-0.36, 0.52), (0.36, 0.52), (0.13, 0.24), (-0.13, 0.24)], colour)
    for left, right, tone in ((-0.22, 0.22, light(colour, 0.75)), (-0.1, 0.1, colour)):
        brush.ellipse(left, 0.24, right, 1.0, tone)
        half = right * 0.42
        brush.polygon([(left * 0.97, 0.52), (right * 0.97, 0.52), (half, 0.24), (-half, 0.24)], tone)
    brush.rectangle(-0.14, 0.22, 0.14, 0.27, dark(colour, 0.35), corner=0.02)
    brush.rectangle(-0.12, 0.0, 0.12, 0.16, (168, 112, 66), corner=0.03)
    brush.rectangle(-0.13, 0.11, 0.13, 0.16, (124, 80, 50), corner=0.02)


def kite(brush: Brush, colour: Colour) -> None:
    tail = [(0.12 * math.sin(step * 1.25), 0.34 - 0.034 * step) for step in range(11)]
    brush.line([(0.0, 0.4), *tail], (250, 250, 250), 0.016)
    for x, y in tail[2::3]:
        brush.polygon(
            [(x - 0.075, y + 0.035), (x - 0.075, y - 0.035), (x + 0.075, y + 0.035), (x + 0.075, y - 0.035)],
            colour,
        )
    brush.polygon([(0.0, 1.0), (0.34, 0.72), (0.0, 0.3), (-0.34, 0.72)], colour)
    brush.polygon([(0.0, 1.0), (0.34, 0.72), (0.0, 0.72)], light(colour, 0.35))
    brush.polygon([(-0.34, 0.72), (0.0, 0.72), (0.0, 0.3)], dark(colour, 0.2))
    brush.line([(0.0, 1.0), (0.0, 0.3)], WHITE, 0.016)
    brush.line([(-0.34, 0.72), (0.34, 0.72)], WHITE, 0.016)


@dataclass(frozen=True)
class Shape:
    """A thing of no colour, size or place yet."""

    draw: Callable[[Brush, Colour], None]
    width: float  # in units of its own height
    height: float  # of a plain one, neither big nor small, in units of the picture's shorter side
    flies: bool = False


THINGS = {
    "house": Shape(house, 1.08, 0.36),
    "tree": Shape(tree, 0.72, 0.42),
    "car": Shape(car, 1.86, 0.22),
    "cat": Shape(cat, 0.88, 0.32),
    "ball": Shape(ball, 1.0, 0.24),
    "mushroom": Shape(mushroom, 1.08, 0.28),
    "balloon": Shape(balloon, 0.76, 0.36, flies=True),
    "kite": Shape(kite, 0.68, 0.36, flies=True),
}
