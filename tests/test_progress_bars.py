"""What progress bars leave behind in a log file."""

import io
import os
import re
import sys
from types import SimpleNamespace

import pytest
import tqdm.std

from support import parallel, progress_bars
from support.progress_bars import progress_bar
from tests.training_cases import PACKAGES, ROOT


class Clock:
    """Seconds that pass only when told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Log(io.StringIO):
    """A file that knows when each of its lines was written."""

    def __init__(self, clock: Clock):
        super().__init__()
        self.clock, self.times = clock, []

    def write(self, text: str) -> int:
        self.times += [self.clock()] * len(re.findall(r"[^\r\n]+", text))
        return super().write(text)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(tqdm.std, "time", clock)
    return clock


@pytest.fixture
def log(monkeypatch, clock):
    log = Log(clock)
    monkeypatch.setattr(progress_bars, "sys", SimpleNamespace(stderr=log))  # pytest sets the real one anew
    return log


@pytest.mark.parametrize("called", [True, False])
@pytest.mark.parametrize("seconds", [0.01, 0.7, 3, 25])
def test_a_log_file_gets_a_line_every_ten_seconds_at_most(clock, log, called, seconds):
    """Hundreds of lines came of it, some of them only to draw a bar afresh beside a message."""
    started, spans = clock.now, []
    for _ in range(2):  # one bar after the other, as in process_coco.py
        with progress_bar(None if called else range(600), what="drawing", unit="picture", total=600) as bar:
            for number in range(600) if called else bar:
                clock.now += seconds
                if number % 50 == 0:
                    tqdm.tqdm.write("a message", file=sys.stdout)
                if called:
                    bar.update()
    spans = [after - before for before, after in zip([started, *log.times], log.times)]
    assert all(span >= 10 for span in spans), spans
    assert len(spans) >= 0.5 * 1200 * min(seconds / 10, 1) - 2, "and so many are to be seen"
    lines = log.getvalue().splitlines()
    assert len(lines) == len(spans)
    assert all(line.startswith("drawing: ") and "/600 [" in line for line in lines)


def test_work_that_slows_down_brings_no_more_lines(clock, log):
    """tqdm watches its bars from a thread, and draws those again that have not moved for ten seconds."""
    with progress_bar(what="drawing", unit="picture", total=4000) as bar:
        for number in range(4000):
            clock.now += 0.01 if number < 3900 else 4
            if bar.miniters > 1 and clock.now - bar.last_print_t >= bar.maxinterval:  # as the thread does
                bar.miniters = 1
                bar.refresh()
            bar.update()
    spans = [after - before for before, after in zip(log.times, log.times[1:])]
    assert all(span >= 10 for span in spans), spans
    assert len(spans) > 30


def test_a_bar_for_the_terminal_only_leaves_nothing_in_a_log_file(clock, log):
    for _ in progress_bar(range(5), what="epoch 1", unit="step", log=False):
        clock.now += 60
    assert log.getvalue() == ""


def test_a_terminal_sees_the_bar_move(clock, log, monkeypatch):
    monkeypatch.setattr(log, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", log)
    for _ in progress_bar(range(5), what="epoch 1", unit="step", log=False):
        clock.now += 1
    assert [f"{done}/5" in log.getvalue() for done in range(6)] == [True] * 6


def test_work_on_all_cores_starts_no_more_processes_than_it_may_use_cores(monkeypatch):
    """In a share of 8 of a node's 128 cores it started 128."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 4, 5}, raising=False)
    with parallel.worker_processes() as pool:
        assert pool._max_workers == 3


def test_work_on_all_cores_shows_such_a_bar(clock, log, monkeypatch):
    class Pool:
        def __init__(self, *_, **__):
            self.shutdown = lambda **_: None

        def map(self, work, items, chunksize):
            for item in items:
                clock.now += 4
                yield work(item)

    monkeypatch.setattr(parallel, "ProcessPoolExecutor", Pool)
    assert len(list(parallel.on_all_cores(str, range(30), "checking", "picture"))) == 30
    assert 8 <= len(log.times) <= 12


def test_no_other_module_makes_a_bar_of_its_own():
    sources = [file for folder in (".", *PACKAGES) for file in (ROOT / folder).glob("*.py")]
    makers = {path.name for path in sources if re.search(r"\btqdm\((?!\):)", path.read_text())}
    assert makers == {"progress_bars.py"}
