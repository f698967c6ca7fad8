"""Times contestants in turn on the same work, and keeps the figures as rows.

A subject of the benchmark is a module with one function,

    rows(setting) -> Iterator[Row]        the table
    curves(setting) -> Iterator[Row]      what the cost depends on, ours alone

which makes its rows with `compare`.  The contestants of one row do the same work on the same machine in the
same run: each builds what it needs and does the work once untimed, then they take turns, in an order that
turns around from round to round, so that whatever slows the machine down slows all of them down.
"""

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from support import devices

# Dense bfloat16 operations a second, by the data sheets (SXM).
DATA_SHEET = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
WARM_UP = 2  # untimed calls of each contestant; the first one compiles where something is compiled
WARM_UP_ON_GPU = 4  # a CUDA graph is recorded in the second or third
ROUND_ON_GPU = 0.3  # seconds: so many calls make a round that its one synchronization does not count


@dataclass(frozen=True)
class Setting:
    """Where and how everything in a table is measured."""

    device: torch.device
    precision: torch.dtype
    repeats: int = 5  # rounds
    quick: bool = False  # tiny models: whether everything runs, not how fast
    original: Path | None = None  # checkout of the original; None leaves it out
    transformers: bool = False  # whether that library is there to be measured
    pictures: Path | None = None  # a folder of photographs; None leaves their loading out
    data: Path | None = None  # a processed data root; None leaves out what trains on one
    peers_alone: bool = False  # ours left out, and with it what our scripts do to their whole process
    rehearse: bool = False  # only build and call everything, so that what is compiled lies in torch's cache

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def where(self) -> str:
        """The device and the precision in words."""
        return devices.describe(self.device, self.precision)


@dataclass(frozen=True)
class Contestant:
    """Somebody who can do the work."""

    name: str  # "ours", or the peer's
    build: Callable[[], Callable[[], object]]  # makes what is needed, returns the work, to be timed
    note: str = ""  # what a reader must know to trust the figure


@dataclass(frozen=True)
class Row:
    """One contestant's figures for one kind of work."""

    what: str  # the work
    size: str  # how much of it
    contestant: str
    where: str  # device and precision
    unit: str  # what `rate` counts, such as "images/s"
    rate: float  # median over the rounds
    spread: tuple[float, float]  # slowest and fastest round
    rounds: int
    seconds: float  # of one call, median
    ratio: float | None  # by how much ours is faster: median over the rounds, each with its own ratio
    mfu: float | None  # floating-point operations needed, over what the device could do in that time
    peak_bytes: int | None  # memory at its highest in a call, weights and optimizer state included
    note: str = ""


failures: list[str] = []  # contestants of this process that could not run


