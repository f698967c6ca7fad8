"""The learning rate as a pure function of the epochs done: linear warm-up, then half a cosine."""

import math


def learning_rate_factor(
    epochs: float, *, warmup_epochs: float, total_epochs: int, start_factor: float, floor: float
) -> float:
    """What the base rate is multiplied by at one moment of a run (Loshchilov & Hutter 2017, section 3).

    It rises in a straight line from `start_factor` to 1 over the warm-up, then falls along half a cosine to
    `floor` at the end of the last epoch.  It moves at every step: once an epoch would make a staircase of it.
    Its clock counts epochs, not steps, so that another batch size or another amount of data from some epoch
    on leaves the curve as it is.

    Args:
        epochs: done so far, with the share of the current one.
        warmup_epochs: length of the warm-up; 0 starts at the full rate.
        total_epochs: length of the whole schedule, warm-up included.
        start_factor: the factor at the first step.
        floor: the factor after the last step.
    """
    if epochs < warmup_epochs:
        return start_factor + (1 - start_factor) * epochs / warmup_epochs
    done = min(1.0, (epochs - warmup_epochs) / (total_epochs - warmup_epochs))
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
