"""Where a run stands: what each step reports and what follows of it, and what is told of each epoch.

An epoch is a line, JSON for programs (`log.jsonl`), and with `--tensorboard` curves, images and captions:

    tensorboard --logdir checkpoints

Event files lie in `tensorboard/` beside the checkpoints.  All is written at the ends of epochs, from what the
run knows anyway, and nothing of TensorBoard is imported without the flag.
"""

import json
import math
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from support import interrupts
from support.errors import RunError, UsageError
from support.files import replacing
from training.config import TrainingConfig

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


@dataclass
class Progress:
    """Where a run stands.  What is of the current epoch is zero at its start."""

    epoch: int = 0  # epochs completed
    step: int = 0  # steps of the current epoch done; a step is one global batch
    trained: bool = False  # all steps of the current epoch are done, and its validation is to come
    updates: int = 0  # optimizer steps taken in all
    bad_steps: int = 0  # skipped in a row, as loss or gradient were not finite
    skipped: int = 0  # steps skipped in this epoch
    unreadable: int = 0  # samples left out in this epoch, as their images cannot be read
    loss_sum: float = 0.0  # of the current epoch, over `weight` patches or tokens
    weight: float = 0.0
    norm_sum: float = 0.0  # of the gradient, over the steps taken in this epoch
    seconds: float = 0.0  # spent training in the current epoch
    history: list[dict[str, Any]] = field(default_factory=list)  # one entry an epoch, as in log.jsonl

    def finish_epoch(self) -> None:
        """Counts the current epoch as completed."""
        self.epoch += 1
        self.trained = False
        self.step = self.skipped = self.unreadable = 0
        self.loss_sum = self.weight = self.norm_sum = self.seconds = 0.0


class Report(NamedTuple):
    """What a step came to; sums and counts are those of all processes together."""

    loss_sum: float  # over `weight` patches or tokens
    weight: float
    unreadable: float  # samples left out because their images cannot be read
    stop: float  # processes that have been asked to stop
    gradient_norm: float  # of the mean gradient, before clipping
    loss_scale: float  # of float16's gradients; 1 in other formats
    taken: float  # 1, or 0: nothing was updated, for want of images or of a finite loss and gradient

    @property
    def loss(self) -> float:
        return self.loss_sum / max(self.weight, 1.0)

    @property
    def empty(self) -> bool:
        """Whether none of the step's images could be read."""
        return self.weight == 0

    @property
    def overflow(self) -> bool:
        """Whether the gradient was too large for float16, which a smaller loss scale can mend."""
        return not self.taken and not self.empty and math.isfinite(self.loss_sum) and self.loss_scale > 1

    @property
    def bad(self) -> bool:
        """Whether loss or gradient were not finite for another reason."""
        return not (self.taken or self.empty or self.overflow)


class PendingReport:
    """A report on its way from the device."""

    def __init__(self, values: Tensor):
        self._values, self._arrival = values, None
        if values.is_cuda:
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrival = torch.cuda.Event()
            self._arrival.record()

    def read(self) -> Report:
        """The report; waits until the device has come as far as that."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return Report(*self._values.tolist())


class Queued(NamedTuple):
    """A step on the device whose report has not been read."""

    number: int
    image_ids: list[Tensor]  # of this process's micro-batches
    report: PendingReport

    def why_skipped(self, report: Report) -> str:
        """Why the update of this step was not taken, in words."""
        if report.empty:
            return "none of its images can be read"
        if report.overflow:
            return (
                f"its gradient is too large for float16 at a loss scale of {report.loss_scale:g}, which is "
                "halved; this is normal now and then"
            )
        ids = torch.cat(self.image_ids).tolist()
        return f"loss {report.loss}, gradient norm {report.gradient_norm}; images {ids}"


def reason_to_end(
    report: Report, progress: Progress, config: TrainingConfig, dataset: Dataset
) -> Exception | None:
    """What ends the run after a step, or None.

    Args:
        report: the step's.
        progress: of the run, this step included.
        config: how much is allowed.
        dataset: what is trained on.
    """
    allowed = int(config.max_bad_fraction * len(dataset))
    if report.unreadable and progress.unreadable > allowed:
        return RunError(
            f"{progress.unreadable} of {len(dataset)} samples have pictures that cannot be read, and "
            f"max_bad_fraction {config.max_bad_fraction} allows {allowed}; "
            f"{dataset.data.how_to_mend()} and go on with -c last, "
            "or raise max_bad_fraction in your YAML file and go on with -c last --config FILE"
        )
    if progress.bad_steps >= config.max_bad_steps:
        return RunError(
            f"{progress.bad_steps} steps in a row had a loss or gradient that is not finite, the last at "
            f"epoch {progress.epoch + 1}, step {progress.step}; edit your YAML file: a lower "
            "learning_rate, a gradient_clip or precision float32, and go on with -c last --config FILE "
            "(without --config an edited file is not read), or with an earlier checkpoint"
        )
    if report.stop:
        return interrupts.Interrupted(interrupts.received() or signal.SIGTERM)
    return None


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
        """Views of the same images, each (B, 3, H, W) uint8: a row an image, a column a view."""
        rows = torch.cat(list(views), dim=3)  # (B, 3, H, views·W)
        self.writer.add_image(tag, torch.cat(list(rows), dim=1), epoch)
        self.writer.flush()

    def captions(self, captions: Mapping[str, str], epoch: int) -> None:
        """Captions by the image's name."""
        table = ["| picture | caption |", "|---|---|"]
        table += [f"| {name} | {text.replace('|', ' ')} |" for name, text in captions.items()]
        self.writer.add_text("captions", "\n".join(table), epoch)
        self.writer.flush()
