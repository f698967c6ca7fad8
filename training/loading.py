"""A `DataLoader` for long runs: it fails in one line, and its workers leave signals to the main process.

And how long to wait for a batch: while samples arrive, and no longer than a signal allows.
"""

import gc
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, MutableSequence, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import RawArray
from multiprocessing.process import BaseProcess
from threading import Timer
from typing import Any, Self

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from tqdm import tqdm

from support import distributed, interrupts, memory
from support.cores import usable_cores
from support.errors import RunError

LOOK_EVERY = 0.5  # seconds
LAST_BATCH = 2.0  # seconds that a batch may take after a signal, where other ranks need it for their step


class Patience:
    """What the main process asks, each time that a batch has not come for `LOOK_EVERY` seconds.

    Args:
        samples_read: by each worker so far; they keep counting.
        seconds: without a sample from any of them, after which loading hangs.
        advice: what else would do, at the end of the error.
    """

    def __init__(self, samples_read: Sequence[int], seconds: float, advice: str):
        self.samples_read, self.seconds, self.advice = samples_read, seconds, advice
        self.told = False
        self.begin()

    def begin(self) -> None:
        """Another batch is awaited from now on."""
        self.started = self.last_sample = time.monotonic()
        self.before = self.read = sum(self.samples_read)
        self.stop_at: float | None = None

    def look(self) -> None:
        """Returns if it is right to wait on; says once if samples do arrive, but slowly.

        Raises:
            RunError: no worker has read a sample for too long.
            Interrupted: this process was asked to stop, and the batch does not come.
        """
        now = time.monotonic()
        if interrupts.received() is not None:
            # Ranks that get the batch end with the same step; a process by itself need not wait for it.
            self.stop_at = self.stop_at or now + (LAST_BATCH if distributed.world_size() > 1 else 0)
            if now >= self.stop_at:
                interrupts.check()
        if (read := sum(self.samples_read)) != self.read:
            self.read, self.last_sample = read, now
        if now - self.last_sample > self.seconds:
            raise RunError(
                f"loading hangs: no sample from the loader workers for {self.seconds:g} s: does the drive "
                f"that holds the images still answer{self.advice}?"
            )
        if now - self.started > self.seconds and not self.told:
            self.told = True
            rate = (self.read - self.before) / (now - self.started)
            tqdm.write(
                f"note: {self.seconds:g} s without a batch, but samples arrive, {rate:.2g} a second: "
                "the run goes on, as slowly as the drive",
                file=sys.stderr,
            )


LOADING_TIMEOUT = 60.0  # seconds without a sample, where no configuration says
PREFETCHED = 2  # batches in work or ready for each worker, as is usual
BUS_ERROR = [-signal.SIGBUS] if hasattr(signal, "SIGBUS") else []  # exit code of who found no memory there
TIME_TO_END = 1.0  # seconds that workers have to end by themselves
END = object()

_counted: tuple[MutableSequence[int], int] | None = None  # in a worker: all workers' counts, its own number


