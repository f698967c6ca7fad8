"""A running mean of the weights, which evaluation and captioning use in place of the last ones.

The exponential moving average of Polyak and Juditsky (1992), with the warm-up that is usual since
Szegedy et al. (2016): early on, the mean forgets faster, so that it is never dominated by the first draw.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

WARM_UP = 10  # after t updates the decay is at most (1 + t) / (WARM_UP + t)


class WeightAverage:
    """The mean of a model's parameters over the updates of a run.

    Args:
        model: whose parameters are averaged; its buffers are not.
        decay: share of the old mean that an update keeps, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters = list(model.parameters())
        self.means = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, updates: int, taken: Tensor) -> None:
        """Takes in the current weights.

        Args:
            updates: optimizer steps queued so far, the one just made included.
            taken: bool scalar on the device; False leaves the mean as it is.
        """
        keep = min(self.decay, (1 + updates) / (WARM_UP + updates))
        differences = torch._foreach_sub(self.parameters, self.means)
        torch._foreach_mul_(differences, taken * (1 - keep))
        torch._foreach_add_(self.means, differences)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the model's weights for their mean; a second call undoes it."""
        for parameter, mean in zip(self.parameters, self.means):
            last = parameter.clone()
            parameter.copy_(mean)
            mean.copy_(last)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the mean weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def state_dict(self) -> dict[str, Tensor]:
        """The means by the parameters' names."""
        return dict(zip(self.names, self.means, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes means over.

        Raises:
            KeyError: one is missing.
        """
        for name, mean in zip(self.names, self.means, strict=True):
            mean.copy_(state[name])
