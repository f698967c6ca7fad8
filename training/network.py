"""What a training loop calls in place of the model: compiled, and joined with the other processes."""

import torch
from torch import nn

from support import distributed

# torch.compile's backend, by the type of device; on a CPU, compiling takes longer than it saves.
BACKENDS = {"cuda": "inductor"}
OLDEST_COMPILED = (7, 0)  # compute capability: Triton makes no kernels for a GPU before Volta


def wrap(model: nn.Module, compiled: bool, device: torch.device, uneven: bool) -> nn.Module:
    """The model as the training loop is to call it, until other parameters are to learn.

    Args:
        model: on `device`; those of its parameters learn that have `requires_grad`.
        compiled: whether to compile it, where the device can.
        device: where the model lies.
        uneven: whether what the model is called with are images and tokens (B, T), T differing from batch to
            batch: then one graph is made for all T and B, and not one for the first and two more later.
    """
    network = model
    if compiled and can_compile(device):
        # Dynamo 2.11 does not look at requires_grad, and would go on with the graphs of a frozen encoder;
        # newer ones add graphs at each unfreezing until they reach their limit, and then compile no more.
        torch.compiler.reset()
        # With many processes Dynamo would cut the graph wherever a bucket of gradients is full, so that these
        # travel earlier. Where lengths are symbols that fails, and within one machine it gains little.
        torch._dynamo.config.optimize_ddp = False
        network = torch.compile(network, backend=BACKENDS[device.type])
        if uneven:
            network.register_forward_pre_hook(_mark_dynamic)
    if distributed.world_size() > 1:
        network = nn.parallel.DistributedDataParallel(network)
    return network


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has a backend for the device."""
    too_old = device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST_COMPILED
    return device.type in BACKENDS and not too_old


def _mark_dynamic(_: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, tokens = inputs
    torch._dynamo.maybe_mark_dynamic(images, 0)
    torch._dynamo.maybe_mark_dynamic(tokens, (0, 1))
