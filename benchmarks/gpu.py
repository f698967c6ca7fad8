"""Everything that a GPU is needed for, in one call of at most nine minutes.

    make gpu                                                      in the project's own environment
    make gpu RUN=python3 OUT=DIR ORIGINAL=DIR PACK=FILE           in a borrowed machine's; nothing is fetched
    python benchmarks/gpu.py --only tests,bench                   some of its parts

Each part is a process of its own with a limit of its own: one that fails, hangs or takes the GPU's state with
it is reported, and the next one starts.  All that they print goes to gpu.txt, too, and the figures to a JSON
file for each, which is there as far as the part came.  Without a GPU all parts run on the CPU with toys, to
see whether they run.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.run import machine
from paths import HERE as ROOT
from support import command_line
from support.errors import UsageError
from support.files import write_json

MINUTES = 9.0
# Seconds that each part may take at most, of MINUTES; the last one takes what is left.
LIMITS = {"tests": 145, "bench": 200, "steps": 75, "decoding": 50, "loading": 60, "speedrun": 540}
SUBJECTS = {
    "bench": ("decoding", "training"),  # what is compiled comes last
    "steps": ("steps",),
    "decoding": ("search",),
    "loading": ("feeding",),
}
COMPILED = {"bench": "training", "steps": "steps"}  # subjects whose graphs are compiled while the tests run
TIME_TO_END = 20  # seconds that the speedrun has to end before it is killed: time for a checkpoint
LEAST = 15  # seconds; with less left, a part is not started


@dataclass(frozen=True)
class Outcome:
    """How a part ended."""

    part: str
    ended: str  # "done", "failed (exit code N)" or "cut off"
    seconds: float
    command: str


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.Parser(description="Test and measure all that needs a GPU.")
    parser.add_argument(
        "--only", type=parts, default=tuple(LIMITS), metavar="PART,...", help=", ".join(LIMITS)
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"in all (default: {MINUTES:g})")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu", metavar="DIR")
    parser.add_argument("--original", type=Path, metavar="DIR", help="a checkout of the original")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="data that benchmarks/pack.py packed")
    parser.add_argument(
        "--speedrun", metavar="COMMAND",
        help="for the minutes left: a shell command, in which $COCO_ROOT is the pack's data, $OUT this DIR",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        raise UsageError(f"--minutes {options.minutes:g}: it must be above 0")
    if options.pack and not options.pack.is_file():
        raise UsageError(f"--pack {options.pack}: there is no such file; make it with benchmarks/pack.py")
    options.out.mkdir(parents=True, exist_ok=True)
    options.out = options.out.resolve()  # the parts run in ROOT
    options.original = options.original and options.original.resolve()

    started = time.monotonic()
    with TemporaryDirectory(prefix="gpu-") as scratch, (options.out / "gpu.txt").open("w") as log:
        report = Report(log, started)
        if torch.cuda.is_available():
            report.say(f"{torch.cuda.get_device_name()}, {os.cpu_count()} cores, torch {torch.__version__}")
        else:
            report.say("no GPU here: every part runs on the CPU, with toys")
        data = unpack(options.pack, Path(scratch), report)
        outcomes: list[Outcome] = []
        with rehearsals(options, Path(scratch)):
            for part in options.only:
                left = 60 * options.minutes - (time.monotonic() - started)
                limit = min(left - time_to_end(part), LIMITS[part] * options.minutes / MINUTES)
                command = commands(part, options, data, Path(scratch))
                if command is None:
                    report.say(f"{part}: not asked for: name a command with --speedrun")
                elif limit < LEAST:
                    report.say(f"{part}: left out: {max(left, 0):.0f} s are left")
                else:
                    outcomes.append(run(part, command, limit, options, data, report))
                    keep(part, options.out, Path(scratch))
                    summary = {"machine": machine(), "parts": [asdict(outcome) for outcome in outcomes]}
                    write_json(options.out / "gpu.json", summary)
        report.say(f"all: {time.monotonic() - started:.0f} s; the findings are in {options.out}")
    if any(outcome.ended != "done" for outcome in outcomes if outcome.part != "speedrun"):
        sys.exit(1)


def parts(text: str) -> tuple[str, ...]:
    """An argparse type: names of parts with commas between."""
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in LIMITS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(LIMITS)}")
    return names


class Report:
    """Lines for the terminal and the log, each with the time since the start."""

    def __init__(self, log, started: float):
        self.log, self.started = log, started

    def say(self, text: str) -> None:
        self.line(f"[{time.monotonic() - self.started:5.0f} s] {text}")

    def line(self, text: str) -> None:
        for stream in (sys.stdout, self.log):
            print(text, file=stream, flush=True)


def unpack(pack: Path | None, folder: Path, report: Report) -> Path | None:
    """Where the pack's `data` and `photographs` lie."""
    if pack is None:
        report.say("no pack: loading is not measured; make one with benchmarks/pack.py")
        return None
    with tarfile.open(pack) as files:
        files.extractall(folder / "pack", filter="data")
    report.say(f"unpacked {pack}")
    return folder / "pack"


