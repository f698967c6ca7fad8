"""The learning rate as a pure function of the optimizer step: linear warm-up, then half a cosine."""

import math


def learning_rate_factor(
    update: int,
    *,
    updates_per_epoch: int,
    warmup_epochs: float,
    total_epochs: int,
    start_factor: float,
    floor: float,
) -> float:
    """What the base rate is multiplied by at one optimizer step (Loshchilov & Hutter 2017, section 3).

    It rises in a straight line from `start_factor` to 1 over the warm-up, then falls along half a cosine to
    `floor` at the end of the last epoch.  It moves at every step: once an epoch would make a staircase of it.

    Args:
        update: optimizer steps taken so far.
        updates_per_epoch: optimizer steps in an epoch.
        warmup_epochs: length of the warm-up in epochs; 0 starts at the full rate.
        total_epochs: length of the whole schedule in epochs, warm-up included.
        start_factor: the factor at the first step.
        floor: the factor after the last step.
    """
    warmup = round(warmup_epochs * updates_per_epoch)
    if update < warmup:
        return start_factor + (1 - start_factor) * update / warmup
    progress = min(1.0, (update - warmup) / max(1, total_epochs * updates_per_epoch - warmup))
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2
