"""What a training loop calls in place of the model: compiled, and joined with the other processes.

And whether all that should learn does, seen from the gradients of one step.  A parameter without a gradient,
or with zeros only, gives no sign: the loss still falls, as the others learn.
"""

import torch
from torch import Tensor, nn

from support import distributed
from support.errors import RunError

# torch.compile's backend, by the type of device; on a CPU compiled steps are slower (LOG.md, 2026-11-27).
BACKENDS = {"cuda": "inductor"}
OLDEST_COMPILED = (7, 0)  # compute capability: Triton makes no kernels for a GPU before Volta


class Network:
    """A model in the form in which `loss_fn` gets it; for the arguments see `wrap`."""

    def __init__(
        self,
        model: nn.Module,
        compiled: bool,
        device: torch.device,
        uneven: bool,
        accumulation_steps: int = 1,
    ):
        self.model, self._how = model, (compiled, device, uneven, accumulation_steps)
        self._wrapped = model
        self._learning: tuple[bool, ...] | None = None  # which parameters did when it was wrapped

    @property
    def current(self) -> nn.Module:
        """In training the wrapped model; validation is over before the plain one would be compiled."""
        return self._wrapped if self.model.training else self.model

    def prepare(self) -> None:
        """Wraps the model for compilation and for many processes; anew if other parameters are to learn."""
        learning = tuple(parameter.requires_grad for parameter in self.model.parameters())
        if learning != self._learning:
            self._wrapped, self._learning = wrap(self.model, *self._how), learning


def wrap(
    model: nn.Module, compiled: bool, device: torch.device, uneven: bool, accumulation_steps: int = 1
) -> nn.Module:
    """The model as the training loop is to call it, until other parameters are to learn.

    Args:
        model: on `device`; those of its parameters learn that have `requires_grad`.
        compiled: whether to compile it, where the device can.
        device: where the model lies.
        uneven: whether what the model is called with are images and tokens (B, T), T differing from batch to
            batch: then one graph is made for all T and B, and not one for the first and two more later.
        accumulation_steps: passes whose gradients are added up.
    """
    network = model
    if compiled and can_compile(device):
        # Dynamo 2.11 does not look at requires_grad, and would go on with the graphs of a frozen encoder;
        # newer ones add graphs at each unfreezing until they reach their limit, and then compile no more.
        torch.compiler.reset()
        # With many processes Dynamo would cut the graph wherever a bucket of gradients is full, so that these
        # travel earlier. Where lengths are symbols that fails, and within one machine it gains little.
        torch._dynamo.config.optimize_ddp = False
        graphs = {"mode": "reduce-overhead"} if records_graphs(device, uneven, accumulation_steps) else {}
        network = torch.compile(network, backend=BACKENDS[device.type], **graphs)
        if uneven:
            network.register_forward_pre_hook(_mark_dynamic, with_kwargs=True)
    if distributed.world_size() > 1:
        network = nn.parallel.DistributedDataParallel(network)
    return network


def records_graphs(device: torch.device, uneven: bool, accumulation_steps: int) -> bool:
    """Whether compiled passes are to be recorded as CUDA graphs, so that one call launches all kernels.

    A step of the first stage, ViT-B/16 and 64 images, took 19.4 ms on an H100 with them and 34.7 ms without:
    its kernels take 13 ms, and Python the rest.  They are for one shape, so not for captions; and a second
    pass would overwrite the gradients of the first, which are not copied.
    """
    alone = distributed.world_size() == 1  # others' gradients are awaited in the backward pass
    return device.type == "cuda" and alone and not uneven and accumulation_steps == 1


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has a backend for the device."""
    too_old = device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST_COMPILED
    return device.type in BACKENDS and not too_old


def _mark_dynamic(
    _: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor], named: dict[str, torch.Tensor | None]
) -> None:
    images, tokens = inputs
    if (kept := named.get("kept")) is not None:
        torch._dynamo.maybe_mark_dynamic(kept, 0)
    torch._dynamo.maybe_mark_dynamic(images, 0)
    torch._dynamo.maybe_mark_dynamic(tokens, (0, 1))


def gradients_arrive(network: nn.Module, optimizer: torch.optim.Optimizer, counts: Tensor) -> bool:
    """Looks at the gradients before the optimizer takes them.  Waits for the device.

    Args:
        network: the model, compiled or distributed or neither.
        optimizer: of its parameters, those learn that have `requires_grad`.
        counts: 0-dimensional, whether the step says anything: it will be taken, and is over something.

    Returns:
        Whether it counts; if not, the next step is to be looked at.  The same in all processes.

    Raises:
        RunError: a parameter should learn and has no gradient, or those of a whole group are zero.  Raised in
            all processes at the same step.
    """
    names = {p: name for name, p in network.named_parameters() if p.requires_grad}
    groups = [[p for p in group["params"] if p in names] for group in optimizer.param_groups]
    groups = [group for group in groups if group]
    missing = torch.tensor([float(p.grad is None) for p in names], device=counts.device)
    found = torch.cat([counts.float()[None], missing, torch.stack([_largest(group) for group in groups])])
    counted, *found = distributed.total(found).tolist()
    if not counted:
        return False
    without = [name for name, is_missing in zip(names.values(), found) if is_missing]
    if without:
        others = f" ({len(without) - 1} more have none)" if without[1:] else ""
        raise RunError(_message(without[0], f"gets no gradient{others}"))
    for group, largest in zip(groups, found[len(names) :], strict=True):
        if not largest:
            what = f"its gradient is 0, as in all {len(group)} parameters of its group"
            raise RunError(_message(names[group[0]], what))
    return True


def _largest(parameters: list[nn.Parameter]) -> Tensor:
    """The largest entry of their gradients, by amount; 0 where they have none."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), device=parameters[0].device)
    return torch.stack(torch._foreach_norm(gradients, torch.inf)).max().float()


def _message(name: str, what: str) -> str:
    name = name.removeprefix("module.")  # of DistributedDataParallel
    plain = name.removeprefix("_orig_mod.")  # of torch.compile
    advice = "the loss does not depend on it: mend the model, and go on with -c last"
    if plain != name:
        advice = (
            "torch.compile may be at fault: set compile: false in a copy of the configuration, and go on "
            "with -c last --config COPY"
        )
    return f"{plain} should learn and {what}; {advice}"
