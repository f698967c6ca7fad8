"""Prints one table, ours beside each peer, and writes it as JSON.

    python benchmarks/run.py --original ../image_captioning     everything; `make bench` does the same
    python benchmarks/run.py --only decoding                    one subject; the file keeps the others
    python benchmarks/run.py --only steps search                beside the table: ways to step, to search
    python benchmarks/run.py --only loading --pictures DIR      photographs, if COCO's are not there
    python benchmarks/run.py --device cpu --precision float32   as on a CPU not fast in bfloat16
    python benchmarks/run.py --curves                           ours alone: cost against batch, length, beams
    python benchmarks/run.py --quick                            toys: does everything run?

On the CPU, and after it on the GPU if there is one.  README.md beside this file says what is measured and
what came out.  The peer `original` needs a checkout of its repository; without one its rows are left out.
"""

import argparse
import os
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import decoding, feeding, loading, measuring, ranks, search, steps, training
from benchmarks.measuring import Row, Setting, number, table
from benchmarks.peers import huggingface
from paths import ROOT, paths
from support import command_line, devices
from support.errors import RunError, UsageError
from support.files import read_json, write_json

SUBJECTS = {"training": training, "decoding": decoding, "loading": loading, "ranks": ranks}
ON_REQUEST = {"steps": steps, "search": search, "feeding": feeding}
PACKAGES = ("torch", "torchvision", "transformers", "transformer_components_michaelkosmider")
DEFAULT_OUT = ROOT / "results" / "benchmarks.json"


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.Parser(description="Measure ours beside its peers.")
    parser.add_argument("--original", type=Path, metavar="DIR", help="a checkout of the original")
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="photographs to load (default: COCO's train2017)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=[*SUBJECTS, *ON_REQUEST], metavar="SUBJECT",
        help=f"of {', '.join(SUBJECTS)} (default: these) and {', '.join(ON_REQUEST)}",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="ROOT", help="a processed data root to train on")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="this device alone")
    parser.add_argument(
        "--precision", choices=("auto", *devices.PRECISIONS), default="auto", help="of all (default: auto)"
    )
    parser.add_argument("--curves", action="store_true", help="the curves instead of the table")
    parser.add_argument("--quick", action="store_true", help="toys, to see whether everything runs")
    parser.add_argument(
        "--peers-alone",
        action="store_true",
        help="without ours, whose scripts keep the memory they free",
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="measure nothing: fill the compiler's cache for the next call"
    )
    parser.add_argument("--repeats", type=command_line.positive_int, default=5, help="rounds (default: 5)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help=f"JSON file (default: {DEFAULT_OUT})")
    options = parser.parse_args(arguments)
    if options.pictures is None and paths["train_images"].is_dir():
        options.pictures = paths["train_images"]
    devices.set_fast_float32()
    notes = missing(options)
    rows: list[Row] = []
    subjects = [(SUBJECTS | ON_REQUEST)[name] for name in options.only or SUBJECTS]
    for setting in settings(options):
        for subject in subjects:
            for row in subject.curves(setting) if options.curves else subject.rows(setting):
                rows.append(row)
                done = f"{row.what}, {row.size}: {row.contestant} {number(row.rate)} {row.unit}"
                print(f"{datetime.now():%H:%M:%S} {done}", file=sys.stderr, flush=True)
                # At once: whoever cuts this off has what was measured until then.
                write(options.out, "curves" if options.curves else "rows", rows, notes)
    print(table(rows))
    for note in notes:
        print(f"note: {note}", flush=True)
    if measuring.failures:
        raise RunError(f"{len(measuring.failures)} could not run, the first: {measuring.failures[0]}")


def settings(options: argparse.Namespace) -> list[Setting]:
    """The CPU and the GPU, each in the precision that training takes there, or in the one named."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: there is no GPU here")
    found = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    chosen = [torch.device(name) for name in found if options.device in (None, name)]
    return [
        Setting(
            device,
            devices.choose_precision(options.precision, device),
            options.repeats,
            options.quick,
            options.original,
            huggingface.is_installed(),
            options.pictures,
            options.data,
            options.peers_alone,
            options.rehearse,
        )
        for device in chosen
    ]


def missing(options: argparse.Namespace) -> list[str]:
    """What is left out of the table, and what would bring it in."""
    notes = []
    if options.original is None:
        notes.append("the original is left out: name a checkout of it with --original DIR")
    elif not (options.original / "image_captioner.py").is_file():
        raise UsageError(f"--original {options.original}: it holds no image_captioner.py; name a checkout")
    if options.pictures is None:
        notes.append("the loading of pictures is left out: name a folder of photographs with --pictures DIR")
    elif not any(options.pictures.glob("*.jpg")):
        raise UsageError(
            f"--pictures {options.pictures}: it holds no .jpg files; name a folder of photographs"
        )
    if not huggingface.is_installed():
        notes.append("transformers is left out: pip install -r requirements-bench.txt")
    if not torch.cuda.is_available():
        notes.append("no GPU here, so no row of one")
    return notes


def machine() -> dict[str, object]:
    """Where and with what this was measured."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def write(path: Path, kind: str, rows: list[Row], notes: list[str]) -> None:
    """Puts the rows into the JSON file; those of other work that are there already stay."""
    before = read_json(path, {})
    measured = {(row.what, row.size, row.where) for row in rows}
    others = [row for row in before.get(kind, []) if (row["what"], row["size"], row["where"]) not in measured]
    contents = {**before, "machine": machine(), "notes": notes, kind: [*others, *map(asdict, rows)]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, contents)


if __name__ == "__main__":
    command_line.run(main)
