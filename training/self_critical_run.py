"""What a run of the self-critical stage starts with: its checkpoint, or a captioner, and keys of its own.

self_critical.py is the stage itself.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from support import distributed
from support.configuration import sets
from support.errors import UsageError
from training import checkpoints
from training.config import TrainingConfig
from training.progress import Progress
from training.run import Run, open_run

# What of the configuration the stage has its own of.
OWN_KEYS = {
    "total_epochs": "self_critical_epochs",
    "learning_rate": "self_critical_learning_rate",
    "ema_decay": "self_critical_ema_decay",  # the captioner's, if this is None
}
# What it does not heed: its rate falls from the start, all layers learn, and there are no labels.
UNHEEDED = (
    "warmup_epochs", "start_factor", "min_learning_rate", "unfreeze_start_epoch", "label_smoothing",
    "captions_per_image", "length_buckets",
)  # fmt: skip
Config = TypeVar("Config", bound=TrainingConfig)


def load_checkpoint(paths: Mapping[str, Path], wanted: str) -> tuple[Path, dict[str, Any]]:
    """Loads what `-c` names: a checkpoint of this stage to resume, or a captioner to begin with.

    A bare name or `last` is looked for in this stage's folder, then among the captioners.  Where the
    captioner was trained anew since, `last` is that one.

    Returns:
        The file, and what it holds; a captioner's as if no step of this stage were done.
    """
    folders = paths["self_critical_checkpoints"], paths["captioner_checkpoints"]
    begun = checkpoints.existing(folders[0]) if wanted == "last" else (folders[0] / wanted).is_file()
    path, state = checkpoints.load_named(folders[0 if begun else 1], wanted, "captioner")
    if wanted == "last" and (anew := trained_anew(state, folders[1])):
        if distributed.is_main():
            print(f"note: {path} began with another captioner than lies in {folders[1]} now", file=sys.stderr)
        path, state = anew
    if not state.get("self_critical"):
        if distributed.is_main():
            print(f"self-critical: begins with {path}", flush=True)
        optimizer = state["optimizer"] and {**state["optimizer"], "state": {}}
        begun_with = {"name": path.name, "sha256": checkpoints.digest(path)}
        if path.resolve().parent == folders[1].resolve():
            begun_with["run"] = run_of(state)
        state = {**state, "progress": asdict(Progress()), "optimizer": optimizer, "scaler": {}}
        state["begun_with"] = begun_with
        for part in ("last_weights", "averaged_steps"):  # it begins with the weights that were evaluated
            state.pop(part, None)
    return path, state


def trained_anew(state: Mapping[str, Any], captioners: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest captioner in this folder, if the one that a run of this stage began with was trained anew.

    Then the newest one is of another run; or, where the stage does not know its captioner's run, another file
    bears its name.
    """
    begun_with = state.get("begun_with")
    if not begun_with:
        return None
    try:
        path, newest = checkpoints.load_named(captioners, "last", "captioner")
    except UsageError:  # there is none any more, or no sound one
        return None
    if begun_with.get("run"):
        anew = run_of(newest) not in (None, begun_with["run"])
    else:
        file = captioners / begun_with["name"]
        anew = file.is_file() and checkpoints.digest(file) != begun_with["sha256"]
    return (path, newest) if anew else None


def run_of(state: Mapping[str, Any]) -> str | None:
    """What tells a captioner's run from others: a digest of its first epoch's figures, seconds included."""
    first = state["progress"]["history"][:1]
    return hashlib.sha256(json.dumps(first).encode()).hexdigest() if first else None


def stage_config(config: Config, changes: Sequence[str]) -> Config:
    """The configuration of this stage: few epochs, a small rate that falls from the start, nothing frozen.

    Args:
        config: the captioner's.
        changes: `--set`, each "key=value".

    Raises:
        UsageError: a change that this stage would not heed.
    """
    for key, own in OWN_KEYS.items():
        if any(sets(change, key) for change in changes):
            raise UsageError(f"--set {key}: the self-critical stage reads {own}; set that")
    for key in UNHEEDED:
        if any(sets(change, key) for change in changes):
            raise UsageError(f"--set {key}: it changes nothing in the self-critical stage; leave it out")
    values = {key: own for key, name in OWN_KEYS.items() if (own := getattr(config, name)) is not None}
    return replace(config, **values, warmup_epochs=0.0, min_learning_rate=0.0)


def open_stage(
    options: argparse.Namespace,
    paths: Mapping[str, Path],
    config_class: type[Config],
    require_model: Callable[[Path, dict[str, Any]], object],
    device: torch.device,
) -> Run[Config]:
    """As `open_run`, for a run of this stage.

    Raises:
        UsageError: as there; or a change that this stage would not heed, or cannot.
    """
    loaded = load_checkpoint(paths, options.checkpoint)
    own = {**paths, f"{config_class.STAGE}_checkpoints": paths["self_critical_checkpoints"]}
    run = open_run(options, own, config_class, require_model, device, loaded)
    _, state = loaded
    for key, own_key in OWN_KEYS.items():
        forgotten = state.get("self_critical") and state["config"][own_key] is not None and not options.config
        if forgotten and getattr(run.config, own_key) is None:
            raise UsageError(
                f"--set {own_key}=null: that is the captioner's {key}, which a checkpoint of this stage no "
                "longer knows; name a number"
            )
    return replace(run, config=stage_config(run.config, options.changes), epochs_key=OWN_KEYS["total_epochs"])
