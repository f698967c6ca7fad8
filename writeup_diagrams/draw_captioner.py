"""Draws captioner.svg: from an image and the words so far to the next word, as in training and in decoding.

python writeup_diagrams/draw_captioner.py
"""

from pathlib import Path

from markup import Markup
from sheet import HERE, arrow, box, element, labelled_box, scenes, text, write

WORDS = ("<SOS>", "a", "house", "beside", "a", "tree", "<EOS>")
LEFT, LEFT_WIDTH = 20, 240  # the encoder's column
RIGHT, RIGHT_WIDTH = 296, 264  # the decoder's
BETWEEN = 278  # where the memory's line rises between them
WIDTH, HEIGHT = 580, 616
NOTES = (
    "In training the label of each token",
    "is the next one: cross entropy with",
    "label smoothing, <PAD> left out.",
    "In decoding they come one by one, on",
    "six beams; the cache keeps keys and",
    "values, the picture's only once.",
)


def main(folder: Path = HERE) -> None:
    write(
        folder / "captioner.svg", WIDTH, HEIGHT,
        "The captioner: an image encoder, and a caption decoder that looks at its features",
        element("defs", scenes()), encoder(), decoder(),
        [text(LEFT, 504 + 18 * line, note, "small soft") for line, note in enumerate(NOTES)],
    )  # fmt: skip


def encoder() -> list[Markup]:
    """The left column: an image to the features of its patches, the memory."""
    middle = LEFT + LEFT_WIDTH / 2
    return [
        gridded_picture(middle - 56, 22, 112),
        *arrow((middle, 138), (middle, 176)),
        text(middle - 12, 160, "images", "end"), text(middle + 12, 160, "(B, 3, 224, 224)", "code soft"),
        *labelled_box(
            LEFT + 12, 178, LEFT_WIDTH - 24, 46, "blue", "PatchEmbedding", "projection, + positions"
        ),
        *arrow((middle, 226), (middle, 264)),
        text(middle + 12, 250, "(B, 196, D)", "code soft"),
        *stack(LEFT, 266, LEFT_WIDTH, "blue", "TransformerEncoder", 12, ("self-attention", "feed-forward")),
        *arrow((middle, 414), (middle, 444), (BETWEEN, 444), (BETWEEN, 343), (RIGHT + 10, 343)),
        text(middle + 12, 436, "memory"), text(middle + 12, 464, "(B, 196, D)", "code soft"),
    ]  # fmt: skip


def decoder() -> list[Markup]:
    """The right column: the tokens so far to the next one."""
    middle = RIGHT + RIGHT_WIDTH / 2
    sublayers = ("masked self-attention", "cross-attention", "feed-forward")
    return [
        text(middle, 34, "inputs = tokens[:, :-1]", "code soft middle"),
        *tokens(46, WORDS[:-1], "grey"),
        *arrow((middle, 78), (middle, 132)),
        text(middle + 12, 110, "(B, T)", "code soft"),
        *labelled_box(
            RIGHT + 12, 134, RIGHT_WIDTH - 24, 46, "orange",
            "token_embedding", "times the root of D, + positions",
        ),
        *arrow((middle, 182), (middle, 228)),
        text(middle + 12, 210, "(B, T, D)", "code soft"),
        *stack(RIGHT, 230, RIGHT_WIDTH, "orange", "TransformerDecoder", 6, sublayers),
        *arrow((middle, 434), (middle, 470)),
        text(middle + 12, 456, "(B, T, D)", "code soft"),
        *labelled_box(RIGHT + 12, 472, RIGHT_WIDTH - 24, 36, "orange", "to_vocabulary"),
        *arrow((middle, 510), (middle, 544)),
        text(middle + 12, 532, "(B, T, V)", "code soft"), text(middle - 12, 532, "logits", "end"),
        *tokens(546, WORDS[1:], "green"),
        text(middle, 596, "labels = tokens[:, 1:]", "code soft middle"),
    ]  # fmt: skip


def stack(
    x: float, y: float, width: float, colour: str, name: str, layers: int, sublayers: tuple[str, ...]
) -> list[Markup]:
    """A frame with the sublayers of one layer, one below the other."""
    middle = x + width / 2
    shapes = [
        element(
            "rect", class_=f"{colour} frame", x=x, y=y, width=width, height=30 + 58 * len(sublayers), rx=8
        ),
        text(x + 12, y + 22, name, "title"),
        text(x + width - 12, y + 22, f"× {layers}", "title end"),
    ]
    for number, sublayer in enumerate(sublayers):
        top = y + 34 + 58 * number
        if number:
            shapes += arrow((middle, top - 16), (middle, top - 2))
        shapes += labelled_box(x + 12, top, width - 24, 40, colour, sublayer)
    return shapes


def tokens(y: float, words: tuple[str, ...], colour: str) -> list[Markup]:
    """A row of tokens, each as wide as its letters ask for."""
    shapes, x = [], RIGHT
    room = (RIGHT_WIDTH - 8 * len("".join(words))) / len(words)
    for word in words:
        width = 8 * len(word) + room
        shapes += [box(x + 1, y, width - 2, 30, colour), text(x + width / 2, y + 20, word, "code middle")]
        x += width
    return shapes


def gridded_picture(x: float, y: float, side: float) -> Markup:
    """The second scene, cut into 14 × 14 patches."""
    lines = [f"M{step * 90 / 14:.2f} 0 V90 M0 {step * 90 / 14:.2f} H90" for step in range(1, 14)]
    cuts = element("path", d=" ".join(lines), class_="cut", style="stroke-width: 0.6")
    scene = element("use", href="#scene1")
    return element("svg", scene, cuts, x=x, y=y, width=side, height=side, viewBox="0 0 90 90")


if __name__ == "__main__":
    main()
