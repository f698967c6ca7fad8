"""Progress bars: drawn in place on a terminal, and in a log file a line now and then."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

INTERVAL = 10.0  # seconds, the least between two lines of a bar in a log file


def progress_bar(
    items: Iterable | None = None,
    *,
    what: str,
    unit: str,
    total: int | None = None,
    done: int = 0,
    log: bool = True,
    hidden: bool = False,
    **options: Any,
) -> tqdm:
    """A bar over `items`, or one to call `update` on.

    Args:
        items: what is worked on, one after the other.
        what: the work, in a word or two before the bar.
        unit: what an item is.
        total: how many there are; None where `items` tells, or nobody knows.
        done: how many are done already.
        log: whether to write lines where stderr is no terminal, too.
        hidden: show nothing at all.
        options: more of tqdm's.
    """
    terminal = sys.stderr.isatty()
    if not terminal:
        # A bar that is over sooner says nothing, and none says goodbye: that would be lines less far apart.
        options |= {"file": _Log(), "mininterval": INTERVAL, "delay": INTERVAL, "leave": False}
        options |= {"miniters": 1}  # or tqdm's monitor draws a bar whose work has slowed down once more
    return tqdm(
        items, total=total, initial=done, desc=what, unit=unit, dynamic_ncols=True,
        disable=hidden or not (terminal or log), **options,
    )  # fmt: skip


class _Log:
    """What a bar would draw over itself, as lines on stderr."""

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()
