"""SIGTERM and SIGINT: the handler only sets a flag, and long work looks at it where it can stop cleanly.

Training, validation and decoding call `check()` between two batches.  It raises `Interrupted`, which a
training script turns into a checkpoint and every script into exit code 143 or 130.  A second signal ends the
process at once, its loader workers with it.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_received: int | None = None
_waiting = False  # inside `at_once`


class Interrupted(Exception):  # noqa: N818 - it is no error, as KeyboardInterrupt is none
    """The process was asked to stop.  `signum` says by which signal."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def install() -> None:
    """Takes over SIGTERM and SIGINT.  Call once, from the main thread, before any worker starts."""
    global _received
    _received = None
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _handle)


def received() -> int | None:
    """The number of the signal that asked this process to stop, or None."""
    return _received


def check() -> None:
    """Raises `Interrupted` when a signal has come."""
    if _received is not None:
        raise Interrupted(_received)


@contextmanager
def at_once() -> Iterator[None]:
    """In this block a signal raises `Interrupted` there and then, even where the system waits for a network.

    For code that loses nothing when it ends between any two lines.
    """
    global _waiting
    check()
    _waiting = True
    try:
        yield
    finally:
        _waiting = False


@contextmanager
def left_to_the_system() -> Iterator[None]:
    """In this block a signal ends the process as if there were no handler, even where no Python code runs.

    For waits that may last and lose nothing, with no child process yet.
    """
    handlers = {signum: signal.signal(signum, signal.SIG_DFL) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        check()  # here, or one that came a moment ago would wait as long
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def ignore_in_worker() -> None:
    """For loader workers: Ctrl-C reaches the whole process group, but the main process alone decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # how DataLoader ends a worker


def _handle(signum: int, _frame: object) -> None:
    global _received
    if _received is not None:
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(128 + signum)
    _received = signum
    if _waiting:
        raise Interrupted(signum)
