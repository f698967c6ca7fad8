"""What a captioner says of one image file, for caption.py and app.py: caption, confidence, runners-up, sheet.

_, captioner, calibration = load_chosen(options)  # of the command line
picture = read_picture(Path("my_picture.jpg"), captioner.transform)
hypotheses = captioner.decode(picture.image[None])[0]
describe(captioner, hypotheses, calibration)["caption"]
"""

import argparse
import sys
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from captioner import Captioner, captioner_from_state
from image_transforms import EvaluationTransform, central_square, image_from, load_image
from paths import paths_from_options
from scoring import calibration as calibrations
from scoring.attention_sheet import PICTURE_SIDE, attention_sheet
from scoring.calibration import Calibration, calibrated_for, calibration_path, other_search, sureness
from support import interrupts
from support.command_line import search_asked_for
from support.devices import choose_device
from support.errors import RunError, UsageError
from training import checkpoints
from transformer_components.beam_search import Hypothesis

STDIN = Path("/dev/stdin")  # stands for standard input, and is not opened: not all systems have it


class Picture(NamedTuple):
    """An image to caption."""

    place: Path  # STDIN: it came from there
    image: torch.Tensor  # (3, H, W) uint8, what the model sees
    square: Image.Image  # the same part of the image, as large as a sheet shows it


def read_picture(place: Path, transform: EvaluationTransform) -> Picture:
    """Reads an image file, or standard input.

    Raises:
        RunError: as `load_image` does: it is missing, damaged, no image, or too large.
    """
    image = image_from(read_stdin, "standard input") if place == STDIN else load_image(place)
    square = to_pil_image(central_square(image))
    image = transform(square)
    square.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    return Picture(place, image, square)


def read_stdin() -> bytes:
    """All of standard input, which may be a socket or a pipe that stays silent: a signal ends the wait."""
    if sys.stdin is None:  # as it is where a shell closed it
        return b""
    with interrupts.left_to_the_system():
        return sys.stdin.buffer.read()


def load_chosen(options: argparse.Namespace) -> tuple[Path, Captioner, Calibration | None]:
    """The captioner that `-c` and the search options ask for, on the best device.

    Without `-c` it is that of the weights that ship.

    Returns:
        Its checkpoint, the captioner, and how sure it may be; None where no search like this was measured.

    Raises:
        UsageError: there is no such captioner, it is damaged, or `--sample` or `--out` say where it lies but
            not which it is.
    """
    paths = paths_from_options(options)
    if options.checkpoint:
        folder = paths["captioner_checkpoints"]
        path, state = checkpoints.load_named(folder, options.checkpoint, "captioner")
    elif options.sample or options.out:
        where = "--sample" if options.sample else f"--out {options.out}"
        raise UsageError(f"{where} without -c: say which of its captioners is meant, such as `-c last`")
    elif not paths["weights"].is_file():
        raise UsageError(f"{paths['weights']}: the weights that ship are not here: name a captioner with -c")
    else:
        path, state = paths["weights"], checkpoints.load(paths["weights"], "captioner")
    captioner = captioner_from_state(state, choose_device(), path, **search_asked_for(options))
    measured = calibration_path(path, other_search(options, state))
    return path, captioner, calibrations.load(measured, calibrated_for(path, captioner.options))


def describe(
    captioner: Captioner, hypotheses: list[Hypothesis], calibration: Calibration | None
) -> dict[str, Any]:
    """All that is known of an image's captions, as plain values.

    Args:
        captioner: whose hypotheses they are.
        hypotheses: best first.
        calibration: None where the confidence is not known.
    """
    best = hypotheses[0]
    result = {
        "caption": captioner.text(best),
        "score": best.score,
        "mean_log_probability": best.mean_log_probability,
        "confidence": calibration and calibration(sureness(best, captioner.options)),
    }
    if captioner.options.n_best > 1:
        result["n_best"] = [{"caption": captioner.text(h), "score": h.score} for h in hypotheses]
    return result


def as_html(result: dict[str, Any]) -> str:
    """What `describe` says, for app.py: the caption, how sure it is, and the runners-up."""
    html = f'<p class="caption">{escape(result["caption"])}</p>'
    if result["confidence"] is not None:
        html += (
            f"<p>Confidence {result['confidence']:.2f}: the share of its words that people would confirm</p>"
        )
    others = [f"<li>{escape(entry['caption'])}</li>" for entry in result.get("n_best", [])[1:]]
    return html + (f"<p>Runners-up</p><ol>{''.join(others)}</ol>" if others else "")


def explain(captioner: Captioner, picture: Picture, best: Hypothesis) -> Image.Image:
    """The sheet that shows where the captioner looked for each word of its caption."""
    return attention_sheet(picture.square, *captioner.attention(picture.image, best))


def answer(
    captioner: Captioner, calibration: Calibration | None, place: Path
) -> tuple[str, Image.Image | None]:
    """What app.py shows of an image file: HTML and the sheet, or one line that says why it cannot be read."""
    try:
        picture = read_picture(place, captioner.transform)
    except RunError as error:
        return refusal(str(error).replace(str(place), place.name))
    hypotheses = captioner.decode(picture.image[None])[0]
    return as_html(describe(captioner, hypotheses, calibration)), explain(captioner, picture, hypotheses[0])


def refusal(why: str) -> tuple[str, None]:
    """What app.py shows in place of an answer: one line, and no sheet."""
    return f'<p role="alert">{escape(why)}</p>', None
