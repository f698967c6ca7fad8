"""Makes a trained captioner ready to take away.

    python export.py -c last FOLDER                       a folder in the hub's layout, with a model card
    python export.py -c last --onnx FOLDER                the same, and ONNX for programs without torch
    python export.py -c last --encoder FOLDER             the ViT alone; -c may name an encoder's checkpoint
    python export.py -c last --checkpoint captioner.pt    a small checkpoint that only captions

All but the last need `pip install -r requirements-export.txt`.  `caption.py -c FOLDER` and
`load_captioner(FOLDER)` read the folder.  Its card quotes the metrics that evaluate_captioner.py wrote beside
the checkpoint, or those that --metrics names, and the terms of the data that --trained-on names.

The small checkpoint loads wherever the training's own does, but no training resumes from it: it has neither
optimizer nor last weights, and the weights it has are float16.  Config, figures of all epochs and the split
stay in it.
"""

import argparse
import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from captioner import captioner_from_state, require_captioner
from evaluate_captioner import metrics_file, results_name
from image_captioner import AutoEncoderShape
from model_card import TERMS, UNKNOWN, filled, front_matter, metrics_in_words, training_in_words, write_card
from onnx_export import ENCODER, STEP, export_onnx, require_onnx
from paths import paths_from_options
from reconstruction import require_auto_encoder
from support import command_line
from support.configuration import config_to_dict
from support.devices import parameters_in_words
from support.errors import UsageError
from support.files import read_json, require_place, write_json
from training import checkpoints, hub_folder

