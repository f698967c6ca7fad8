"""Draws README's first image: images of the sample data's val split and what the captioner wrote.

python writeup_diagrams/draw_sample_captions.py      after `make sample`; writes sample_captions.png beside it
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from PIL import Image, ImageDraw, ImageFont

from captioner import captioner_from_state
from paths import locations
from scoring.attention_sheet import wrapped
from training import checkpoints

HERE = Path(__file__).resolve().parent
COLUMNS, ROWS = 3, 2  # images in order of their ids: none is chosen
WIDTH, HEIGHT, GAP = 320, 240, 16  # pixels of a cell, without its caption, and between cells
LETTERS, LINE = 22, 27  # pixels: on a phone, which shows the sheet at a third of its size, still 7.7


def main() -> None:
    paths = locations(HERE.parent / "data" / "sample", HERE.parent / "checkpoints" / "sample")
    _, state = checkpoints.load_named(paths["captioner_checkpoints"], "last", "captioner")
    images = [Image.open(path) for path in sorted(paths["val_images"].iterdir())[: COLUMNS * ROWS]]
    captions = captioner_from_state(state, torch.device("cpu")).caption(images)
    captioned(images, captions, HEIGHT).save(HERE / "sample_captions.png", optimize=True)


def captioned(images: list[Image.Image], captions: list[str], height: int) -> Image.Image:
    """A sheet of images, COLUMNS a row and `height` pixels high each, with their captions below them."""
    captions = [wrapped(caption, WIDTH, LETTERS) for caption in captions]
    cell_height = height + GAP + LINE * max(1 + caption.count("\n") for caption in captions)
    rows = -(-len(images) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (WIDTH + GAP) + GAP, rows * (cell_height + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(LETTERS)
    for number, (image, caption) in enumerate(zip(images, captions)):
        row, column = divmod(number, COLUMNS)
        left, top = GAP + column * (WIDTH + GAP), GAP + row * (cell_height + GAP)
        image = image.resize([round(side * height / image.height) for side in image.size], Image.LANCZOS)
        sheet.paste(image, (left + (WIDTH - image.width) // 2, top))
        middle = (left + WIDTH // 2, top + height + 10)
        draw.multiline_text(
            middle, caption, fill=(40, 40, 40), font=font, anchor="ma", align="center", spacing=5
        )
    return sheet


if __name__ == "__main__":
    main()
