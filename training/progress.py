"""Where a run stands, and what each step adds: its report, on its way from the device, and what follows."""

import math
import signal
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from support import interrupts
from support.errors import RunError, check_command
from training.config import TrainingConfig


@dataclass
class Progress:
    """Where a run stands.  What is of the current epoch is zero at its start."""

    epoch: int = 0  # epochs completed
    step: int = 0  # steps of the current epoch done; a step is one global batch
    trained: bool = False  # all steps of the current epoch are done, and its validation is to come
    updates: int = 0  # optimizer steps taken in all
    bad_steps: int = 0  # skipped in a row, as loss or gradient were not finite
    skipped: int = 0  # steps skipped in this epoch
    unreadable: int = 0  # samples left out in this epoch, as their pictures cannot be read
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
    unreadable: float  # samples left out because their pictures cannot be read
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
            f"max_bad_fraction {config.max_bad_fraction} allows {allowed}; list them with "
            f"`{check_command(dataset.data.paths)}`, put whole files in their places and go on with -c last, "
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
