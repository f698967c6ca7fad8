"""Muon for the matrices of the layers and AdamW for all else, as one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) moves a matrix along its momentum made
orthogonal, so all its directions learn alike.  Scaled to the size of AdamW's steps (Liu et al. 2025,
arXiv:2502.16982, section 2.2) it takes the same learning rates and weight decay.
"""

from collections.abc import Callable
from typing import Any

import torch


class MuonAndAdamW(torch.optim.Optimizer):
    """Both over groups of their own; `param_groups` and `state` are of all."""

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW):
        self.parts = (muon, adamw)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
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
