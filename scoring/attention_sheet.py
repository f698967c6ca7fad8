"""Draws where a model looked for each word of a caption, as a sheet to look at.

The caption stands at the top, then the image, and beside and below it the image once more for each word.
The patches in full colour, with a line around them, are the fewest that together hold half of the word's
attention; the others fade, the more the less they have.  Beside the word stands how much of the image they
are: about half of it, for a word that has no place there.  Edges are those of the patches: a smooth heat
map would claim a sharpness that the model does not have.

Shapes: h × w the grid of patches.
"""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from itertools import count

import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

HALF = 0.5  # the share of the attention that the outlined patches hold
FADED = 0.16  # how much of the image shows where there is no attention

# The sheet is a grid of cells.  The image takes a square of them, top left, and every word takes one.
COLUMNS = 5
PICTURE_CELLS = 2  # rows and columns that the image takes

# Lengths in pixels
TILE = 232  # side of a word's image
LABEL = 34  # height of the line above it, with the word
GAP = 16  # between two cells
MARGIN = 24  # around all
LINE = 3  # width of the outline; less around patches that are small
CAPTION, LEADING = 34, 46  # letters of the caption, and from one of its lines to the next
WORD = 24  # letters of a word above its image, smaller where it is long
NOTE = 18  # letters of its share, and of the legend
WIDTH = 2 * MARGIN + COLUMNS * TILE + (COLUMNS - 1) * GAP
PICTURE_SIDE = PICTURE_CELLS * TILE + (PICTURE_CELLS - 1) * GAP

INK = (28, 28, 32)
PALE_INK = (110, 110, 118)
FRAME = (200, 200, 206)
RED = (226, 48, 38)
PAPER = (255, 255, 255)

ASCII = frozenset(map(chr, range(128)))
FONTS = (  # of Linux, macOS and Windows, for what is not ASCII; where none has it, boxes are drawn
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc",
    "Arial Unicode.ttf", "PingFang.ttc", "arial.ttf", "msyh.ttc", "msgothic.ttc", "malgun.ttf", "Nirmala.ttf",
)  # fmt: skip

LEGEND = (
    "Outlined, in full colour: the fewest patches that hold half of the word's attention, and what share of "
    "the picture they are."
)


def attention_sheet(picture: Image.Image, words: Sequence[str], maps: torch.Tensor) -> Image.Image:
    """The sheet of one image and its caption.

    Args:
        picture: what the maps cover, RGB, square.
        words: of the caption.
        maps: (words, h, w), where the model looked for each word; not negative.

    Returns:
        RGB, `WIDTH` pixels wide and as high as the words need.
    """
    caption = wrapped(" ".join(words), WIDTH - 2 * MARGIN, CAPTION)
    top = MARGIN + LEADING * (caption.count("\n") + 1) + GAP
    cells = [cell for cell, _ in zip(free_cells(), words)]
    rows = max([PICTURE_CELLS, *(row + 1 for row, _ in cells)])
    sheet = Image.new("RGB", (WIDTH, top + rows * (LABEL + TILE + GAP) + LABEL + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    note = ImageFont.load_default(NOTE)
    draw.multiline_text((MARGIN, MARGIN), caption, INK, font_for(caption, CAPTION), spacing=LEADING - CAPTION)
    draw.text((MARGIN, sheet.height - MARGIN), LEGEND, PALE_INK, note, anchor="ls")

    large = picture.resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    sheet.paste(framed(large), (MARGIN, top + LABEL))
    small = picture.resize((TILE, TILE), Image.Resampling.LANCZOS)
    for (row, column), word, weights in zip(cells, words, maps):
        x, y = MARGIN + column * (TILE + GAP), top + row * (LABEL + TILE + GAP)
        share = f"{100 * fewest_with(weights, HALF).double().mean():.0f} %"
        font = fitting_font(word, TILE - 50, WORD)  # 50 pixels are for the share
        draw.text((x, y + LABEL - 9), word, INK, font, anchor="ls")
        draw.text((x + TILE, y + LABEL - 9), share, PALE_INK, note, anchor="rs")
        sheet.paste(framed(spotlight(small, weights)), (x, y + LABEL))
    return sheet


def free_cells() -> Iterator[tuple[int, int]]:
    """(row, column) of each word's cell: right of the image first, then below it."""
    for row in count():
        for column in range(PICTURE_CELLS if row < PICTURE_CELLS else 0, COLUMNS):
            yield row, column


def spotlight(picture: Image.Image, weights: torch.Tensor) -> Image.Image:
    """An image in full colour and outlined where half of the weights (h, w) lie, faded elsewhere."""
    kept = fewest_with(weights, HALF)
    opacity = FADED + (1 - FADED) * (weights / weights[kept].min().clamp(min=1e-12)).clamp(max=1)  # (h, w)
    seen = Image.composite(picture, Image.new("RGB", picture.size, PAPER), enlarged(opacity, picture.size))
    shape = enlarged(kept, picture.size)
    line = min(LINE, 1 + picture.width // kept.shape[1] // 16)
    framed_by_nothing = ImageOps.expand(shape, line)  # or the image's own edge would have no outline
    inside = framed_by_nothing.filter(ImageFilter.MinFilter(2 * line + 1))
    seen.paste(RED, mask=ImageChops.subtract(shape, ImageOps.crop(inside, line)))
    return seen


def fewest_with(weights: torch.Tensor, share: float) -> torch.Tensor:
    """Where the fewest weights (h, w) lie that together hold `share` of their sum: (h, w) bool."""
    ordered, places = weights.flatten().double().sort(descending=True, stable=True)
    greater = ordered.cumsum(dim=0) - ordered  # the sum of those before each
    kept = torch.zeros(len(ordered), dtype=torch.bool)
    kept[places[greater < share * ordered.sum()]] = True
    return kept.view_as(weights)


def enlarged(values: torch.Tensor, size: tuple[int, int]) -> Image.Image:
    """Values (h, w) from 0 to 1 as a grey image of sharp-edged cells."""
    grey = Image.fromarray((255 * values).round().byte().numpy())
    return grey.resize(size, Image.Resampling.NEAREST)


def framed(picture: Image.Image) -> Image.Image:
    """The image with a hairline, so that a white one has an edge."""
    frame = Image.new("L", picture.size, 0)
    ImageDraw.Draw(frame).rectangle((0, 0, picture.width - 1, picture.height - 1), outline=120)
    return Image.composite(Image.new("RGB", picture.size, FRAME), picture, frame)


def fitting_font(text: str, room: int, size: int) -> ImageFont.FreeTypeFont:
    """A font with the text's letters, so small that the text is no wider than `room` pixels."""
    while size > 8 and font_for(text, size).getlength(text) > room:
        size -= 1
    return font_for(text, size)


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, which has ASCII alone, or one of this machine with all the text's letters."""
    return _font_with(frozenset(text) - ASCII, size)


@cache
def _font_with(letters: frozenset[str], size: int) -> ImageFont.FreeTypeFont:
    for name in FONTS if letters else ():
        with suppress(OSError):  # not on this machine
            font = ImageFont.truetype(name, size)
            missing = bytes(font.getmask("\uffff"))  # no character: what a font shows for what it lacks
            if all(bytes(font.getmask(letter)) != missing for letter in letters):
                return font
    return ImageFont.load_default(size)


def wrapped(text: str, room: int, size: int) -> str:
    """The text in lines no wider than `room` pixels."""
    font = font_for(text, size)
    for characters in range(len(text) + 1, 0, -1):
        lines = textwrap.wrap(text, characters)
        if all(font.getlength(line) <= room for line in lines):
            break
    return "\n".join(lines)
