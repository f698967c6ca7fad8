"""One optimizer step on one global batch, without waiting for the device but at the first of an epoch.  Muon
does wait.

The passes over the micro-batches, the sum over all processes, the mean gradient, clipping and the update are
queued one after the other.  Whether loss and gradient are finite is decided on the device, too: an update
that is not taken leaves weights and moments as they were.  What the step came to travels to the host by
itself and is read when the next step is under way (training/progress.py).

What this saves: the GPU never stands idle between two steps while the host reads a loss and launches the
kernels of the next.  On an H100 that was 0 to 2 % of a step: a slow host kept the GPU waiting anyway.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from support import distributed, interrupts
from support.devices import autocast, choose_precision
from training.config import TrainingConfig
from training.network import gradients_arrive
from training.optimizer import Schedule, WeightAverage
from training.progress import PendingReport
from training.sampling import MicroBatch

# loss_fn(network, batch) -> (mean_loss, weight), both 0-dimensional and on the device
LossFunction = Callable[[nn.Module, NamedTuple], tuple[Tensor, Tensor]]

# In float16.  torch begins with 2^16, for losses that are means; ours are sums over a sample's patches or
# tokens, up to about 2^8 of them.  It doubles by itself every 2000 steps, as long as nothing overflows.
INITIAL_LOSS_SCALE = 2.0**8


def gradient_scaler(config: TrainingConfig, device: torch.device) -> torch.amp.GradScaler:
    """Keeps gradients in the range of float16; in other formats it does nothing."""
    enabled = choose_precision(config.precision, device) is torch.float16
    return torch.amp.GradScaler(device.type, init_scale=INITIAL_LOSS_SCALE, enabled=enabled)


class Stepper:
    """Takes optimizer steps.

    Args:
        loss_fn: one forward pass and its loss.
        optimizer: heeds `found_inf`; its groups carry their full rate as `base_lr`.
        scheduler: the share of that rate after so many epochs.
        scaler: of float16's gradients.
        config: the run's settings.
        device: where the model lies.
        may_be_zero: a step's whole gradient may rightly be zero, as where all that was drawn scores alike.
    """

    def __init__(
        self,
        loss_fn: LossFunction,
        optimizer: torch.optim.Optimizer,
        scheduler: Schedule,
        scaler: torch.amp.GradScaler,
        config: TrainingConfig,
        device: torch.device,
        may_be_zero: bool = False,
    ):
        self.loss_fn, self.optimizer, self.scheduler, self.scaler = loss_fn, optimizer, scheduler, scaler
        self.config, self.device, self.may_be_zero = config, device, may_be_zero
        self.precision = choose_precision(config.precision, device)
        self.average: WeightAverage | None = None  # takes in the weights after each step
        self.gradients_seen = False  # in this epoch: at its first step they are looked at
        self.updating = False  # between two steps, unless an error ended one while weights were moving

    def step(
        self,
        network: nn.Module,
        micro_batches: Sequence[NamedTuple],
        plan: Sequence[MicroBatch],
        seed: int,
        epochs: float,
    ) -> PendingReport:
        """Queues one optimizer step.

        Args:
            network: what `loss_fn` gets: the model, compiled or distributed or neither.
            micro_batches: this process's share of the global batch.
            plan: what the sampler says of each of them.
            seed: of dropout.
            epochs: done before this step, with the share of the current one: the schedule's clock.
        """
        torch.manual_seed(seed)
        sums = self._backward(network, micro_batches, plan)
        loss_sum, weight = distributed.total(sums)[:2]
        # The gradients are those of loss sums, as shares of the batch size; these make them the mean's.
        factor = self.config.batch_size * distributed.world_size() / weight.clamp(min=1.0)
        norm = self._mean_gradient(factor)
        taken = torch.isfinite(norm) & torch.isfinite(loss_sum) & (weight > 0)
        if not self.gradients_seen:
            says_something = taken & (norm > 0) if self.may_be_zero else taken
            self.gradients_seen = gradients_arrive(network, self.optimizer, counts=says_something)
        loss_scale = self.scaler.scale(torch.ones_like(loss_sum))  # before the update changes it
        self.updating = True
        self._update(taken, self.scheduler(epochs))
        if self.average:
            self.average.update(taken)
        self.updating = False
        return PendingReport(torch.cat([sums, torch.stack([norm.double(), loss_scale, taken.double()])]))

    def _backward(
        self, network: nn.Module, micro_batches: Sequence[NamedTuple], plan: Sequence[MicroBatch]
    ) -> Tensor:
        """Adds up this process's gradients; returns the first four numbers of its own report."""
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        for number, (batch, planned) in enumerate(zip(micro_batches, plan, strict=True), 1):
            with self._synchronised(network, number == len(micro_batches)):
                with autocast(self.device, self.precision):
                    loss, weight = self.loss_fn(network, to_device(batch, self.device))
                # A stand-in weighs nothing: there are fewer samples than processes, or none could be read.
                weight = weight * (planned.real and len(batch.unreadable) < len(planned.indices))
                self.scaler.scale(loss * (weight.double() / self.config.batch_size)).backward()
            sums[:2] += torch.stack([loss.detach().double() * weight, weight.double()])
            sums[2] += len(batch.unreadable) * planned.real
        sums[3] = interrupts.received() is not None
        return sums

    def _mean_gradient(self, factor: Tensor) -> Tensor:
        """Scales the summed gradients to those of the mean, clips them, and returns their norm."""
        self.scaler.unscale_(self.optimizer)
        groups = self.optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
        norm = nn.utils.get_total_norm(gradients)
        if self.config.gradient_clip is not None:
            torch._foreach_mul_(gradients, torch.clamp(self.config.gradient_clip / (norm + 1e-6), max=1.0))
        return norm

    def _update(self, taken: Tensor, rate: float) -> None:
        """Moves the weights, if the step is to be taken, at this share of the groups' rates."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * rate
        self.optimizer.found_inf = (~taken).float()  # the fused kernels heed it, as with a GradScaler
        self.optimizer.step()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    @staticmethod
    def _synchronised(network: nn.Module, last: bool) -> AbstractContextManager:
        """Gradients travel between processes only with the last micro-batch of a step."""
        if last or distributed.world_size() == 1:
            return nullcontext()
        return network.no_sync()


def to_device(batch: NamedTuple, device: torch.device) -> NamedTuple:
    """The batch with its tensors on `device`; what is no tensor stays as it is."""
    return type(batch)(
        *(item.to(device, non_blocking=True) if torch.is_tensor(item) else item for item in batch)
    )
