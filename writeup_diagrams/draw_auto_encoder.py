"""Draws image_auto_encoder.svg: the forward pass of `ImageAutoEncoder` on two images of nine patches each.

python writeup_diagrams/draw_auto_encoder.py

Which patches are kept is not made up: it is what `random_masking` deals out for two seeds.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from sheet import HERE, arrow, box, element, scenes, text, write

from image_captioner import random_masking
from support.markup import Markup

SIDE = 3  # patches, so N = 9
SEEDS = (8, 9)
KEPT, MASKED = (positions.tolist() for positions in random_masking(torch.tensor(SEEDS), SIDE**2, 0.75))
K, M = len(KEPT[0]), len(MASKED[0])

STRIPS = (182, 488)  # where each image's strip of nine tiles begins
MIDDLE = 459  # between the strips
TILE, PITCH = 24, 28  # pixels: side of a tile, from one to the next
LABELS, SHAPES, WIDTH = 24, 764, 904  # columns: what it is; its shape

Strips = Sequence[Sequence[int]]  # for each image the positions of its patches
Draw = Callable[[float, float, int, int], Markup | list[Markup]]  # a tile at x, y: of an image, at a position


def main(folder: Path = HERE) -> None:
    shapes = [element("defs", scenes())]
    y = 20
    for image, left in enumerate(STRIPS):
        shapes.append(whole_picture(left + 79, y, image))
    shapes += row_texts(y + 47, "images", "(2, 3, 3P, 3P)")
    y += 110
    dealt = zip(STRIPS, KEPT, MASKED)
    shapes += [
        text(left + 126, y, f"kept {_list(k)} · masked {_list(m)}", "small middle") for left, k, m in dealt
    ]
    shapes += [text(LABELS, y, "random_masking", "code"), text(SHAPES, y, f"(2, {K}), (2, {M})", "code")]

    y += 14
    shapes += panel(y, 314, "blue", "ImageEncoder")
    y, more = operation(y, "patchify")
    shapes += more + row(y, "patches", "(2, 9, P·P·3)", [range(9)] * 2, true_patch, faded=MASKED)
    y, more = operation(y + 44, "select_patches(patches, kept)")
    shapes += more + row(y, "kept patches", f"(2, {K}, P·P·3)", KEPT, true_patch)
    y, more = operation(y + 44, "projection, + positions[kept]")
    shapes += more + row(y, "embeddings", f"(2, {K}, D)", KEPT, token("blue"))
    y, more = operation(y + 44, "TransformerEncoder, 12 layers")
    shapes += more + row(y, "features", f"(2, {K}, D)", KEPT, token("blue"))

    y += 60
    shapes += panel(y, 314, "orange", "ImageDecoder")
    y, more = operation(y, "scatter over mask tokens, + positions")
    shapes += more + row(y, "tokens", "(2, 9, D)", [range(9)] * 2, token("grey", KEPT))
    y, more = operation(y + 44, "TransformerEncoder, 4 layers")
    shapes += more + row(y, "features", "(2, 9, D)", [range(9)] * 2, token("orange"))
    y, more = operation(y + 44, "select_patches(features, masked)")
    shapes += more + row(y, "of masked patches", f"(2, {M}, D)", MASKED, token("orange"))
    y, more = operation(y + 44, "to_pixels")
    shapes += more + row(y, "predicted pixels", f"(2, {M}, P·P·3)", MASKED, predicted_patch)

    y += 54
    shapes.append(text(MIDDLE, y + 35, "mean squared error", "middle title"))
    for left in STRIPS:
        shapes += arrow((left + 126, y + 10), (left + 126, y + 28)) + arrow(
            (left + 126, y + 52), (left + 126, y + 34)
        )
    y += 60
    shapes += row(y, "true pixels", f"(2, {M}, P·P·3)", MASKED, true_patch)
    shapes.append(text(MIDDLE, y + 60, "masked_pixels(images, masked, P)", "code small middle"))
    write(
        folder / "image_auto_encoder.svg", WIDTH, y + 78,
        "The forward pass of ImageAutoEncoder on two images of nine patches, with the shape at each step",
        *shapes,
    )  # fmt: skip


def row(
    y: float, label: str, shape: str, strips: Strips, draw: Draw, faded: Strips = ((), ())
) -> list[Markup]:
    """One tile for each position in both images' strips, with the position beneath; `draw` draws one."""
    shapes = row_texts(y + TILE / 2, label, shape)
    for number, (left, positions) in enumerate(zip(STRIPS, strips)):
        x = left + (9 - len(positions)) * PITCH / 2
        for position in positions:
            shapes.append(draw(x, y, number, position))
            if position in faded[number]:
                shapes.append(box(x, y, TILE, TILE, "hidden", 2))
            shapes.append(text(x + TILE / 2, y + TILE + 12, str(position), "small soft middle"))
            x += PITCH
    return shapes


def row_texts(y: float, label: str, shape: str) -> list[Markup]:
    return [text(LABELS, y + 5, label), text(SHAPES, y + 5, shape, "code")]


def operation(y: float, name: str) -> tuple[float, list[Markup]]:
    """An arrow down each strip with the operation between them; returns where the next row begins."""
    shapes = []
    for left in STRIPS:
        shapes += arrow((left + 126, y + 4), (left + 126, y + 26))
    shapes.append(text(MIDDLE, y + 20, name, "code small middle"))
    return y + 32, shapes


def panel(y: float, height: float, colour: str, name: str) -> list[Markup]:
    """What a module does, framed."""
    return [
        element("rect", class_=f"{colour} frame", x=12, y=y, width=WIDTH - 24, height=height, rx=8),
        text(LABELS, y + 22, name, "title"),
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
