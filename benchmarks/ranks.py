"""What the exchange of gradients costs: two processes over gloo against one, on the same cores.

A step of the first stage on one global batch.  The contestants are processes of their own that wait, without
using a core, until they are asked for a step; each gets its share of the cores and of the batch.
"""

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection

import torch
from torch import distributed

from benchmarks import floor, sizes, training
from benchmarks.measuring import Contestant, Row, Setting, compare

IMAGES = 32  # of a step, over all processes: half of the recipe's batch


def rows(setting: Setting) -> Iterator[Row]:
    """One row, on the CPU; GPUs exchange gradients otherwise, and need one each."""
    if setting.on_gpu:
        return
    contestants = [
        Contestant("ours, two processes", lambda: group(2, setting)),
        Contestant("ours, one process", lambda: group(1, setting)),
    ]
    measured = compare(
        setting, "MAE step on the same cores", f"{IMAGES} images", "images/s", IMAGES, contestants,
        floor.mae_step(sizes.mae_config(setting), IMAGES),
    )  # fmt: skip
    yield from (
        replace(row, peak_bytes=None) for row in measured
    )  # it was measured in this process, not there


def curves(setting: Setting) -> Iterator[Row]:
    """None: more processes than two need more cores than a table of two has."""
    yield from ()


def group(world_size: int, setting: Setting) -> Callable[[], object]:
    """Starts so many processes; what is returned makes them take a step together."""
    context = multiprocessing.get_context("spawn")
    meeting_place = f"file://{tempfile.mkdtemp()}/ranks"
    threads = max(1, torch.get_num_threads() // world_size)
    channels = []
    for rank in range(world_size):
        ours, theirs = context.Pipe()
        arguments = (rank, world_size, threads, meeting_place, setting, theirs)
        context.Process(target=serve, args=arguments, daemon=True).start()
        theirs.close()  # so that a process that dies is an error here, and not a wait for ever
        channels.append(ours)

    def step() -> list[str]:
        for channel in channels:
            channel.send("step")
        return [channel.recv() for channel in channels]

    return step


def serve(
    rank: int, world_size: int, threads: int, meeting_place: str, setting: Setting, channel: Connection
) -> None:
    """One of the processes: takes a step whenever it is asked to."""
    torch.set_num_threads(threads)
    if world_size > 1:
        distributed.init_process_group("gloo", meeting_place, rank=rank, world_size=world_size)
    batch = sizes.image_batch(setting, IMAGES // world_size)
    step = training.mae_step(setting, sizes.mae_config(setting), batch)
    while True:
        try:
            channel.recv()
        except EOFError:  # the benchmark has ended
            return
        step()
        channel.send("done")
