"""The optimizer of a run, over parameter groups with rates of their own, and their schedule.

And a running mean of the weights, which evaluation and captioning use in place of the last ones.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from training.config import TrainingConfig
from training.muon import MuonAndAdamW

Schedule = Callable[[float], float]  # from epochs done, with the share of the current one, to a factor
WARM_UP = 10  # of the mean: at step t at most (1 + t) / (WARM_UP + t) of the old one stays


def warmup_then_cosine(config: TrainingConfig) -> Schedule:
    """The schedule of a run, see `learning_rate_factor`."""
    return partial(
        learning_rate_factor,
        warmup_epochs=config.warmup_epochs,
        total_epochs=config.total_epochs,
        start_factor=config.start_factor,
        floor=config.min_learning_rate / config.learning_rate,
    )


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


def new_optimizer(
    model: nn.Module, groups: list[dict[str, Any]], config: TrainingConfig
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019); with `muon` the layers' matrices are left to Muon.

    Args:
        model: whose parameters they are.
        groups: dicts with `params`, a list of parameters, and `base_lr`, their full rate; the
            schedule's factor comes on top of it at every step.
        config: decay and betas; `decay_matrices_only` and `muon` split each group in two.
    """
    groups = [{**group, "lr": group["base_lr"]} for group in groups]
    if config.decay_matrices_only:
        spared = {id(p) for name, p in model.named_parameters() if p.dim() < 2 or name.endswith("positions")}
        whole, groups = groups, []
        for group in whole:
            free, decaying = _split([group], spared)
            groups += decaying + [{**part, "weight_decay": 0.0} for part in free]
    adamw = partial(
        torch.optim.AdamW,
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,  # one pass over the weights instead of a dozen
    )
    if not config.muon:
        return adamw(groups)
    hidden = {id(p) for name, p in model.named_parameters() if p.dim() == 2 and ".layers." in name}
    matrices, others = _split(groups, hidden)
    muon = torch.optim.Muon(matrices, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
    return MuonAndAdamW(muon, adamw(others))


def restore_moments(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Takes the moments of a checkpoint's optimizer; the settings stay those of the new configuration.

    Only `lr`, the rate of the last step taken, is the checkpoint's: the next step sets it anew.

    Args:
        optimizer: of the same groups, with settings of its own.
        saved: the `state_dict` of the checkpoint's.

    Raises:
        ValueError: its groups hold other parameters or other kinds of settings.
    """
    groups = optimizer.state_dict()["param_groups"]
    if [_form(group) for group in saved["param_groups"]] != [_form(group) for group in groups]:
        raise ValueError("its optimizer has other settings than this version's")
    groups = [{**own, "lr": float(group["lr"])} for own, group in zip(groups, saved["param_groups"])]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def _form(group: dict[str, Any]) -> dict[str, Any]:
    """A group's parameters, by number, and the types of its settings but `lr`, which was a tensor once."""
    types = {key: type(value) for key, value in group.items() if key not in ("lr", "params")}
    return types | {"params": group["params"]}


def _split(
    groups: list[dict[str, Any]], chosen: set[int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Groups of those parameters whose ids are among the chosen, and groups of the others; none is empty."""
    inside = [{**group, "params": [p for p in group["params"] if id(p) in chosen]} for group in groups]
    outside = [{**group, "params": [p for p in group["params"] if id(p) not in chosen]} for group in groups]
    return [group for group in inside if group["params"]], [group for group in outside if group["params"]]


class WeightAverage:
    """The mean of a model's parameters over the steps of a run.

    It is an exponential moving average (Polyak and Juditsky 1992 average all alike).  Unless the initial
    weights are trained ones, it forgets faster early on, which is the usual warm-up: they soon leave it.

    Args:
        model: whose parameters are averaged; its buffers are not.
        decay: share of the old mean that a step keeps, in [0, 1).
        trained: the weights that the run begins with are to stay in the mean; after t steps as `decay` ** t.
    """

    def __init__(self, model: nn.Module, decay: float, trained: bool = False):
        self.model, self.decay, self.trained = model, decay, trained
        self.steps = 0  # averaged over
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters = list(model.parameters())
        self.means = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, taken: Tensor) -> None:
        """Takes in the weights after a step.  Does not wait for the device.

        Args:
            taken: bool, 0-dimensional, on the device; False leaves the mean as it is.
        """
        self.steps += 1
        warm_up = (1 + self.steps) / (WARM_UP + self.steps)
        keep = self.decay if self.trained else min(self.decay, warm_up)
        differences = torch._foreach_sub(self.parameters, self.means)
        torch._foreach_mul_(differences, taken * (1 - keep))
        torch._foreach_add_(self.means, differences)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the mean weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, mean in zip(self.parameters, self.means):
            last = parameter.clone()
            parameter.copy_(mean)
            mean.copy_(last)

    def state_dict(self) -> dict[str, Tensor]:
        """The model's, with the means; what is tied in the model shares its memory here, too."""
        mean_of = dict(zip(self.parameters, self.means))
        return {
            name: mean_of.get(value, value) for name, value in self.model.state_dict(keep_vars=True).items()
        }

    @torch.no_grad()
    def load_state_dict(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Takes over the means of another run.

        Raises:
            KeyError: one is missing.
        """
        for name, mean in zip(self.names, self.means):
            mean.copy_(weights[name])
        self.steps = steps
