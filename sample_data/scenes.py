"""Invents scenes: which coloured things a picture shows, how large and where, with plain relations.

Lengths are in units of the picture's shorter side, from the left and top of its central square.  All things
lie in that square, to which evaluation crops, and keep a margin to its rim, where the crops of training cut.
"""

from collections.abc import Set
from dataclasses import dataclass
from random import Random

from sample_data.illustration import GROUNDS
from sample_data.things import COLOURS, THINGS

MARGIN = 0.06
GAP = 0.04  # the least distance at which one thing is plainly left of or above another
UPRIGHT = 0.12  # the greatest sidewards distance of middles at which one thing is plainly above another
SIZES = {"small": 0.7, "plain": 1.0, "big": 1.4}  # times the height that `THINGS` gives

# How often each layout is drawn, of 100.  The things of a scene are in this order:
# beside (left, right), behind (rear, front), above (upper, lower), row and beside_and_sky likewise.
LAYOUTS = {"alone": 44, "beside": 20, "behind": 10, "above": 14, "row": 6, "beside_and_sky": 6}
IN_A_ROW = {"beside": 2, "row": 3, "beside_and_sky": 2}  # so many of the first things stand side by side


@dataclass(frozen=True)
class Thing:
    """One coloured thing and where it is."""

    kind: str  # a key of `THINGS`
    colour: str  # a key of `COLOURS`
    size: str  # a key of `SIZES`
    x: float  # its middle
    base: float  # its foot

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        width, height = extent(self.kind, self.size)
        return self.x - width / 2, self.base - height, self.x + width / 2, self.base


@dataclass(frozen=True)
class Scene:
    """What a picture shows."""

    layout: str  # a key of `LAYOUTS`, which says what the order of the things means
    ground: str  # a key of `GROUNDS`
    horizon: float
    things: tuple[Thing, ...]


def extent(kind: str, size: str) -> tuple[float, float]:
    """Width and height of a thing."""
    height = THINGS[kind].height * SIZES[size]
    return THINGS[kind].width * height, height


def left_of(first: Thing, second: Thing) -> bool:
    """Wholly to the left, with a gap between."""
    return first.box[2] + GAP <= second.box[0]


def above(first: Thing, second: Thing) -> bool:
    """Wholly and straight above, with a gap between."""
    return first.box[3] + GAP <= second.box[1] and abs(first.x - second.x) <= UPRIGHT


def behind(first: Thing, second: Thing) -> bool:
    """Partly hidden by `second`, which stands nearer, but for the most part visible."""
    left, top = max(first.box[0], second.box[0]), max(first.box[1], second.box[1])
    right, bottom = min(first.box[2], second.box[2]), min(first.box[3], second.box[3])
    hidden = max(0.0, right - left) * max(0.0, bottom - top)
    width, height = extent(first.kind, first.size)
    return 0.1 <= hidden / (width * height) <= 0.4 and first.base + 0.08 <= second.base


def over_both(left: Thing, right: Thing, upper: Thing) -> bool:
    """`upper` is higher than the tops of two others, and between them."""
    return upper.box[3] + GAP <= min(left.box[1], right.box[1]) and left.x < upper.x < right.x


def inside(thing: Thing) -> bool:
    """Within the central square and its margin."""
    left, top, right, bottom = thing.box
    return min(left, top) >= MARGIN and max(right, bottom) <= 1 - MARGIN


FITS = {
    "alone": lambda thing: True,
    "beside": left_of,
    "behind": behind,
    "above": above,
    "row": lambda left, middle, right: left_of(left, middle) and left_of(middle, right),
    "beside_and_sky": lambda left, right, upper: left_of(left, right) and over_both(left, right, upper),
}


def invent(random: Random, banned: Set[tuple[str, str]] = frozenset()) -> Scene:
    """A scene: what is in it first, then the first arrangement of it that fits.

    Args:
        random: where every choice comes from.
        banned: (colour, kind) pairs that must not occur.
    """
    layout = random.choices(list(LAYOUTS), list(LAYOUTS.values()))[0]
    kinds = choose_kinds(random, layout)
    things = [(kind, random.choice([c for c in COLOURS if (c, kind) not in banned])) for kind in kinds]
    ground, horizon = random.choice(list(GROUNDS)), random.uniform(0.48, 0.56)
    while True:
        placed = arrange(random, layout, things, horizon)
        if placed and all(inside(thing) for thing in placed) and FITS[layout](*placed):
            return Scene(layout, ground, horizon, placed)


def choose_kinds(random: Random, layout: str) -> list[str]:
    """No kind twice, so that "the red one" needs no second look; what flies is up, the rest stands."""
    standing = [kind for kind, shape in THINGS.items() if not shape.flies]
    flying = [kind for kind, shape in THINGS.items() if shape.flies]
    random.shuffle(standing)
    random.shuffle(flying)
    return {
        "alone": [random.choice(standing + flying)],
        "beside": standing[:2],
        "behind": standing[:2],
        "above": [flying[0], standing[0]],
        "row": standing[:3],
        "beside_and_sky": [*standing[:2], flying[0]],
    }[layout]


def arrange(
    random: Random, layout: str, things: list[tuple[str, str]], horizon: float
) -> tuple[Thing, ...] | None:
    """Draws sizes and places for (kind, colour) things; None where they are too wide to stand in a row."""
    kinds = [kind for kind, _ in things]
    sizes = [random.choice(list(SIZES)) for _ in things]
    bases = [resting_place(random, kind, size, horizon) for kind, size in zip(kinds, sizes)]
    xs = [random.uniform(MARGIN, 1 - MARGIN) for _ in things]
    row = IN_A_ROW.get(layout, 0)
    widths = [extent(kind, size)[0] for kind, size in zip(kinds, sizes)][:row]
    slack = 1 - 2 * MARGIN - sum(widths) - GAP * (row - 1)
    if slack < 0:
        return None
    shifts = sorted(random.uniform(0, slack) for _ in range(row))
    for place in range(row):  # what is left of the width is shared out at random
        xs[place] = MARGIN + sum(widths[:place]) + GAP * place + shifts[place] + widths[place] / 2
        bases[place] = bases[0] + random.uniform(-0.05, 0.05)
    return tuple(Thing(*thing, size, x, base) for thing, size, x, base in zip(things, sizes, xs, bases))


def resting_place(random: Random, kind: str, size: str, horizon: float) -> float:
    """Where a foot comes to be: on the ground, or in the sky for what flies."""
    if THINGS[kind].flies:
        return MARGIN + extent(kind, size)[1] + random.uniform(0.0, 0.1)
    return random.uniform(horizon + 0.13, 1 - MARGIN)
