"""Draws README's first picture: pictures of the sample data's val split and what the captioner wrote.

python writeup_diagrams/draw_sample_captions.py      after `make sample`; writes sample_captions.png beside it
"""

import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from PIL import Image, ImageDraw, ImageFont

from captioner import captioner_from_state
from paths import locations
from support import checkpoints

HERE = Path(__file__).resolve().parent
COLUMNS, ROWS = 3, 2  # pictures in order of their ids: none is chosen
WIDTH, HEIGHT, TEXT_HEIGHT, GAP = 320, 240, 64, 16  # pixels of a cell and between cells


def main() -> None:
    paths = locations(HERE.parent / "data" / "sample", HERE.parent / "checkpoints" / "sample")
    _, state = checkpoints.load_named(paths["captioner_checkpoints"], "last", "captioner")
    pictures = [Image.open(path) for path in sorted(paths["val_images"].iterdir())[: COLUMNS * ROWS]]
    captions = captioner_from_state(state, torch.device("cpu")).caption(pictures)
    sheet = Image.new(
        "RGB", (COLUMNS * (WIDTH + GAP) + GAP, ROWS * (HEIGHT + TEXT_HEIGHT + GAP) + GAP), "white"
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(17)
    for number, (picture, caption) in enumerate(zip(pictures, captions)):
        row, column = divmod(number, COLUMNS)
        left, top = GAP + column * (WIDTH + GAP), GAP + row * (HEIGHT + TEXT_HEIGHT + GAP)
        picture = picture.resize(
            [round(side * HEIGHT / picture.height) for side in picture.size], Image.LANCZOS
        )
        sheet.paste(picture, (left + (WIDTH - picture.width) // 2, top))
        text = textwrap.fill(caption, 38)
        middle = (left + WIDTH // 2, top + HEIGHT + 10)
        draw.multiline_text(
            middle, text, fill=(40, 40, 40), font=font, anchor="ma", align="center", spacing=5
        )
    sheet.save(HERE / "sample_captions.png", optimize=True)


if __name__ == "__main__":
    main()
