"""Muon for the matrices of the layers and AdamW for all else, as one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) moves a matrix along its momentum made
orthogonal, so all its directions learn alike.  Scaled to the size of AdamW's steps (Liu et al. 2025,
arXiv:2502.16982, section 2.2) it takes the same learning rates and weight decay.
"""

from collections.abc import Callable
from typing import Any

import torch


class MuonAndAdamW(torch.optim.Optimizer):
    """Both over groups of their own; `param_groups` and `state` are of all.

    Args:
        matrices: groups for Muon, dicts with `params`, all of two dimensions, and settings that may differ.
        others: groups for AdamW.
        weight_decay: where a group has none of its own.
        beta2: of AdamW.
    """

    def __init__(
        self, matrices: list[dict[str, Any]], others: list[dict[str, Any]], weight_decay: float, beta2: float
    ):
        self.parts = (
            torch.optim.Muon(matrices, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, betas=(0.9, beta2), weight_decay=weight_decay, fused=True),
        )
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # which may bring other dicts: those of a checkpoint
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """A step of both, or of neither if `found_inf` is set and not 0: on a GPU that is waited for."""
        found_inf = getattr(self, "found_inf", None)
        if found_inf is None or not found_inf:
            for part in self.parts:
                part.step()

    def _share(self) -> None:
        first = len(self.parts[0].param_groups)
        for part, groups in zip(self.parts, (self.param_groups[:first], self.param_groups[first:])):
            part.state, part.param_groups = self.state, groups
