"""What a run tells: each epoch as a line, as JSON for programs (`log.jsonl`), and for TensorBoard.

`--tensorboard` adds curves, pictures and captions:

    tensorboard --logdir checkpoints

Event files lie in `tensorboard/` beside the checkpoints.  All is written at the ends of epochs, from what the
run knows anyway, and nothing of TensorBoard is imported without the flag.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from support.errors import UsageError
from support.files import replacing

TAGS = {  # what an epoch's figures are called
    "train_loss": "loss/train",
    "val_loss": "loss/val",
    "bleu4": "captions/BLEU-4",
    "cider": "captions/CIDEr",
    "distinct_captions": "captions/distinct",
    "train_reward": "reward/train",
    "val_reward": "reward/val",
    "distinct_samples": "samples/distinct",
    "ended_samples": "samples/ended",
    "learning_rate": "rate/base",
    "gradient_norm": "steps/gradient norm",
    "skipped_steps": "steps/skipped",
    "samples_per_second": "speed/{unit} per second",
    "unreadable_samples": "steps/unreadable samples",
}


def write_log(path: Path, history: list[dict[str, Any]]) -> None:
    """Writes the history, one JSON object a line.

    The whole file is written anew and renamed into place: after a resume from an earlier checkpoint it holds
    that run's epochs and no others.
    """
    with replacing(path) as temporary:
        temporary.write_text(
            "".join(json.dumps(_finite(entry)) + "\n" for entry in history), encoding="utf-8"
        )


def _finite(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry with null for NaN and infinity, which JSON does not have."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in entry.items()
    }


def epoch_line(entry: dict[str, Any], total_epochs: int, unit: str) -> str:
    """One epoch: `epoch  3/12 | train 1.2345 | val 1.3456 | BLEU-4 61.20 | ... | 245 pairs/s, 80 s`.

    Args:
        entry: the epoch's, as the log has it.
        total_epochs: of the schedule.
        unit: what a sample is, "images" or "pairs" of an image and a caption.
    """
    parts = [f"epoch {entry['epoch']:3d}/{total_epochs}"]
    if "val_reward" in entry:
        parts.append(f"reward train {entry['train_reward']:.4f}, val {entry['val_reward']:.4f}")
        parts.append(f"{100 * entry['distinct_samples']:.0f} % of samples distinct")
        parts.append(f"{100 * entry['ended_samples']:.0f} % ended")
    else:
        parts.append(f"train {entry['train_loss']:.4f}")
        parts.append(f"val {entry['val_loss']:.4f}")
    if entry.get("bleu4") is not None:
        parts.append(f"BLEU-4 {100 * entry['bleu4']:.2f}")
    if entry.get("cider") is not None:
        parts.append(f"CIDEr {100 * entry['cider']:.2f}")
    parts.append(f"lr {entry['learning_rate']:.1e}")
    parts.append(f"{entry['samples_per_second']:.0f} {unit}/s, {entry['seconds']:.0f} s")
    if entry["skipped_steps"]:
        parts.append(f"{entry['skipped_steps']} steps skipped")
    if entry["unreadable_samples"]:
        parts.append(f"{entry['unreadable_samples']} samples unreadable")
    return " | ".join(parts)


def open_board(folder: Path, resume: Mapping[str, Any] | None) -> "TensorBoardLog":
    """The board of a run in `folder` that starts anew, or goes on from the checkpoint `resume`."""
    return TensorBoardLog(folder, resume["progress"]["epoch"] if resume else 0)


class TensorBoardLog:
    """Writes one run's event files; its clock is the number of epochs completed.

    Args:
        folder: of the run's checkpoints.
        epochs: completed so far; what an earlier run wrote of later ones is taken out of the curves.

    Raises:
        UsageError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, epochs: int = 0):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                "--tensorboard: TensorBoard is not installed (pip install tensorboard); the run is the same "
                "without the flag"
            ) from error
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs + 1)

    def figures(
        self, entry: Mapping[str, Any], optimizer: torch.optim.Optimizer, unit: str = "images"
    ) -> None:
        """One epoch's figures, and the rate of each group of parameters that learns.

        Args:
            entry: the epoch's, as the log has it.
            optimizer: of the run.
            unit: what a sample is, "images" or "pairs" of an image and a caption.
        """
        epoch = entry["epoch"]
        for key, tag in TAGS.items():
            value = entry.get(key)
            if value is not None and math.isfinite(value):
                self.writer.add_scalar(tag.format(unit=unit), value, epoch)
        for number, group in enumerate(optimizer.param_groups):
            if any(parameter.requires_grad for parameter in group["params"]):
                self.writer.add_scalar(f"rate/group {number}", float(group["lr"]), epoch)
        self.writer.flush()

    def pictures(self, tag: str, views: Iterable[torch.Tensor], epoch: int) -> None:
        """Views of the same pictures, each (B, 3, H, W) uint8: a row a picture, a column a view."""
        rows = torch.cat(list(views), dim=3)  # (B, 3, H, views·W)
        self.writer.add_image(tag, torch.cat(list(rows), dim=1), epoch)
        self.writer.flush()

    def captions(self, captions: Mapping[str, str], epoch: int) -> None:
        """Captions by the picture's name."""
        table = ["| picture | caption |", "|---|---|"]
        table += [f"| {name} | {text.replace('|', ' ')} |" for name, text in captions.items()]
        self.writer.add_text("captions", "\n".join(table), epoch)
        self.writer.flush()
