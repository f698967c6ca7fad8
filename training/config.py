"""The settings that both stages share, and where a run takes them from."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from support.configuration import (
    at_least,
    bounded,
    config_from_dict,
    config_to_dict,
    load_config,
    positive,
    sets,
)
from support.devices import Precision
from support.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What the training of either stage needs to know."""

    STAGE: ClassVar[str]  # "encoder" or "captioner"
    FILE: ClassVar[str]  # the default configuration, a key of `paths`
    SHAPE: ClassVar[type]  # the class of the model's sizes, which a resume must keep
    # Keys that a resume must keep, too: what there is to learn, and the optimizer's groups, follow from them.
    KEPT_KEYS: ClassVar[tuple[str, ...]] = ("decay_matrices_only", "muon")
    # Keys that a resume must keep until the epoch ends: which samples a step of it takes follows from them.
    EPOCH_KEYS: ClassVar[tuple[str, ...]] = ("seed", "batch_size")

    seed: int = at_least(0)  # of initial weights, order, crops, flips, masks and dropout
    batch_size: int = bounded(at_least=1, at_most=1_000_000)  # per optimizer step, over all processes
    # Forward and backward passes per optimizer step: more saves memory.
    accumulation_steps: int = bounded(at_least=1, at_most=1000)
    total_epochs: int = positive()  # length of the learning-rate schedule, warm-up included
    warmup_epochs: float = at_least(0)  # linear warm-up from learning_rate * start_factor
    learning_rate: float = positive()  # at the end of the warm-up
    start_factor: float = bounded(above=0, at_most=1)
    min_learning_rate: float = at_least(0)  # at the end of the cosine
    weight_decay: float = at_least(0)
    decay_matrices_only: bool  # spare biases, norms and positions: they map nothing
    beta2: float = bounded(above=0, below=1)  # AdamW's decay of the squared gradient's mean
    muon: bool  # the layers' matrices learn by Muon, all else by AdamW
    gradient_clip: float | None = positive()  # largest norm of the gradient; null does not clip
    # Share of the old mean that a step keeps in the running mean of the weights; 0 keeps no mean.
    ema_decay: float = bounded(at_least=0, below=1)
    precision: Precision
    compile: bool  # torch.compile, on a GPU only
    crop_scale: tuple[float, ...] = bounded(above=0, at_most=1)  # area of the random crop: least and most
    num_workers: int = at_least(0)  # loader processes of each rank; 0: load in the main process
    cache_images: bool  # decode them once, into a GPU's memory or shared memory; see image_cache.py
    loading_timeout: float = positive()  # seconds without any sample before the run aborts
    keep_checkpoints: int = positive()  # newest ones kept; the best one is always kept
    checkpoint_minutes: float = positive()  # minutes between checkpoints within an epoch
    max_bad_steps: int = (
        positive()
    )  # consecutive steps with a non-finite loss or gradient before the run aborts
    max_bad_fraction: float = bounded(
        at_least=0, below=1
    )  # abort when more than this share of an epoch's images cannot be read

    def __post_init__(self) -> None:
        if len(self.crop_scale) != 2 or self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(
                f"crop_scale: expected two numbers, the lesser first; got {list(self.crop_scale)}"
            )
        if self.warmup_epochs >= self.total_epochs:
            raise ValueError(
                f"warmup_epochs: {self.warmup_epochs} leaves nothing of total_epochs {self.total_epochs}"
            )
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate: {self.min_learning_rate} is above learning_rate {self.learning_rate}"
            )


Config = TypeVar("Config", bound=TrainingConfig)


def run_config(
    config_class: type[Config],
    named: Path | None,
    default: Path,
    resume: dict[str, Any] | None,
    changes: Sequence[str] = (),
) -> Config:
    """The configuration of a run: the file named, else the checkpoint it resumes, else the default.

    Args:
        config_class: what the file must fit.
        named: `--config`, if given; on a resume it may change how to train, but not the model.
        default: the file for a run that starts anew.
        resume: the checkpoint to go on from, or None.
        changes: `--set`, each "key=value": replaces a value, and may change what `named` may.

    Raises:
        UsageError: the file does not fit the class, or changes a key that the checkpoint does not allow.
    """
    if resume is None:
        return load_config(named or default, config_class, changes)
    source = "the checkpoint's configuration"
    saved = config_from_dict(resume["config"], config_class, source)
    if named:
        config = load_config(named, config_class, changes)
    else:
        config = config_from_dict(config_to_dict(saved), config_class, source, changes)
    sizes = [field.name for field in fields(config_class.SHAPE)]
    for key, was, now in _differences(config_to_dict(saved), config_to_dict(config)):
        section = key.partition(".")[0]
        said = f"--set {key}" if any(sets(change, key) for change in changes) else f"{named}: {key}"
        if section in (*sizes, *config_class.KEPT_KEYS):
            raise UsageError(
                f"{said}: the checkpoint was trained with {was}, this says {now}; keep it, or start a new run"
            )
        if section in config_class.EPOCH_KEYS and in_mid_epoch(resume):
            raise UsageError(
                f"{said}: the checkpoint is in the middle of an epoch with {was}, this says {now}; complete "
                f"that epoch first, with --epochs {resume['progress']['epoch'] + 1} and without --config and "
                "--set, or resume a checkpoint of the end of an epoch"
            )
    return config


def in_mid_epoch(checkpoint: dict[str, Any]) -> bool:
    """Whether some, but not all steps of the checkpoint's current epoch are done."""
    progress = checkpoint["progress"]
    samples_seen = progress["step"] * checkpoint["config"]["batch_size"]
    return 0 < samples_seen < checkpoint["samples"] and not progress.get("trained")


def _differences(old: dict[str, Any], new: dict[str, Any], above: str = "") -> Iterator[tuple[str, str, str]]:
    """What two configurations of one class differ in: (dotted key, old value, new value), as in YAML."""
    for key, value in old.items():
        if isinstance(value, dict):
            yield from _differences(value, new[key], f"{above}{key}.")
        elif value != new[key]:
            yield f"{above}{key}", json.dumps(value), json.dumps(new[key])
