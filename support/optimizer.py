"""AdamW over parameter groups with rates of their own (Loshchilov & Hutter 2019)."""

from typing import Any

import torch
from torch import nn

from support.training_config import TrainingConfig


def adamw(model: nn.Module, groups: list[dict[str, Any]], config: TrainingConfig) -> torch.optim.AdamW:
    """The optimizer of a run.

    Args:
        model: whose parameters they are.
        groups: dicts with `params`, a list of parameters, and `base_lr`, their full rate; the
            schedule's factor comes on top of it at every step.
        config: decay and betas; `decay_matrices_only` splits each group in two.
    """
    if config.decay_matrices_only:
        spared = {id(p) for name, p in model.named_parameters() if p.dim() < 2 or name.endswith("positions")}
        groups = [part for group in groups for part in _split(group, spared)]
    return torch.optim.AdamW(
        [{**group, "lr": group["base_lr"]} for group in groups],
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,  # one pass over the weights instead of a dozen
    )


def _split(group: dict[str, Any], spared: set[int]) -> list[dict[str, Any]]:
    """The group's matrices, which decay, and the rest of it, which does not; neither part is empty."""
    matrices = [p for p in group["params"] if id(p) not in spared]
    others = [p for p in group["params"] if id(p) in spared]
    parts = [{**group, "params": matrices}, {**group, "params": others, "weight_decay": 0.0}]
    return [part for part in parts if part["params"]]
