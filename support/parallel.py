"""The same work on many files, on all cores."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from threading import Thread
from typing import TypeVar

from support import interrupts
from support.cores import usable_cores
from support.errors import RunError
from support.progress_bars import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def worker_processes() -> Iterator[Executor]:
    """A process for each usable core, for `on_all_cores` where there is work in several rounds.

    They start when there is work.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks, held or not
    pool = ProcessPoolExecutor(usable_cores(), context, initializer=_prepare_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def on_all_cores(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    what: str,
    unit: str,
    few: int = 0,
    hidden: bool = False,
    pool: Executor | None = None,
) -> Iterator[tuple[Item, Result]]:
    """Yields each item with what the work makes of it, in order, under a progress bar.

    Args:
        work: what other processes can import: a module's function, or a partial of one.
        items: what it is done on.
        what: the work in a word, before the bar.
        unit: what an item is.
        few: of so many items or fewer, this process does the work: starting others would take longer.
        hidden: show no bar.
        pool: of `worker_processes`; None starts one, and ends it.

    Raises:
        RunError: a worker was killed.
        Interrupted: this process was asked to stop.
    """
    with nullcontext(pool) if pool else worker_processes() as pool:
        try:
            in_order = map(work, items) if len(items) <= few else pool.map(work, items, chunksize=16)
            results = progress_bar(in_order, what=what, unit=unit, total=len(items), hidden=hidden)
            for item, result in zip(items, results):
                interrupts.check()
                yield item, result
        except BrokenExecutor as error:
            interrupts.check()  # a kill of the whole group ends workers, too
            raise RunError(f"{what}: a worker died ({error}): is there memory enough?") from None


def _prepare_worker() -> None:
    interrupts.leave_to_main_process()
    Thread(target=_end_with_main_process, daemon=True).start()


def _end_with_main_process() -> None:
    """Ends this worker when the main process is killed, or it would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)
