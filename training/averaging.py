"""A running mean of the weights, which evaluation and captioning use in place of the last ones.

It is an exponential moving average (Polyak and Juditsky 1992 average all alike).  Early on it forgets
faster, which is the usual warm-up, so that the initial weights soon leave it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

WARM_UP = 10  # at step t at most (1 + t) / (WARM_UP + t) of the old mean stays


class WeightAverage:
    """The mean of a model's parameters over the steps of a run.

    Args:
        model: whose parameters are averaged; its buffers are not.
        decay: share of the old mean that a step keeps, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
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
        keep = min(self.decay, (1 + self.steps) / (WARM_UP + self.steps))
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
