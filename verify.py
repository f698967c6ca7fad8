"""Checks that the weights that ship caption here as they did where their figures were taken.

    python verify.py            or `make verify`: under a minute on two CPU cores
    python verify.py --write    takes the figures anew, for new weights or images

The images are those of weights/examples/ and a few of the drawn sample, drawn anew.  In float32 machines
differ in little but the order of their sums, so words and metrics must be the same.  Where captions are
written in bfloat16 or float16, near ties may fall otherwise, so of those the log-probability is compared.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from captioner import Captioner, captioner_from_state
from image_transforms import load_image
from paths import default_paths, locations
from sample_coco import draw_picture
from scoring.metrics import score
from support import command_line
from support.devices import choose_device, describe
from support.errors import RunError, UsageError
from support.files import read_json, write_json
from training import checkpoints

DRAWN = 8  # images of the sample
COLOR_TOLERANCE = 0.5  # of 255, in an image's mean: JPEG decoders and resizes round differently
TOLERANCES = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}  # of a log-probability
Measured = dict[str, dict[str, Any]]  # of each image its color, its caption, how likely the model finds that


def read_images(captioner: Captioner, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    """By name: each image as the model takes it, (3, H, W) uint8, and the captions to compare with."""
    credits = json.loads((folder / "credits.json").read_text(encoding="utf-8"))
    references = {folder / entry["file"]: entry["captions"] for entry in credits}
    with TemporaryDirectory() as drawn:
        where = locations(drawn)
        where["val_images"].mkdir()
        for index in range(DRAWN):
            entry, captions = draw_picture(where, 0, ("val", index))
            references[where["val_images"] / entry["file_name"]] = captions
        images = {path.name: captioner.transform(load_image(path)) for path in references}
    return images, {path.name: captions for path, captions in references.items()}


def measure(captioner: Captioner, images: dict[str, torch.Tensor]) -> Measured:
    """Captions all images."""
    found = captioner.decode(torch.stack(list(images.values())))
    return {
        name: {
            "color": [round(value, 2) for value in image.float().mean(dim=(1, 2)).tolist()],
            "caption": captioner.text(best),
            "mean_log_probability": round(best.mean_log_probability, 5),
        }
        for (name, image), (best, *_) in zip(images.items(), found)
    }


def differences(now: Measured, then: Measured, precision: torch.dtype) -> Iterator[str]:
    """What differs by more than rounding explains, a line each."""
    how = str(precision).removeprefix("torch.")
    for name, here in now.items():
        filed = then[name]
        if precision is torch.float32:
            if max(abs(a - b) for a, b in zip(here["color"], filed["color"])) > COLOR_TOLERANCE:
                yield f"{name}: read with the mean color {here['color']}, on file {filed['color']}"
            if here["caption"] != filed["caption"]:
                yield f"{name}: {here['caption']!r}, on file {filed['caption']!r}"
        off = abs(here["mean_log_probability"] - filed["mean_log_probability"])
        if not off <= TOLERANCES[precision]:
            yield f"{name}: log-probability off by {off:.4f} in {how}, {TOLERANCES[precision]} is allowed"


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="take the figures anew")
    options = parser.parse_args(arguments)
    weights, file = (default_paths()[key] for key in ("weights", "verification"))
    state = checkpoints.load(weights, "captioner")
    # By the search alone: where a sample falls otherwise, a consensus may choose another caption.
    captioner = captioner_from_state(state, choose_device(), weights, consensus_samples=0)
    images, references = read_images(captioner, default_paths()["example_images"])
    found = measure(replace(captioner, precision=torch.float32), images)
    metrics = score(references, {name: entry["caption"] for name, entry in found.items()})
    now = {
        "sha256": checkpoints.digest(weights),
        "taken_with": f"torch {torch.__version__}, {describe(captioner.device, torch.float32)}",
        "metrics": {metric: round(value, 6) for metric, value in metrics.items()},
        "images": found,
    }
    if options.write:
        write_json(file, now)
        return print(f"{file}: the figures of {len(images)} images")

    then = read_json(file, {})
    if then.get("images", {}).keys() != images.keys():
        raise UsageError(f"{file} has no figures of these images: `python verify.py --write` takes them")
    whole = [key for key in ("sha256", "metrics") if now[key] != then[key]]
    different = [f"{key} {now[key]}, on file {then[key]}" for key in whole]
    different += differences(found, then["images"], torch.float32)
    if captioner.precision is not torch.float32:
        different += differences(measure(captioner, images), then["images"], captioner.precision)
    if different:
        print("\n".join(different))
        here, filed = now["taken_with"], then["taken_with"]
        raise RunError(f"{len(different)} differences; here {here}, on file {filed}")
    print(f"the environment is right: {len(images)} images captioned and scored as on file")


if __name__ == "__main__":
    command_line.run(main)
