"""What every script's last line calls: runs `main`, and turns the way it ends into an exit code.

0 done; 1 it failed while running; 2 wrong use; 130 and 143 stopped by SIGINT or SIGTERM.  Failures on purpose
are one line on stderr.  A bug keeps its traceback.
"""

import argparse
import atexit
import io
import ipaddress
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from support import __version__, interrupts, memory
from support.errors import RunError, UsageError
from support.files import disk_errors

MOST_BEAMS = 100  # memory grows with them, and captions are no better beyond about ten
MOST_SAMPLES = 1000  # for a consensus; the same
COPY_SIZES = 64, 1024  # smaller ones show too little, larger ones save nothing
VOCABULARY_SIZES = 260, 1_000_000  # tokens: the 256 bytes and four special ones; more were never of use
NO_MEMORY = re.compile("out of memory|can't allocate memory")  # torch's words, on a GPU and on a CPU


def run(main: Callable[[], None]) -> None:
    """Runs a script's `main` and exits with the code that says how it went."""
    interrupts.install()
    _print_anything()
    try:
        with disk_errors():
            main()
            if sys.stdout is not None:  # as it is where a shell closed it
                sys.stdout.flush()
    except UsageError as error:
        _leave(2, f"error: {error}")
    except RunError as error:
        _leave(1, f"failed: {error}")
    except interrupts.Interrupted as interruption:
        _leave_at_once(128 + interruption.signum, f"stopped by {interruption}")
    except (RuntimeError, MemoryError) as error:
        if str(error).startswith("DataLoader worker"):  # torch's signal handler: a loader process died
            full = memory.shared_memory_is_full(error)
            _leave(1, f"failed: {memory.shared_memory_error(None) if full else error}")
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        less = "smaller batches, fewer beams or samples, or a smaller model"
        _leave(1, f"failed: not enough memory: {error!s:.200}: take {less}")
    except BrokenPipeError:  # the reader of our output went away: `python caption.py ... | head`
        _flush_or_drop()
        sys.exit(1)


def _print_anything() -> None:
    """Has characters that the terminal or the pipe cannot show printed as escapes.

    A name of a file need not be UTF-8, and an output need not be: no such line may end the run half-way.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Parser(argparse.ArgumentParser):
    """A parser with `--version`, whose errors are one line; argparse's own print the usage before it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_argument("--version", action="version", version=f"image-captioner {__version__}")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parses; an empty word is refused: `-c "$UNSET"` must not start anew, as without -c.

        A `~` is the home folder also where a shell leaves it as it is: in `--out=~/runs`, say.
        """
        words = list(sys.argv[1:] if args is None else args)
        for before, word in zip(["the script's name", *words], words):
            if not word.strip() or re.fullmatch("--[a-z-]+=", word):
                given = before if not word.strip() else word.removesuffix("=")
                self.error(f"{given} was given an empty value; is a shell variable unset?")
        return super().parse_args([_with_home(word) for word in words], namespace)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help lists the options)")


def add_place_options(parser: argparse.ArgumentParser) -> None:
    """`--sample` and `--out`: which data set's checkpoints, or which folder's."""
    parser.add_argument(
        "--sample", action="store_true", help="the drawn sample data set and its small models"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="root of the checkpoints (default: checkpoints/ or checkpoints/sample)"
    )


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """The options that both training scripts share."""
    add_place_options(parser)
    add_split_file_option(parser)
    parser.add_argument(
        "--config", metavar="FILE", type=Path,
        help="default: the checkpoint's with -c, else the YAML at the root, or the sample's",
    )  # fmt: skip
    parser.add_argument(
        "--set", metavar="KEY=VALUE", dest="changes", action="append", default=[],
        help="change a key of the configuration, such as learning_rate=3e-4 or encoder.num_layers=6; "
        "may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--data", metavar="DIR", help="root of the data (default: COCO_ROOT, data/coco or data/sample)"
    )
    parser.add_argument(
        "-s",
        "--subset",
        metavar="FRACTION",
        type=fraction,
        default=1.0,
        help="use this part of the pictures, of train and of val",
    )
    parser.add_argument("--epochs", metavar="N", type=positive_int, help="stop when N are completed in all")
    parser.add_argument(
        "--tensorboard", action="store_true", help="write curves and examples for TensorBoard, too"
    )


def add_split_file_option(parser: argparse.ArgumentParser) -> None:
    """`--split-file`: other splits than COCO's."""
    parser.add_argument(
        "--split-file",
        metavar="FILE",
        type=Path,
        help="JSON with the image ids of train, val and test, or Karpathy's dataset_coco.json",
    )


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """`--beams` and `--consensus`: how a captioner searches, other than its checkpoint says."""
    parser.add_argument("--beams", type=beams, help="1 is greedy; default: the checkpoint's")
    parser.add_argument(
        "--consensus", metavar="N", type=samples,
        help="take the caption that N drawn by chance agree on; 0: the likeliest; default: the checkpoint's",
    )  # fmt: skip


def search_asked_for(options: argparse.Namespace) -> dict[str, int | None]:
    """What the search options ask for, by key of the configuration; None: as the checkpoint says."""
    return {"num_beams": options.beams, "consensus_samples": options.consensus}


def positive_int(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not re.fullmatch("0*[1-9][0-9]{0,8}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a whole number from 1 to 999,999,999")
    return int(text)


def beams(text: str) -> int:
    """An argparse type: a number of beams."""
    return _whole_number(text, 1, MOST_BEAMS)


def samples(text: str) -> int:
    """An argparse type: a number of samples."""
    return _whole_number(text, 0, MOST_SAMPLES)


def address(text: str) -> str:
    """An argparse type: an IP address of version 4, for the page's server makes URLs of these only."""
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{_short(text)} is no address such as 127.0.0.1") from None


def port(text: str) -> int:
    """An argparse type: the port of a server."""
    return _whole_number(text, 1, 65535)


def copy_size(text: str) -> int:
    """An argparse type: the shorter side of pre-resized copies, in pixels."""
    return _whole_number(text, *COPY_SIZES)


def vocabulary_size(text: str) -> int:
    """An argparse type: the most tokens of a tokenizer."""
    return _whole_number(text, *VOCABULARY_SIZES)


def fraction(text: str) -> float:
    """An argparse type: a number above 0 and at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a fraction above 0 and at most 1")
    return value


def _whole_number(text: str, least: int, most: int) -> int:
    if not re.fullmatch("[0-9]{1,9}", text, re.ASCII) or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a whole number from {least} to {most:,}")
    return int(text)


def _with_home(word: str) -> str:
    option, value = re.fullmatch(r"(--[a-z-]+=)?(.*)", word, re.DOTALL).groups("")
    return option + (os.path.expanduser(value) if option or value.startswith("~/") else value)


def _short(text: str) -> str:
    return f"{text!r:.60}"


def _leave(code: int, message: str) -> NoReturn:
    _say(message)
    sys.exit(code)


def _leave_at_once(code: int, message: str) -> NoReturn:
    """Without taking the interpreter apart: with torch that takes seconds, and who stops us waits for few."""
    _say(message)
    atexit._run_exitfuncs()
    os._exit(code)


def _flush_or_drop() -> None:
    """Writes out what was printed; where that fails it is dropped, or Python would try again at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(message: str) -> None:
    _flush_or_drop()
    print(f"{Path(sys.argv[0]).name}: {' '.join(message.split())}", file=sys.stderr, flush=True)
