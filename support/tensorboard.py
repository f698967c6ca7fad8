"""A run's curves, pictures and captions for TensorBoard, where `--tensorboard` asks for them.

    tensorboard --logdir checkpoints

Event files lie in `tensorboard/` beside the checkpoints.  All is written at the ends of epochs, from what the
run knows anyway, and nothing of TensorBoard is imported without the flag.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from support.errors import UsageError

TAGS = {  # what an epoch's figures are called
    "train_loss": "loss/train",
    "val_loss": "loss/val",
    "bleu4": "captions/BLEU-4",
    "distinct_captions": "captions/distinct",
    "learning_rate": "rate/base",
    "gradient_norm": "steps/gradient norm",
    "skipped_steps": "steps/skipped",
    "samples_per_second": "speed/{unit} per second",
    "unreadable_samples": "steps/unreadable samples",
}


def open_board(folder: Path, resume: Mapping[str, Any] | None) -> "Board":
    """The board of a run in `folder` that starts anew, or goes on from the checkpoint `resume`."""
    return Board(folder, resume["progress"]["epoch"] if resume else 0)


class Board:
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
