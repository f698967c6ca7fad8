"""Draws README's photographs: where the captioner that ships looked, and six more with its captions.

    python writeup_diagrams/draw_photographs.py         by weights/captioner.pt; writes two .jpg beside it
    python writeup_diagrams/draw_photographs.py CKPT    by another captioner

The photographs are those of weights/examples, in the order of its credits.json.  The first was chosen.  The
last six follow a rule: of the 47 images under CC BY 2.0 in a small part of COCO, the first three that people
describe with a person or a dog, which the training data are full of, and the first three that they do not.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from draw_sample_captions import WIDTH, captioned
from PIL import Image

from captioner import load_captioner
from image_transforms import central_square
from scoring.attention_sheet import attention_sheet

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE.parent / "weights"


def main(checkpoint: str | Path = WEIGHTS / "captioner.pt", out: Path = HERE) -> None:
    captioner = load_captioner(checkpoint)
    credits = json.loads((WEIGHTS / "examples" / "credits.json").read_text())
    images = [Image.open(WEIGHTS / "examples" / credit["file"]).convert("RGB") for credit in credits]
    squares = [central_square(image) for image in images]  # what the captioner sees of them

    words, maps = captioner.attention(images[0], captioner.caption(images[:1])[0])
    spoken = len(words) - (words[-1] == ".")  # where it looked for the full stop tells nothing
    sheet = attention_sheet(squares[0], words[:spoken], maps[:spoken])
    sheet.save(out / "photograph_attention.jpg", quality=85, optimize=True)
    strip = captioned(squares[-6:], captioner.caption(images[-6:]), height=WIDTH)
    strip.save(out / "photograph_captions.jpg", quality=85, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:2])
