"""A `DataLoader` for long runs: it fails in one line, and its workers leave signals to the main process."""

import gc
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from threading import Thread
from typing import Any, Self

import torch
from torch.utils.data import DataLoader, Dataset

from support import distributed
from support.errors import RunError

LINUX = hasattr(os, "sched_getaffinity")
WORKER_TIMEOUT = 50  # seconds the main process waits for a worker before it calls it hanging


class Loader(DataLoader):
    """Batches of a data set that stands for an unreadable sample with the `RunError` it raised, as a value.

    As a context manager it ends its workers, which else live until the garbage is collected.

    An exception raised in a worker reaches the main process as a page of traceback.  So the data set's
    `__getitems__(keys)` hands errors over like samples, its `batch(samples)` is the first of them or else a
    batch, and an error is raised here, in the main process, as it is.

    Args:
        dataset: has `__getitems__` and `batch` as above.
        batch_sampler: yields lists of keys.
        num_workers: loader processes, no more than this process's share of the cores; 0 loads in this one.
        timeout: seconds to wait for a worker.
        persistent: keeps the workers from one epoch to the next; else they end with it.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_sampler: Iterable,
        num_workers: int = 0,
        timeout: float = WORKER_TIMEOUT,
        *,
        persistent: bool = False,
    ):
        num_workers = min(num_workers, share_of_cores())
        super().__init__(
            dataset,
            batch_sampler=batch_sampler,
            collate_fn=dataset.batch,
            num_workers=num_workers,
            worker_init_fn=prepare_worker,
            persistent_workers=persistent and num_workers > 0,
            timeout=timeout if num_workers > 0 else 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own, or each epoch would draw from torch's global one
        )

    def __iter__(self) -> Iterator[Any]:
        try:
            batches = super().__iter__()
            if self.num_workers > 0:
                self._iterator = batches
            for batch in batches:
                if isinstance(batch, RunError):
                    raise batch
                yield batch
        except (RunError, RuntimeError) as error:
            self._end_workers()
            if str(error).startswith("DataLoader "):  # torch's own words on its workers' health
                raise RunError(f"loading failed: {' '.join(str(error).split())}") from error
            raise
        finally:
            if not self.persistent_workers:
                self._end_workers()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_workers()

    def _end_workers(self) -> None:
        """Ends all workers, those that hang by force: our own exit would wait for them for ever."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()
            for worker in iterator._workers:
                worker.kill()


def share_of_cores() -> int:
    """The cores that this process may use, divided among the processes of the run on this machine."""
    cores = len(os.sched_getaffinity(0)) if LINUX else os.cpu_count() or 1
    return max(1, cores // distributed.local_world_size())


def samples_or_errors(dataset: Dataset, keys: Sequence[Any]) -> list[Any]:
    """`dataset[key]` for each key, or the `RunError` that it raised."""
    samples: list[Any] = []
    for key in keys:
        try:
            samples.append(dataset[key])
        except RunError as error:
            samples.append(error)
    return samples


def prepare_worker(worker: int) -> None:
    """What a worker does before its first batch."""
    gc.freeze()  # a collection would write to all that it was born with, and so copy that memory
    leave_signals_to_main_process(worker)


def leave_signals_to_main_process(worker: int) -> None:
    """Makes this worker end when the main process says so, and not on signals from elsewhere.

    Ctrl-C and a scheduler's SIGTERM reach every process of a group.  A worker that obeyed would take along
    the batch that the main process is waiting for, and with it the chance to save.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if LINUX:  # elsewhere a signal does not say who sent it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # so that it comes to the thread alone
        Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(main_process: int) -> None:
    """Ends this worker on SIGTERM, if the main process sent it or is no more."""
    while True:
        sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
        if sender == main_process or os.getppid() != main_process:
            os._exit(0)
