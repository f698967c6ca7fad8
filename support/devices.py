"""What the device can do: which number format a forward pass uses, and the switches that make it fast."""

from contextlib import AbstractContextManager, nullcontext

import torch

from support.errors import UsageError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The format of matrix products: `auto` is bfloat16 where the GPU has it, else float16, float32 on a CPU.

    Args:
        name: `auto` or a key of PRECISIONS.
        device: where the model lies.

    Raises:
        UsageError: float16 on a CPU, which has no gradient scaling.
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if name == "float16" and device.type == "cpu":
        raise UsageError("precision float16 needs a GPU; on a CPU use float32, bfloat16 or auto")
    return PRECISIONS[name]


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager:
    """Inside, matrix products run in `precision` and reductions in float32."""
    if precision is torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=precision)


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Inside, products run in the format of their factors, also within `autocast`."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def set_fast_float32() -> None:
    """Lets float32 matrix products on a GPU use TF32: ten bits of mantissa, several times the speed."""
    torch.set_float32_matmul_precision("high")


def make_repeatable(device: torch.device) -> None:
    """Makes a CPU give the same bits each time.

    The gradient of `positions[kept]` adds many rows into one; without this, threads add them in the order in
    which they happen to come.
    """
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, and finds what is not here


def describe(device: torch.device, precision: torch.dtype) -> str:
    """The device and the precision in words, for the first line of a run."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, {str(precision).removeprefix('torch.')}"
