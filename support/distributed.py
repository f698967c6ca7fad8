"""One process or many: the few facts and sums that a training script needs under `torchrun`.

Started plainly, everything here is a no-op and `world_size()` is 1, so the scripts have one code path.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from support import interrupts, launcher
from support.devices import choose_device
from support.errors import RunError, UsageError

TIMEOUT = timedelta(minutes=10)  # a rank that waits longer than this for another one fails instead of hanging


def rank() -> int:
    """This process's number, from 0; 0 in a plain run."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes take part; 1 in a plain run."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def local_world_size() -> int:
    """How many of them run on this machine, as `torchrun` says; 1 in a plain run."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if distributed.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that writes files and prints."""
    return rank() == 0


@contextmanager
def process_group(training: bool = False) -> Iterator[torch.device]:
    """Joins the group that `torchrun` set up, if it did; leaves it at the end.  Yields the device to use.

    Args:
        training: whether the device must be able to train.

    Raises:
        UsageError: what the environment says of this process cannot be.
        RunError: the other processes cannot be found, or one of them ended before its time.
    """
    place = launcher.place(os.environ)
    gpus = torch.cuda.device_count()
    if torch.cuda.is_available() and place.local_rank >= gpus:
        raise UsageError(
            f"LOCAL_RANK={place.local_rank}, but this process sees {gpus} GPUs: start one for each, "
            f"with torchrun --nproc_per_node={gpus}"
        )
    device = choose_device(training, place.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if place.world_size > 1:
        _join("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    except RuntimeError as error:
        if not is_broken_connection(error):
            raise
        interrupts.check()
        raise RunError("another process of this run ended before its time: its message says why") from error
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _join(backend: str) -> None:
    """Waits until all processes of the run are here.

    One that has died never comes.  Then a signal must end this wait, in which no Python code, and so no
    handler, runs.
    """
    with interrupts.left_to_the_system():
        try:
            distributed.init_process_group(backend, timeout=TIMEOUT)
        except distributed.DistError as error:
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            reason = str(error).partition("\n")[0]
            raise RunError(f"the processes of this run did not meet at {where}: {reason:.200}") from error


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum of `values` over all processes, in every process.  Works in place."""
    if world_size() > 1:
        distributed.all_reduce(values)
    return values


def gathered(item: object) -> list:
    """Every process's `item`, in the order of ranks, in every process."""
    if world_size() == 1:
        return [item]
    items: list = [None] * world_size()
    distributed.all_gather_object(items, item)
    return items


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if world_size() > 1:
        distributed.barrier()


def is_broken_connection(error: BaseException | None) -> bool:
    """Whether the error says that another process of the group has gone away.

    Over gloo it comes at once.  Over NCCL it does not: the GPU waits for the dead process, and this one for
    the GPU, until torchrun kills it.  What was trained since the last checkpoint is lost then.
    """
    broken = isinstance(error, distributed.DistError) or "gloo/transport" in str(error)
    return world_size() > 1 and isinstance(error, RuntimeError) and broken
