"""The learning rate as a pure function of the optimizer step: linear warm-up, then half a cosine."""

import math

import torch
from torch import Tensor


def learning_rate_factor(
    update: Tensor,
    *,
    updates_per_epoch: int,
    warmup_epochs: float,
    total_epochs: int,
    start_factor: float,
    floor: float,
) -> Tensor:
    """What the base rate is multiplied by at one optimizer step (Loshchilov & Hutter 2017, section 3).

    It rises in a straight line from `start_factor` to 1 over the warm-up, then falls along half a cosine to
    `floor` at the end of the last epoch.  It moves at every step: once an epoch would make a staircase of it.

    Args:
        update: optimizer steps taken so far; any shape, and computed where it lies.
        updates_per_epoch: optimizer steps in an epoch.
        warmup_epochs: length of the warm-up in epochs; 0 starts at the full rate.
        total_epochs: length of the whole schedule in epochs, warm-up included.
        start_factor: the factor at the first step.
        floor: the factor after the last step.
    """
    warmup = round(warmup_epochs * updates_per_epoch)
    rising = start_factor + (1 - start_factor) * update.double() / max(1, warmup)
    done = (update.double() - warmup) / max(1, total_epochs * updates_per_epoch - warmup)
    falling = floor + (1 - floor) * (1 + torch.cos(math.pi * done.clamp(max=1.0))) / 2
    return torch.where(update < warmup, rising, falling)
