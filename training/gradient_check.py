"""Whether all that should learn does, seen from the gradients of one step.

A parameter without a gradient, or with zeros only, gives no sign: the loss still falls, as the others learn.
"""

import torch
from torch import Tensor, nn

from support import distributed
from support.errors import RunError


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
