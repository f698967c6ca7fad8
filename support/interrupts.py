"""SIGTERM and SIGINT: the handler only sets a flag, and long work looks at it where it can stop cleanly.

Training, validation and decoding call `check()` between two batches.  It raises `Interrupted`, which a
training script turns into a checkpoint and every script into exit code 143 or 130.  A second signal ends the
process at once, its loader workers with it.

What stops a service or a job may signal every process of it, and torchrun then passes its own signal on: that
comes twice, and the second time is no second wish.  So none is heeded within `ECHO` seconds of the first, and
below torchrun none at all: it kills by itself what has not ended after 30.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

ECHO = 1.0  # seconds

_received: int | None = None
_received_at = 0.0  # by the monotonic clock
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


def leave_to_main_process() -> None:
    """Makes this worker process end when the main process says so, and not on signals from elsewhere.

    Ctrl-C and a scheduler's SIGTERM reach every process of a group.  A worker that obeyed would take along
    what the main process is waiting for, and with it the chance to save.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "linux":  # there a signal does not say who sent it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    else:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # so that it comes to the thread alone
        Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(main_process: int) -> None:
    """Ends this worker on SIGTERM, if the main process sent it or is no more."""
    while True:
        sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
        if sender == main_process or os.getppid() != main_process:
            os._exit(0)


def _handle(signum: int, _frame: object) -> None:
    global _received, _received_at
    if _received is not None:
        if "TORCHELASTIC_RUN_ID" in os.environ or time.monotonic() - _received_at < ECHO:
            return
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(128 + signum)
    _received, _received_at = signum, time.monotonic()
    if _waiting:
        raise Interrupted(signum)