VIT = "vision transformer"  # what a folder with an encoder says it holds
OF_TRAINING = ("last_weights", "averaged_steps")  # what no captioner needs


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.Parser(description="Make a trained captioner ready to take away.")
    parser.add_argument(
        "-c", dest="checkpoint", metavar="CKPT", required=True, help="a path, a name, or `last`"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--encoder", action="store_true", help="the ViT alone")
    form.add_argument("--onnx", action="store_true", help="add encoder and decoder step as ONNX")
    form.add_argument(
        "--checkpoint", dest="as_checkpoint", action="store_true",
        help="instead of a folder, a file: a checkpoint that only captions, in float16",
    )  # fmt: skip
    parser.add_argument("place", metavar="PLACE", type=Path, help="the folder or file to write")
    parser.add_argument("--metrics", metavar="FILE", type=Path, help="what evaluate_captioner.py wrote")
    parser.add_argument("--trained-on", choices=TERMS, help="the data, whose terms the card then says")
    command_line.add_place_options(parser)
    options = parser.parse_args(arguments)
    if options.metrics and (options.encoder or options.as_checkpoint):
        raise UsageError(f"--metrics {options.metrics}: only the card of a captioner's folder quotes any")

    folder = paths_from_options(options)["captioner_checkpoints"]
    stage = None if options.encoder else "captioner"
    path, state = checkpoints.load_named(folder, options.checkpoint, stage)
    if options.as_checkpoint:
        write_checkpoint(path, state, options.place)
    else:
        hub_folder.require_safetensors()
        if options.onnx:
            require_onnx()
        require_folder(options.place, path, VIT if options.encoder else "captioner")
        if options.encoder:
            export_encoder(path, state, options)
        else:
            export_captioner(path, state, options, evaluation_of(path, state, options.metrics))
    print(f"written: {options.place}, from {path}")


def require_folder(place: Path, exported: Path, stage: str) -> None:
    """Makes the folder to export to.

    Args:
        place: the folder.
        exported: the checkpoint that is exported.
        stage: what the folder will hold.

    Raises:
        UsageError: it holds what is exported, or another kind of model, which would be lost.
    """
    require_place(place / hub_folder.WEIGHTS)
    if place.samefile(exported):
        raise UsageError(f"{place} is itself what is to be exported: name another folder")
    holds = read_json(place / hub_folder.CONFIG, {}).get("stage", stage)
    if holds != stage:
        raise UsageError(f"{place} holds a {holds!s:.40}, which a {stage} would replace: name another folder")


def write_checkpoint(path: Path, state: dict[str, Any], place: Path) -> None:
    """Writes what of a captioner's checkpoint captions, and what tells of its training; in float16."""
    require_place(place)
    if place.exists() and place.samefile(path):
        raise UsageError(f"{place} is the checkpoint itself, and training resumes from it: name another")
    # Through the model, so that weights of other sizes are refused and tied ones stay one matrix.
    model = captioner_from_state(state, torch.device("cpu"), path=path).model.half()
    kept = {part: value for part, value in state.items() if part not in OF_TRAINING}
    checkpoints.save(place, kept | {"model": model.state_dict(), "optimizer": {}, "scaler": {}})


def export_captioner(
    path: Path, state: dict[str, Any], options: argparse.Namespace, evaluation: Mapping[str, Any] | None
) -> None:
    """The whole captioner, with ONNX where it is asked for."""
    config, encoder, _ = require_captioner(path, state)
    captioner = captioner_from_state(state, torch.device("cpu"), path=path)
    hub_folder.save(options.place, state | {"model": captioner.model.state_dict()})
    for name in (ENCODER, STEP):  # of an export before: they have its weights
        (options.place / name).unlink(missing_ok=True)
    if options.onnx:
        export_onnx(captioner, options.place)
    size = str(captioner.transform.size)
    write_card(
        options.place,
        "captioner",
        front=front_matter("image-to-text", options.trained_on, evaluation),
        sizes=f"{encoder.describe()}; {config.describe()}; {parameters_in_words(captioner.model)}.",
        size=size,
        onnx=filled("onnx", size=size) if options.onnx else "",
        metrics=metrics_in_words(evaluation),
        data=TERMS.get(options.trained_on, UNKNOWN),
        **training_in_words(state),
    )


def export_encoder(path: Path, state: dict[str, Any], options: argparse.Namespace) -> None:
    """The ViT of a captioner, or of the masked autoencoder."""
    if state["stage"] == "encoder":
        shape, before = require_auto_encoder(path, state), "It was trained as a masked autoencoder."
    else:
        _, shape, _ = require_captioner(path, state)
        before = "It was trained as a masked autoencoder, unless from scratch, then as a captioner's encoder."
    prefix = "encoder."  # in both
    weights = {
        name.removeprefix(prefix): weight.float().contiguous()
        for name, weight in state["model"].items()
        if name.startswith(prefix)
    }
    hub_folder.save_weights(options.place / hub_folder.WEIGHTS, weights)
    sizes = {key: value for key, value in config_to_dict(shape, AutoEncoderShape).items() if key != "decoder"}
    write_json(options.place / hub_folder.CONFIG, {"stage": VIT, **sizes})
    write_card(
        options.place,
        "encoder",
        front=front_matter("image-feature-extraction", options.trained_on, None),
        sizes=f"{shape.describe()}.",
        size=str(shape.image_size),
        from_what=before,
        data=TERMS.get(options.trained_on, UNKNOWN),
        **training_in_words(state),
    )


def evaluation_of(checkpoint: Path, state: Mapping[str, Any], named: Path | None) -> Mapping[str, Any] | None:
    """The metrics of this checkpoint on val: those named, else those beside it; None where there are none.

    Raises:
        UsageError: the file named is of another checkpoint, or holds no metrics.
    """
    results = checkpoint.with_name(results_name(checkpoints.stem(checkpoint), "val", state.get("split_file")))
    files = [named or metrics_file(results)]
    if not named and "root" not in state:  # a checkpoint of before: the names of its results say which data
        begin, _, end = files[0].name.rpartition("_results_")
        files += sorted(checkpoint.parent.glob(f"{glob.escape(begin)}_root-*_results_{end}"))
    for evaluation in (read_json(file, {}) for file in files):
        if f"sha256 {checkpoints.digest(checkpoint)[:12]}" in str(evaluation.get("signature")):
            return evaluation
    if named:
        raise UsageError(f"{named}: no metrics of {checkpoint}: let evaluate_captioner.py write them")
    return None


if __name__ == "__main__":
    command_line.run(main)
