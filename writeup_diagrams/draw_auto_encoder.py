"""Draws image_auto_encoder.svg: the forward pass of `ImageAutoEncoder` on two images of nine patches each.

python writeup_diagrams/draw_auto_encoder.py

Which patches are kept is not made up: it is what `random_masking` deals out for two seeds.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from markup import Markup
from sheet import HERE, arrow, box, element, scenes, text, write

from image_captioner import random_masking

SIDE = 3  # patches, so N = 9
SEEDS = (8, 9)
KEPT, MASKED = (positions.tolist() for positions in random_masking(torch.tensor(SEEDS), SIDE**2, 0.75))
K, M = len(KEPT[0]), len(MASKED[0])

WIDTH = 580
TILE, PITCH = 24, 28  # pixels: side of a tile, from one to the next
STRIPS = (26, 306)  # where each image's strip of nine tiles begins
CENTRES = [left + (SIDE**2 * PITCH - (PITCH - TILE)) / 2 for left in STRIPS]
# Of a line of text: from LABELS on what it is, around MIDDLE how it is made, up to SHAPES its shape.
LABELS, MIDDLE, SHAPES = 26, WIDTH / 2, WIDTH - 26
ROW = 92  # from one row of tiles to the next

Strips = Sequence[Sequence[int]]  # for each image the positions of its patches
Draw = Callable[[float, float, int, int], Markup | list[Markup]]  # a tile at x, y: of an image, at a position


def main(folder: Path = HERE) -> None:
    shapes = [element("defs", scenes()), *line(34, "images", "", "(2, 3, 3P, 3P)")]
    for image, centre in enumerate(CENTRES):
        shapes.append(whole_picture(centre - 45, 46, image))
    shapes += line(164, "positions", "random_masking", f"(2, {K}), (2, {M})")
    for centre, kept, masked in zip(CENTRES, KEPT, MASKED):
        shapes.append(text(centre, 186, f"kept {_list(kept)} · masked {_list(masked)}", "small middle"))

    everywhere = [range(SIDE**2)] * 2
    y = 198
    shapes += panel(y, "blue", "ImageEncoder")
    shapes += row(y, "patches", "patchify", "(2, 9, P·P·3)", everywhere, true_patch, faded=MASKED)
    y += ROW
    shapes += row(y, "kept patches", "select_patches(patches, kept)", f"(2, {K}, P·P·3)", KEPT, true_patch)
    y += ROW
    shapes += row(y, "embeddings", "projection, + positions[kept]", f"(2, {K}, D)", KEPT, token("blue"))
    y += ROW
    shapes += row(y, "features", "TransformerEncoder, 12 layers", f"(2, {K}, D)", KEPT, token("blue"))

    y += ROW + 14
    shapes += panel(y, "orange", "ImageDecoder")
    made = "scatter over mask tokens, + positions"
    shapes += row(y, "tokens", made, "(2, 9, D)", everywhere, token("grey", KEPT))
    y += ROW
    shapes += row(y, "features", "TransformerEncoder, 4 layers", "(2, 9, D)", everywhere, token("orange"))
    y += ROW
    made = "select_patches(features, masked)"
    shapes += row(y, "masked ones", made, f"(2, {M}, D)", MASKED, token("orange"))
    y += ROW
    shapes += row(y, "predicted pixels", "to_pixels", f"(2, {M}, P·P·3)", MASKED, predicted_patch)

    y += ROW + 14
    shapes.append(text(MIDDLE, y + 28, "mean squared error", "middle title"))
    for centre in CENTRES:
        shapes += arrow((centre, y), (centre, y + 20)) + arrow((centre, y + 46), (centre, y + 26))
    shapes += tiles(y + 52, MASKED, true_patch)
    shapes += line(y + 112, "true pixels", "masked_pixels(images, masked, P)", f"(2, {M}, P·P·3)")
    write(
        folder / "image_auto_encoder.svg", WIDTH, y + 132,
        "The forward pass of ImageAutoEncoder on two images of nine patches, with the shape at each step",
        *shapes,
    )  # fmt: skip


def row(
    y: float, label: str, made: str, shape: str, strips: Strips, draw: Draw, faded: Strips = ((), ())
) -> list[Markup]:
    """An arrow down to each image's tiles, and above them a line that says what they are."""
    shapes = [part for centre in CENTRES for part in arrow((centre, y + 4), (centre, y + 26))]
    return shapes + line(y + 42, label, made, shape) + tiles(y + 52, strips, draw, faded)


def line(y: float, label: str, made: str, shape: str) -> list[Markup]:
    return [
        text(LABELS, y, label),
        text(MIDDLE, y, made, "code small soft middle"),
        text(SHAPES, y, shape, "code end"),
    ]


def tiles(y: float, strips: Strips, draw: Draw, faded: Strips = ((), ())) -> list[Markup]:
    """One tile for each position in both images' strips, with the position beneath; `draw` draws one."""
    shapes = []
    for number, (centre, positions) in enumerate(zip(CENTRES, strips)):
        x = centre - (len(positions) * PITCH - (PITCH - TILE)) / 2
        for position in positions:
            shapes.append(draw(x, y, number, position))
            if position in faded[number]:
                shapes.append(box(x, y, TILE, TILE, "hidden", 2))
            shapes.append(text(x + TILE / 2, y + TILE + 12, str(position), "small soft middle"))
            x += PITCH
    return shapes


def panel(y: float, colour: str, name: str) -> list[Markup]:
    """What a module does, framed: four rows."""
    return [
        element("rect", class_=f"{colour} frame", x=12, y=y, width=WIDTH - 24, height=4 * ROW + 4, rx=8),
        text(MIDDLE, y + 22, name, "title middle"),
    ]


def true_patch(x: float, y: float, image: int, position: int) -> Markup:
    """A patch of the little scene, cut out."""
    return cut_out(element("use", href=f"#scene{image}"), x, y, position)


def predicted_patch(x: float, y: float, image: int, position: int) -> Markup:
    """The right colours, not in detail: the patch blurred."""
    blurred = element("g", element("use", href=f"#scene{image}"), filter="url(#blur)")
    return cut_out(blurred, x, y, position)


def cut_out(scene: Markup, x: float, y: float, position: int) -> Markup:
    view = f"{position % SIDE * 30} {position // SIDE * 30} 30 30"
    return element("svg", scene, x=x, y=y, width=TILE, height=TILE, viewBox=view)


def token(colour: str, encoded: Sequence[Sequence[int]] | None = None) -> Draw:
    """Draws a vector; with `encoded`, what stands there is the encoder's and the rest is the mask token."""

    def draw(x: float, y: float, image: int, position: int) -> list[Markup]:
        if encoded and position in encoded[image]:
            return [box(x, y, TILE, TILE, "blue", 4)]
        return [box(x, y, TILE, TILE, colour, 4), text(x + 12, y + 17, "m" if encoded else "", "soft middle")]

    return draw


def whole_picture(x: float, y: float, image: int) -> Markup:
    """The scene with the cuts between its patches."""
    cuts = element("path", d="M30 0 V90 M60 0 V90 M0 30 H90 M0 60 H90", class_="cut")
    scene = element("use", href=f"#scene{image}")
    return element("svg", scene, cuts, x=x, y=y, width=90, height=90, viewBox="0 0 90 90")


def _list(positions: Sequence[int]) -> str:
    return " ".join(map(str, positions))


if __name__ == "__main__":
    main()