def compare(
    setting: Setting,
    what: str,
    size: str,
    unit: str,
    work: float,
    contestants: Sequence[Contestant],
    flop: float | None = None,
    warm_up: int | None = None,
) -> list[Row]:
    """Times the contestants, ours first, in turn.

    Args:
        setting: device, rounds.
        what: the work, in words.
        size: its amount, in words.
        unit: of the rate.
        work: units done in one call.
        contestants: ours and the peers; ratios are to the first.
        flop: floating-point operations that one call needs; None: no MFU.
        warm_up: untimed calls of each; None: what the device needs.

    Returns:
        A row for each that can run; why another cannot goes to stderr, and to `failures`.
    """
    competing = contestants[1:] if setting.peers_alone else contestants
    warm_up = warm_up or (WARM_UP_ON_GPU if setting.on_gpu else WARM_UP)
    runs, peaks, able = [], [], []
    for contestant in competing:
        peak = PeakMemory(setting.device)
        try:
            run = contestant.build()
            for _ in range(warm_up):
                run()
        except Exception as error:  # one that cannot run here must not cost the others their figures
            reason = " ".join(str(error).split())
            failures.append(f"{what}, {size}: {contestant.name}: {type(error).__name__}: {reason:.500}")
            print(f"failed: {failures[-1]}", file=sys.stderr, flush=True)
            continue
        calls = calls_of_round(run, setting)
        peaks.append(peak.read())
        runs.append((run, calls))
        able.append(contestant)
    if setting.rehearse or not runs:
        return []
    seconds: list[list[float]] = [[] for _ in runs]
    for number in range(setting.repeats):
        order = range(len(runs)) if number % 2 == 0 else reversed(range(len(runs)))
        for which in order:
            run, calls = runs[which]
            seconds[which].append(timed(repeated(run, calls), setting.device) / calls)
    peak_rate = peak_flops(setting) if flop else None
    rows = []
    for contestant, times, peak_bytes in zip(able, seconds, peaks):
        middle = statistics.median(times)
        ratio = None  # to the first, if that ran
        if able[0] is contestants[0] is not contestant:
            ratio = statistics.median(theirs / our for theirs, our in zip(times, seconds[0]))
        rows.append(
            Row(
                what=what,
                size=size,
                contestant=contestant.name,
                where=setting.where,
                unit=unit,
                rate=work / middle,
                spread=(work / max(times), work / min(times)),
                rounds=len(times),
                seconds=middle,
                ratio=ratio,
                mfu=flop / middle / peak_rate if peak_rate else None,
                peak_bytes=peak_bytes,
                note=contestant.note,
            )
        )
    return rows


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds that one call takes until the device has finished."""
    finish(device)
    started = time.perf_counter()
    run()
    finish(device)
    return time.perf_counter() - started


def repeated(run: Callable[[], object], calls: int) -> Callable[[], object]:
    """So many calls one after the other, nothing of one kept beyond the next."""

    def repeat() -> None:
        for _ in range(calls):
            run()

    return repeat if calls > 1 else run


def calls_of_round(run: Callable[[], object], setting: Setting) -> int:
    """How many calls make a round: one on a CPU; on a GPU more, which follow without a wait between them.

    A training loop does not wait for the GPU between its steps either, unless the contestant's own step does.
    """
    if not setting.on_gpu or setting.rehearse:
        return 1
    return max(1, min(200, round(ROUND_ON_GPU / timed(run, setting.device))))


def finish(device: torch.device) -> None:
    """Waits until the device has done all that it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """The most memory in use since this was made, beyond what was in use then."""

    def __init__(self, device: torch.device):
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        elif sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # else what others have freed would seem to cost nothing
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS: proc(5)
            self.before = _status("VmRSS")

    def read(self) -> int | None:
        """Bytes; None on a system that does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return _status("VmHWM") - self.before if sys.platform == "linux" else None


def _status(key: str) -> int:
    """A figure of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(key)


_peak_flops: dict[tuple[str, torch.dtype], float] = {}


def peak_flops(setting: Setting) -> float:
    """Floating-point operations a second that the device can do at best: what MFU is a share of.

    By its data sheet for a GPU in bfloat16.  Elsewhere what it reaches in a large matrix product, measured
    once here: a CPU in a shared machine has no data sheet to go by.
    """
    if setting.device.type == "cuda" and setting.precision is torch.bfloat16:
        name = torch.cuda.get_device_name(setting.device)
        for key, value in DATA_SHEET.items():
            if key in name:
                return value
    key = (str(setting.device), setting.precision)
    if key not in _peak_flops:
        size = 256 if setting.quick else 8192 if setting.on_gpu else 1536
        a = torch.randn(size, size, device=setting.device, dtype=setting.precision)
        best = min(timed(lambda: a @ a, setting.device) for _ in range(8))
        _peak_flops[key] = 2 * size**3 / best
    return _peak_flops[key]


def table(rows: Iterable[Row]) -> str:
    """The rows as text: one heading for each kind of work, below it a line for each contestant."""
    lines, heading, notes = [], None, {}
    for row in rows:
        if (row.what, row.size, row.where) != heading:
            heading = (row.what, row.size, row.where)
            columns = f"{row.unit:>12}  {'slowest – fastest':>19}  {'ours is':>8}  {'MFU':>5}  {'memory':>9}"
            lines += ["", f"{row.what}: {row.size}; {row.where}", f"    {'':24}{columns}"]
        slow, fast = row.spread
        if row.note:
            notes.setdefault(row.note, len(notes) + 1)
        name = f"{row.contestant} [{notes[row.note]}]" if row.note else row.contestant
        lines.append(
            f"    {name:24}{number(row.rate):>12}  {f'{number(slow)} – {number(fast)}':>19}  "
            f"{f'{row.ratio:.2f} ×' if row.ratio else '':>8}  "
            f"{f'{100 * row.mfu:.0f} %' if row.mfu else '':>5}  "
            f"{f'{row.peak_bytes / 2**30:.2f} GiB' if row.peak_bytes else '':>9}"
        )
    lines += ["", *(f"[{count}] {note}" for note, count in notes.items())]
    return "\n".join(lines[1:]).rstrip() + "\n"


def number(value: float) -> str:
    """Three digits that count, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
