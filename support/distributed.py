"""One process or many: the few facts and sums that a training script needs under `torchrun`.

Started plainly, everything here is a no-op and `world_size()` is 1, so the scripts have one code path.

`torchrun` leaves in the environment which process of a run this is.  Other programs that start processes say
less, or nothing: then each process would be a whole run, all in one folder, so that is refused.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import distributed

from support import interrupts
from support.devices import choose_device
from support.errors import RunError, UsageError

# What starts many processes, and the variable in which each of them finds how many there are.  SLURM_NTASKS
# will not do: a batch script, which runs once, has it, too.
TASKS = {"srun": "SLURM_STEP_NUM_TASKS", "mpirun": "OMPI_COMM_WORLD_SIZE", "mpiexec": "PMI_SIZE"}


class Place(NamedTuple):
    """A process among those of its run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # among the processes on this machine


def place_in_run(environment: Mapping[str, str]) -> Place:
    """This process's place; that of a plain run where nothing speaks of more processes.

    Raises:
        UsageError: the variables contradict each other or lack something; or this is one of many processes
            that do not know of one another.
    """
    given = {name: value for name, value in environment.items() if value}
    world_size = _number(given, "WORLD_SIZE", default=1, least=1)
    rank = _number(given, "RANK")
    local_rank = _number(given, "LOCAL_RANK")
    if "RANK" not in given:
        _refuse_tasks(given)
        if world_size > 1:
            raise UsageError(f"WORLD_SIZE={world_size} is set, but not RANK: {_remedy(world_size)}")
    if rank >= world_size:
        of = f"WORLD_SIZE={world_size}" if "WORLD_SIZE" in given else "no WORLD_SIZE"
        raise UsageError(f"RANK={rank} with {of}: it must be below WORLD_SIZE; {_remedy(world_size)}")
    if world_size > 1:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in given]
        if missing:
            raise UsageError(
                f"RANK={rank} and WORLD_SIZE={world_size} are set, but not {' and '.join(missing)}: "
                f"{_remedy(world_size)}"
            )
        _number(given, "MASTER_PORT", least=1, most=65535)
    return Place(rank, world_size, local_rank)


def _refuse_tasks(given: Mapping[str, str]) -> None:
    for starter, name in TASKS.items():
        tasks = given.get(name, "1")
        if tasks.isdecimal() and int(tasks) > 1:
            raise UsageError(
                f"{starter} started {tasks} processes ({name}), and each would be a whole run: let torchrun "
                f"start them, on one machine with `{starter} -n 1 {_torchrun(int(tasks))}`"
            )


def _number(
    given: Mapping[str, str], name: str, default: int = 0, least: int = 0, most: int = 999_999
) -> int:
    if name not in given:
        return default
    text = given[name]
    if not (text.isascii() and text.isdecimal() and len(text) <= 9) or not least <= int(text) <= most:
        raise UsageError(f"{name}={text:.40} is not a whole number from {least} to {most:,}: {_remedy(2)}")
    return int(text)


def _remedy(world_size: int) -> str:
    return (
        f"start with `{_torchrun(max(world_size, 2))}`, or run one process alone after "
        "`unset RANK WORLD_SIZE LOCAL_RANK`"
    )


def _torchrun(processes: int) -> str:
    return f"torchrun --nproc_per_node={processes} {Path(sys.argv[0]).name}"


TIMEOUT = timedelta(minutes=10)  # a rank that waits longer than this for another one fails instead of hanging
LONG_WORK = timedelta(days=1)  # the same where what it waits for may take hours
T = TypeVar("T")


def rank() -> int:
    """This process's number, from 0; 0 in a plain run."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes take part; 1 in a plain run."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def local_world_size() -> int:
    """How many of them run on this machine, as `torchrun` says; 1 in a plain run."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if distributed.is_initialized() else 1


def local_rank() -> int:
    """This process's number among those on this machine, from 0; 0 in a plain run."""
    return place_in_run(os.environ).local_rank if distributed.is_initialized() else 0


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
    place = place_in_run(os.environ)
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


def gathered(item: object, group: distributed.ProcessGroup | None = None) -> list:
    """Every process's `item`, in the order of ranks, in every process; `group`: one of all of them."""
    if world_size() == 1:
        return [item]
    items: list = [None] * world_size()
    distributed.all_gather_object(items, item, group=group)
    return items


def gathered_results(work: Callable[[], T]) -> list[T]:
    """What `work` returns in every process, as from `gathered`, where it may take some of them hours."""
    if world_size() == 1:
        return [work()]
    group = distributed.new_group(backend="gloo", timeout=LONG_WORK)
    try:
        own = work()
        items = gathered(own, group)
        items[rank()] = own  # itself, not a copy
        return items
    finally:
        distributed.destroy_process_group(group)


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
