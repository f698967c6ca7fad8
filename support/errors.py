"""The two ways in which a command fails on purpose, and the commands that its messages name.

Everything else that is raised is a bug and shows its traceback.  A command is ready to be pasted, and right
for the data at hand.
"""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path


class UsageError(Exception):
    """Wrong use: a bad flag, configuration or checkpoint, a missing or damaged input.  Exit code 2."""


class RunError(Exception):
    """It failed while running: no disk space, no connection, too many bad pictures.  Exit code 1."""


def printable(name: object) -> str:
    """A name as one line of a message: line ends, and what a terminal obeys, become escapes."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in str(name))


def prepare_command(where: Mapping[str, Path], *options: object) -> str:
    """`python process_coco.py` for the data set of these file locations, ready to be pasted.

    For the drawn sample it says `--sample`: without it, COCO's 47 GB would be fetched into its folder.

    Args:
        where: the file locations.
        options: more of them.
    """
    words: list[object] = ["python", where["process_coco"]]
    if is_sample(where):
        words.append("--sample")
    if not _same(where["data"], where["sample"]):
        words += ["--data", where["data"]]
    return shlex.join(map(str, [*words, *options]))


def offline_command(where: Mapping[str, Path], *options: object) -> str:
    """`prepare_command`, but it works on what is there and fetches nothing."""
    return prepare_command(where, *([] if is_sample(where) else ["--captions-only"]), *options)


def check_command(where: Mapping[str, Path]) -> str:
    """The command that lists the images that cannot be read."""
    return offline_command(where, "--check")


def is_sample(where: Mapping[str, Path]) -> bool:
    """Whether the data are the drawn sample: they lie in its place, bear its stamp, or go with its recipe."""
    in_place, recipe = _same(where["data"], where["sample"]), where["mae_config"].parent
    return in_place or os.path.isfile(where["sample_stamp"]) or recipe == where["sample_recipe"]


def _same(first: Path, second: Path) -> bool:
    return os.path.abspath(first) == os.path.abspath(second)
