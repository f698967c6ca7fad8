"""Which process of a run this is, by what the program that started it left in the environment.

`torchrun` says all of it.  Other programs that start processes say less, or nothing: then each process would
be a whole run, all in one folder, so that is refused.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from support.errors import UsageError

# What starts many processes, and the variable in which each of them finds how many there are.  SLURM_NTASKS
# will not do: a batch script, which runs once, has it, too.
TASKS = {"srun": "SLURM_STEP_NUM_TASKS", "mpirun": "OMPI_COMM_WORLD_SIZE", "mpiexec": "PMI_SIZE"}


class Place(NamedTuple):
    """A process among those of its run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # among the processes on this machine


def place(environment: Mapping[str, str]) -> Place:
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
