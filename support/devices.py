"""Which device to use and what it can do: the number format of a forward pass, and what makes it fast.

An Apple GPU ("mps") captions and evaluates.  It has no float64, in which a training step adds up its losses,
so training takes the CPU there.
"""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import nn

from support.errors import UsageError

Precision = Literal["auto", "float32", "bfloat16", "float16"]  # auto: bfloat16 where it is fast
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(training: bool = False, local_rank: int = 0) -> torch.device:
    """An NVIDIA or AMD GPU, else an Apple GPU, else the CPU.

    Args:
        training: also backward passes and updates, which an Apple GPU cannot do here; a note then says so.
        local_rank: number of this process among those on this machine; each takes a GPU of its own.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank)
    if not torch.backends.mps.is_available():
        return torch.device("cpu")
    if not training:
        return torch.device("mps")
    if local_rank == 0:
        print("note: training runs on the CPU: an Apple GPU has no float64", file=sys.stderr, flush=True)
    return torch.device("cpu")


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The format of matrix products in training, and by default in decoding.

    `auto` is bfloat16 where the device is fast in it.  Where it is not, that is float16 on a GPU and float32
    elsewhere.

    Args:
        name: `auto` or a key of PRECISIONS.
        device: where the model lies.

    Raises:
        UsageError: float16 on a CPU, which has no gradient scaling.
    """
    if name == "auto":
        if device.type == "cuda":
            has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if has_bfloat16 else torch.float16
        return torch.bfloat16 if device.type == "cpu" and cpu_is_fast_in_bfloat16() else torch.float32
    if name == "float16" and device.type == "cpu":
        raise UsageError("precision float16 needs a GPU; on a CPU use float32, bfloat16 or auto")
    return PRECISIONS[name]


def cpu_is_fast_in_bfloat16() -> bool:
    """Whether a CPU multiplies bfloat16 faster than float32: Intel's with AMX, AMD's with avx512_bf16.

    On Intel's, the instructions of avx512_bf16 alone are not worth it.  GFLOP/s of a product of 2048²
    matrices on two cores, torch 2.15:

                                         float32   bfloat16
        Xeon with AMX                        350       2340
        the same, AMX masked                 350        209
        EPYC (Zen 5), avx512_bf16            220        943

    Zen 4 has these instructions, too, and has not been measured.
    """
    can = torch.cpu.get_capabilities()
    is_amd = str(can.get("cpu_name", "")).startswith("AMD")
    return bool(can.get("amx_bf16") or (is_amd and can.get("avx512_bf16")))


def decoding_precision(name: str, device: torch.device) -> torch.dtype:
    """The format of matrix products where a trained model is only used: as in training, or float32.

    The weights are float32 in any case, so float32 is right anywhere.  It is taken for float16 on a CPU, and
    for all on an Apple GPU, whose half precision depends on the version of macOS.

    Args: as for `choose_precision`.
    """
    if device.type == "mps" or (name == "float16" and device.type == "cpu"):
        return torch.float32
    return choose_precision(name, device)


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager:
    """Inside, matrix products run in `precision`; reductions in float32 on a GPU, as their input on a CPU."""
    if precision is torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=precision)


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Inside, products run in the format of their factors, also within `autocast`."""
    # Where the answer is known it is not asked for: Dynamo 2.11 cannot follow the question.
    if device.type in ("cuda", "cpu") or torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


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
    elif device.type == "mps":
        name = "Apple GPU"
    else:
        threads = torch.get_num_threads()
        name = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    return f"{name}, {str(precision).removeprefix('torch.')}"


def parameters_in_words(model: nn.Module) -> str:
    """How many parameters a model has: "112 M parameters"."""
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.3g} M parameters"
