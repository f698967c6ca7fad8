"""Rows of different lengths in one flat tensor: a list of lists that processes share instead of copying."""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


class Ragged:
    """A read-only list of rows of integers, held as one tensor of values and one of offsets.

    A Python list of 591,753 captions would be copied, page by page, into every loader worker, because merely
    reading an object writes its reference count.  A tensor's values have none and stay shared.

    Args:
        rows: the rows, each of any length.
        typecode: how a value is stored, as in Python's `array`: "i" 32 bits, "B" a byte.
    """

    def __init__(self, rows: Iterable[Sequence[int]], typecode: str = "i"):
        values, offsets = array(typecode), array("q", [0])
        for row in rows:
            values.extend(row)
            offsets.append(len(values))
        self.values = torch.from_numpy(np.array(values))
        self.offsets = torch.from_numpy(np.array(offsets))  # row i is values[offsets[i] : offsets[i + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """(rows,) int64."""
        return self.offsets.diff()

    def __getitem__(self, row: int) -> Tensor:
        start, end = self.offsets[row : row + 2].tolist()
        return self.values[start:end]