def commands(part: str, options: argparse.Namespace, data: Path | None, scratch: Path) -> list[str] | None:
    """The command of a part; None where there is none to run."""
    on_gpu = torch.cuda.is_available()
    if part == "speedrun":
        return options.speedrun and ["/bin/sh", "-c", options.speedrun]
    if part == "tests":
        found = [
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-m",
            "cuda",
            "-rsf",
            "--durations=9",
            "--tb=short",
        ]
        how = [] if on_gpu else ["--toy"]
        if on_gpu and find_spec("xdist"):
            how = ["-n", "6", "--dist", "worksteal"]  # most of their time is the compiler's, on one core each
        junit = f"--junitxml={scratch / 'tests.xml'}"
        return [sys.executable, *found, junit, *how, "-vv", str(ROOT / "tests" / "cuda")]
    more = [] if on_gpu else ["--quick", "--repeats", "1"]
    if options.original and part == "bench":
        more += ["--original", str(options.original)]
    if data:
        photographs = data / "photographs"  # which a pack need not have
        more += ["--pictures", str(photographs)] if photographs.is_dir() else []
        more += ["--data", str(data / "data")]
    return [*measure(*SUBJECTS[part]), *more, "--out", str(options.out / f"{part}.json")]


def measure(*subjects: str) -> list[str]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    script = str(ROOT / "benchmarks" / "run.py")
    return [sys.executable, script, "--device", device, "--only", *subjects]


@contextmanager
def rehearsals(options: argparse.Namespace, scratch: Path) -> Iterator[None]:
    """While tests run, which measure nothing, compiles what the parts after them will call.

    A graph of ViT-B takes half a minute or more, and there are seven.
    """
    begun = []
    if torch.cuda.is_available() and options.only[0] == "tests":
        for part in (name for name in COMPILED if name in options.only):
            command = [*measure(COMPILED[part]), "--rehearse", "--out", str(scratch / "rehearsal.json")]
            log = (scratch / f"{part}.log").open("w")
            begun.append(start(command, environment(options, None), stdout=log))
    options.rehearsals = begun
    try:
        yield
    finally:
        for process in begun:
            end(process)


def end_rehearsals(options: argparse.Namespace, report: Report) -> None:
    """Ends those that still run, and says how far they came: what is missing will be compiled later."""
    for process in options.rehearsals:
        code = process.poll()
        report.say(f"compiling ahead: {'not finished' if code is None else f'exit code {code}'}")
        end(process)
    options.rehearsals = []


def environment(options: argparse.Namespace, data: Path | None) -> dict[str, str]:
    there = {"COCO_ROOT": str((data / "data").resolve())} if data else {}
    return {**os.environ, "PYTHONUNBUFFERED": "1", "OUT": str(options.out.resolve()), **there}


def start(command: list[str], variables: dict[str, str], **streams) -> subprocess.Popen:
    """A process with a group of its own, so that its children end with it."""
    return subprocess.Popen(
        command, cwd=ROOT, env=variables, stderr=subprocess.STDOUT, start_new_session=True, **streams
    )


def run(
    part: str,
    command: list[str],
    limit: float,
    options: argparse.Namespace,
    data: Path | None,
    report: Report,
) -> Outcome:
    """Runs a part to its end or to its limit; its lines are passed on as they come."""
    if part != "tests":
        end_rehearsals(options, report)  # what is timed must be alone on the machine
    words = shlex.join(command)
    report.say(f"{part}: at most {limit:.0f} s: {words}")
    began = time.monotonic()
    process = start(command, environment(options, data), stdout=subprocess.PIPE, text=True, errors="replace")
    reader = Thread(target=pass_on, args=(process, report), daemon=True)
    reader.start()
    try:
        code = process.wait(limit)
        ended = "done" if code == 0 else f"failed (exit code {code})"
    except subprocess.TimeoutExpired:
        ended = "cut off"
    finally:
        end(process, time_to_end(part))
    reader.join(5)
    seconds = time.monotonic() - began
    report.say(f"{part}: {ended}, {seconds:.0f} s")
    return Outcome(part, ended, round(seconds, 1), words)


def pass_on(process: subprocess.Popen, report: Report) -> None:
    for line in process.stdout:
        report.line(f"    {line.rstrip()}")


def time_to_end(part: str) -> float:
    """Seconds between asking a part to end and killing it; the others write their findings as they go."""
    return TIME_TO_END if part == "speedrun" else 0


def end(process: subprocess.Popen, patience: float = 0) -> None:
    """Ends a process and its children by force, after so many seconds in which it may end by itself."""
    if patience:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def keep(part: str, out: Path, scratch: Path) -> None:
    """Puts what pytest found into tests.json; the other parts write theirs themselves."""
    file = scratch / "tests.xml"
    if part != "tests" or not file.exists():
        return
    found = []
    for case in ElementTree.parse(file).iter("testcase"):
        verdict = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        found.append({
            "test": case.get("name"), "file": case.get("classname"), "seconds": float(case.get("time")),
            "outcome": "passed" if verdict is None else verdict.tag,
            "message": "" if verdict is None else verdict.get("message", ""),
            **{each.get("name"): each.get("value") for each in case.iter("property")},
        })  # fmt: skip
    (out / "tests.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    command_line.run(main)
