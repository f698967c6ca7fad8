"""Where a run stands: what a checkpoint holds beside weights and moments."""

from dataclasses import dataclass, field
from typing import Any


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