class Loader(DataLoader):
    """A DataLoader whose data set returns a `RunError` in place of a sample it cannot read.

    As a context manager it ends its workers, which else live until the garbage is collected.

    An exception raised in a worker reaches the main process as a page of traceback.  So the data set's
    `__getitems__(keys)` hands errors over like samples, its `batch(samples)` is the first of them or else a
    batch, and an error is raised here, in the main process, as it is.

    Args:
        dataset: has `__getitems__`, made of `samples_or_errors`, and `batch` as above.
        batch_sampler: yields lists of keys.
        num_workers: loader processes, no more than this process's share of the cores; 0 loads in this one.
        timeout: seconds without a sample from any worker before that is an error, by the key
            `loading_timeout`.  None: there is no configuration, and messages name no key of it.
        persistent: keeps the workers from one epoch to the next; else they end with it.
        batch_bytes: of a batch's images, to see at once whether shared memory has room; 0 does not look.
        batches_held: how many batches are in use at once.
        size_key: of the configuration, which makes batches smaller.
        finish: what becomes of a batch in this process, on the device; None leaves it as it is.

    Raises:
        RunError: shared memory has no room for the batches of the workers.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_sampler: Iterable,
        num_workers: int = 0,
        timeout: float | None = None,
        *,
        persistent: bool = False,
        batch_bytes: int = 0,
        batches_held: int = 1,
        size_key: str = "batch_size",
        finish: Callable[[Any], Any] | None = None,
    ):
        self.finish = finish
        num_workers = min(num_workers, share_of_cores())
        configured = timeout is not None
        self.longest_wait = timeout if configured else LOADING_TIMEOUT  # seconds
        self.advice = ", and is loading_timeout long enough" if configured else ""
        self.memory_keys = f"num_workers or {size_key}" if configured else None
        self.samples_read = RawArray("Q", num_workers) if num_workers > 0 else []  # by each, in all
        if num_workers > 0 and batch_bytes:
            batches = min(PREFETCHED * num_workers + batches_held, len(batch_sampler))
            processes = distributed.local_world_size()
            memory.require_shared_memory(batches, batch_bytes, processes, self.memory_keys)
        super().__init__(
            dataset,
            batch_sampler=batch_sampler,
            collate_fn=partial(collate, dataset, self.memory_keys),
            num_workers=num_workers,
            worker_init_fn=partial(prepare_worker, self.samples_read),
            prefetch_factor=PREFETCHED if num_workers > 0 else None,
            persistent_workers=persistent and num_workers > 0,
            timeout=LOOK_EVERY if num_workers > 0 else 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own, or each epoch would draw from torch's global one
        )

    def __iter__(self) -> Iterator[Any]:
        patience = Patience(self.samples_read, self.longest_wait, self.advice)
        try:
            if self._iterator is not None:  # its workers answer first, which none of our looks cuts short
                self._iterator._timeout = self.longest_wait
            batches = super().__iter__()
            if self.num_workers > 0:
                self._iterator = batches
                batches._timeout = LOOK_EVERY
            while (batch := _next(batches, patience)) is not END:
                if isinstance(batch, RunError):
                    raise batch
                yield self.finish(batch) if self.finish else batch
        except (RunError, RuntimeError, OSError, interrupts.Interrupted) as error:
            no_room = not isinstance(error, RunError) and self._found_no_room(error)
            self._end_workers()
            if no_room:
                raise memory.shared_memory_error(self.memory_keys) from error
            if str(error).startswith("DataLoader "):  # torch's own words on its workers' health
                raise RunError(f"loading failed: {' '.join(str(error).split())}") from error
            raise
        finally:
            if not self.persistent_workers:
                self._end_workers()

    def _found_no_room(self, error: Exception) -> bool:
        """Whether the error, or the way in which a worker ended, says that shared memory is full."""
        workers = self._iterator._workers if self._iterator else []
        return memory.shared_memory_is_full(error) or any(worker.exitcode in BUS_ERROR for worker in workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_workers()

    def _end_workers(self) -> None:
        """Ends all workers, those that hang by force: our own exit would wait for them for ever."""
        iterator, self._iterator = self._iterator, None
        if iterator is None:
            return
        force = Timer(TIME_TO_END, end_by_force, [iterator._workers])
        force.daemon = True
        force.start()
        with suppress(RuntimeError):  # torch's word on a worker that was killed
            iterator._shutdown_workers()
        force.cancel()
        for worker in iterator._workers:
            worker.kill()


def _next(batches: Iterator[Any], patience: Patience) -> Any:
    """The next batch, or END; torch's waiting is cut short, to look at signals and at the workers."""
    patience.begin()
    while True:
        try:
            return next(batches, END)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader timed out"):
                raise
        patience.look()


def share_of_cores() -> int:
    """The cores that this process may use, divided among the processes of the run on this machine."""
    return max(1, usable_cores() // distributed.local_world_size())


def end_by_force(workers: Sequence[BaseProcess]) -> None:
    """Ends workers that are in the midst of a batch, then those that do not even hear the signal."""
    for worker in workers:
        worker.terminate()
    time.sleep(TIME_TO_END)
    for worker in workers:
        worker.kill()


def collate(dataset: Dataset, memory_keys: str | None, samples: Sequence[Any]) -> Any:
    """The data set's batch of some samples; in a worker it lies in shared memory already.

    Else a thread of the worker would move it there; where there is no room that thread prints a traceback,
    and the batch never comes.
    """
    batch = dataset.batch(samples)
    if get_worker_info() is None or not isinstance(batch, tuple):
        return batch
    try:
        for tensor in filter(torch.is_tensor, batch):
            tensor.share_memory_()
    except (RuntimeError, OSError) as error:
        if not memory.shared_memory_is_full(error):
            raise
        return memory.shared_memory_error(memory_keys)
    return batch


def samples_or_errors(dataset: Dataset, keys: Sequence[Any]) -> list[Any]:
    """`dataset[key]` for each key, or the `RunError` that it raised."""
    samples: list[Any] = []
    for key in keys:
        try:
            samples.append(dataset[key])
        except RunError as error:
            samples.append(error)
        if _counted is not None:
            counts, worker = _counted
            counts[worker] += 1
    return samples


def prepare_worker(samples_read: MutableSequence[int], worker: int) -> None:
    """What a worker does before its first batch.

    Args:
        samples_read: counts for all workers, which the main process looks at.
        worker: this one's number.
    """
    global _counted
    _counted = samples_read, worker
    gc.freeze()  # a GC pass writes to inherited objects and breaks copy-on-write sharing
    interrupts.leave_to_main_process()
