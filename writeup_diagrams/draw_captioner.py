"""Draws captioner.svg: from a picture and the words so far to the next word, as in training and in decoding.

python writeup_diagrams/draw_captioner.py
"""

from pathlib import Path

from sheet import HERE, arrow, box, element, labelled_box, scenes, text, write

from support.markup import Markup

WORDS = ("<SOS>", "a", "house", "beside", "a", "tree", "<EOS>")
LEFT, LEFT_WIDTH = 28, 260  # the encoder's column
RIGHT, RIGHT_WIDTH = 440, 420  # the decoder's
WIDTH, HEIGHT = 888, 588
NOTES = (
    "In training the label of each token is the next one:",
    "cross entropy with label smoothing, <PAD> left out.",
    "In decoding they come one by one, on six beams; the",
    "cache keeps keys and values, the picture's only once.",
)


def main(folder: Path = HERE) -> None:
    write(
        folder / "captioner.svg", WIDTH, HEIGHT,
        "The captioner: an image encoder, and a caption decoder that looks at its features",
        element("defs", scenes()), encoder(), decoder(),
        [text(LEFT, 494 + 20 * line, note, "small soft") for line, note in enumerate(NOTES)],
    )  # fmt: skip


def encoder() -> list[Markup]:
    """The left column: a picture to the features of its patches, the memory."""
    middle = LEFT + LEFT_WIDTH / 2
    return [
        gridded_picture(middle - 56, 24, 112),
        text(middle + 70, 76, "images"), text(middle + 70, 96, "(B, 3, 224, 224)", "code soft"),
        *arrow((middle, 142), (middle, 172)),
        *labelled_box(
            LEFT + 16, 174, LEFT_WIDTH - 32, 46, "blue", "PatchEmbedding", "projection, + positions"
        ),
        *arrow((middle, 222), (middle, 262)),
        text(middle + 12, 246, "(B, 196, D)", "code soft"),
        *stack(LEFT, 264, LEFT_WIDTH, "blue", "TransformerEncoder", 12, ("self-attention", "feed-forward")),
        *arrow((middle, 410), (middle, 440), (364, 440), (364, 318), (RIGHT + 14, 318)),
        text(middle + 12, 432, "memory"), text(middle + 12, 460, "(B, 196, D)", "code soft"),
    ]  # fmt: skip


def decoder() -> list[Markup]:
    """The right column: the tokens so far to the next one."""
    middle = RIGHT + RIGHT_WIDTH / 2
    sublayers = ("masked self-attention", "cross-attention", "feed-forward")
    return [
        *tokens(24, WORDS[:-1], "grey"),
        text(RIGHT, 76, "inputs = tokens[:, :-1]", "code soft"),
        *arrow((middle, 56), (middle, 110)),
        text(middle + 12, 76, "(B, T)", "code soft"),
        *labelled_box(
            RIGHT + 16, 112, RIGHT_WIDTH - 32, 46, "orange",
            "token_embedding", "times the root of D, + positions",
        ),
        *arrow((middle, 160), (middle, 204)),
        text(middle + 12, 186, "(B, T, D)", "code soft"),
        *stack(RIGHT, 206, RIGHT_WIDTH, "orange", "TransformerDecoder", 6, sublayers),
        *arrow((middle, 410), (middle, 446)),
        text(middle + 12, 432, "(B, T, D)", "code soft"),
        *labelled_box(RIGHT + 16, 448, RIGHT_WIDTH - 32, 36, "orange", "to_vocabulary"),
        *arrow((middle, 486), (middle, 520)),
        text(middle + 12, 508, "(B, T, V)", "code soft"), text(RIGHT, 508, "logits"),
        *tokens(522, WORDS[1:], "green"),
        text(RIGHT, 572, "labels = tokens[:, 1:]", "code soft"),
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
        text(x + 16, y + 22, name, "title"),
        text(x + width - 16, y + 22, f"× {layers}", "title end"),
    ]
    for number, sublayer in enumerate(sublayers):
        top = y + 34 + 58 * number
        if number:
            shapes += arrow((middle, top - 16), (middle, top - 2))
        shapes += labelled_box(x + 16, top, width - 32, 40, colour, sublayer)
    return shapes


def tokens(y: float, words: tuple[str, ...], colour: str) -> list[Markup]:
    """A row of tokens."""
    shapes, width = [], RIGHT_WIDTH / len(words)
    for number, word in enumerate(words):
        x = RIGHT + number * width
        shapes += [box(x + 2, y, width - 4, 30, colour), text(x + width / 2, y + 20, word, "code middle")]
    return shapes


def gridded_picture(x: float, y: float, side: float) -> Markup:
    """The second scene, cut into 14 × 14 patches."""
    lines = [f"M{step * 90 / 14:.2f} 0 V90 M0 {step * 90 / 14:.2f} H90" for step in range(1, 14)]
    cuts = element("path", d=" ".join(lines), class_="cut", style="stroke-width: 0.6")
    scene = element("use", href="#scene1")
    return element("svg", scene, cuts, x=x, y=y, width=side, height=side, viewBox="0 0 90 90")


if __name__ == "__main__":
    main()
