"""How long to wait for a batch: while samples arrive, and no longer than a signal allows."""

import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from support import distributed, interrupts
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
