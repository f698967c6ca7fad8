"""Where every file lies: the dict `paths`, and `locations`, which makes such a dict for another root.

No other module spells out where data and checkpoints lie.  `paths["val_images"]` is the folder of the
validation images, `paths["tokenizer"]` the trained tokenizer, and so on; `sorted(paths)` lists them all.
"""

import argparse
import os
from pathlib import Path

HERE = Path(__file__).resolve().parent
try:  # as seen from where the command was called: "." at the root of the repository
    ROOT = Path(os.path.relpath(HERE))
except ValueError:  # from another drive of a Windows machine
    ROOT = HERE

SPLITS = ("train", "val", "test", "unlabeled")
CAPTIONED_SPLITS = ("train", "val")
PROCESSED_SPLITS = ("train", "val", "unlabeled")
SAMPLE, SAMPLE_RECIPE = ROOT / "data" / "sample", ROOT / "recipes" / "sample"


def locations(
    data: str | Path = ROOT / "data" / "coco",
    checkpoints: str | Path = ROOT / "checkpoints",
    recipe: str | Path = ROOT,
) -> dict[str, Path]:
    """Every file location for one data set, one folder of checkpoints and one recipe.

    Args:
        data: root of a data set in COCO's layout (`train2017/`, `annotations/`, ...).
        checkpoints: root of the checkpoints of both stages.
        recipe: folder that holds `mae_config.yaml` and `captioner_config.yaml`.
    """
    data, checkpoints, recipe = Path(data), Path(checkpoints), Path(recipe)
    processed = data / "processed"
    found = {
        "data": data,
        "downloads": data / "downloads",
        "annotations": data / "annotations",
        "processed": processed,
        "record": processed / "record.json",
        "tokenizer": processed / "tokenizer.json",
        "split_file": data / "splits.json",  # these two in a root that `process_coco.py --own` made
        "file_names": data / "file_names.json",
        "encoder_checkpoints": checkpoints / "encoder",
        "captioner_checkpoints": checkpoints / "captioner",
        "self_critical_checkpoints": checkpoints / "self_critical",
        "process_coco": ROOT / "process_coco.py",
        "weights": ROOT / "weights" / "captioner.pt",  # these four ship with the code, whatever the data
        "verification": ROOT / "weights" / "verify.json",
        "example_images": ROOT / "weights" / "examples",
        "records": ROOT / "records",  # figures as runs left them: sample, photographs, benchmarks
        "sample": SAMPLE,
        "sample_recipe": SAMPLE_RECIPE,
        "sample_stamp": data / "sample.json",
        "mae_config": recipe / "mae_config.yaml",
        "captioner_config": recipe / "captioner_config.yaml",
    }
    for split in SPLITS:
        found[f"{split}_images"] = data / f"{split}2017"
    for split in CAPTIONED_SPLITS:
        found[f"{split}_captions"] = data / "annotations" / f"captions_{split}2017.json"
        found[f"{split}_tokenized"] = processed / f"{split}_tokenized.pt"
        found[f"{split}_im2capts"] = processed / f"{split}_im2capts.pt"
    for split in PROCESSED_SPLITS:
        found[f"{split}_image_ids"] = processed / f"{split}_image_ids.pt"
    return found


def coco_root() -> Path:
    """The root of COCO's data: what `COCO_ROOT` names, if it names anything, else `data/coco`."""
    named = os.environ.get("COCO_ROOT", "")
    return Path(os.path.expanduser(named)) if named.strip() else ROOT / "data" / "coco"


def default_paths(
    sample: bool | None = False, data: str | Path | None = None, out: str | Path | None = None
) -> dict[str, Path]:
    """Every file location of COCO, or of the drawn sample data set; `data` and `out` name other roots."""
    usual_data = SAMPLE if sample else coco_root()
    usual_out = ROOT / "checkpoints" / "sample" if sample else ROOT / "checkpoints"
    return locations(data or usual_data, out or usual_out, SAMPLE_RECIPE if sample else ROOT)


def paths_from_options(options: argparse.Namespace) -> dict[str, Path]:
    """Every file location for a script's options `--sample`, `--data` and `--out`, those that it has."""
    return default_paths(*(getattr(options, name, None) for name in ("sample", "data", "out")))


paths = locations(coco_root())
