"""The options of `process_coco.py --own`, and the commands that come after it."""

import argparse
import shlex
from pathlib import Path

from own_data.reading import OwnData
from support.command_line import fraction
from support.errors import UsageError

KEPT_NAMES = ("", "coco", "sample")  # folders below data/ that are other data sets'


def add_own_options(parser: argparse.ArgumentParser) -> None:
    """The options that say how `--own` makes a data root; they are nothing without it."""
    group = parser.add_argument_group("of --own")
    group.add_argument(
        "--val-fraction", metavar="F", type=fraction, help="part for val, where nothing says which (0.1)"
    )
    group.add_argument("--copy", action="store_true", help="copy the images, instead of linking them")
    group.add_argument("--caption-files", nargs="+", metavar="FILE", help="which of several in DIR to take")
    group.add_argument("--caption-column", metavar="NAME", help="which column of a table holds the captions")


def own_data_of(options: argparse.Namespace) -> OwnData | None:
    """What the options ask for; None where it is nothing of one's own.

    Raises:
        UsageError: an option says how, but `--own` is not among them.
    """
    given = {name: getattr(options, name) for name in OwnData._fields if name != "folder"}
    given = {name: value for name, value in given.items() if value}
    if options.own is None and given:
        flag = next(iter(given)).replace("_", "-")
        raise UsageError(f"--{flag} says how --own makes a data root: name the folder with --own, too")
    return None if options.own is None else OwnData(options.own, **given)


def root_of_own(folder: Path, data: str | None, repository: Path) -> Path:
    """The data root to make of a folder: what `--data` names, or `data/<name of the folder>`.

    Raises:
        UsageError: there is no such folder, or the root would lie in it or be another data set's.
    """
    if not folder.is_dir():
        raise UsageError(f"--own {folder}: there is no such folder")
    name = folder.resolve().name
    if not data and name in KEPT_NAMES:
        raise UsageError(f"data/{name} is another data set's: name a root for {folder} with --data")
    root = Path(data) if data else repository / "data" / name
    if root.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{root} lies in {folder}, which is left as it is: name another place with --data")
    return root


def next_commands(data: Path, repository: Path, has_test: bool) -> str:
    """The commands that train on a data root, evaluate and caption, to be copied from the screen."""
    out = repository / "checkpoints" / data.resolve().name.replace(" ", "-")  # as `make photographs` names it

    def command(script: str, *words: str | Path) -> str:
        return shlex.join(["python", str(repository / script), *map(str, words)])

    last = out / "captioner" / "last"
    evaluate = command("evaluate_captioner.py", "--data", data, "-c", last)
    return "\n    ".join(
        [
            "next:",
            command("train_encoder.py", "--data", data, "--out", out),
            command("train_captioner.py", "--data", data, "--out", out, "-p", "last"),
            evaluate,
            *([f"{evaluate} --split test"] if has_test else []),
            command("caption.py", "-c", last, "IMAGE"),
        ]
    )
