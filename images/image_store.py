"""Images decoded once and kept in memory as uint8, for training that would decode them anew every epoch.

The memory is shared by all processes of a machine, loader workers included: one of them fills it, on all
cores.  Images keep their size and lie one after the other, row by row, a pixel's three colors side by side:
as decoders leave them.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from support import distributed, memory
from support.errors import RunError
from support.memory import SharedBytes
from support.parallel import on_all_cores, worker_processes

# Images that this process is through with before others have imported torch: Flickr8k's 1,000 of val, cropped
# to 112 pixels, take it 0.5 s, and two processes 3.2.
FEW = 2000
SHARE = 0.8  # of the memory that is free, at most: the run itself needs some

Size = tuple[int, int]  # height and width, pixels


@dataclass(frozen=True, eq=False)
class ImageStore:
    """The images of a list of files, by their number in it."""

    shared: SharedBytes
    starts: Tensor  # (N,) int64, where in the memory each image begins
    sizes: Tensor  # (N, 2) int64, height and width
    errors: dict[int, str]  # why an image could not be read

    def __getitem__(self, number: int) -> Tensor:
        """An image, (3, h, w) uint8, with its pixels where they lie: not to be written to.

        Raises:
            RunError: its file could not be read.
        """
        if number in self.errors:
            raise RunError(self.errors[number])
        height, width = self.sizes[number].tolist()
        return pixels_of(self.shared, int(self.starts[number]), (height, width))

    def __str__(self) -> str:
        return f"{len(self.starts):,} images, {self.shared.size / 1e9:.2f} GB,"


def pixels_of(shared: SharedBytes, start: int, size: Size) -> Tensor:
    """The image that begins there, (3, h, w) uint8."""
    height, width = size
    return shared.bytes[start : start + 3 * height * width].view(height, width, 3).permute(2, 0, 1)


def store_images(
    files: Sequence[Path], load: Callable[[Path], Tensor], size: Callable[[Path], Size] | Size
) -> ImageStore | str:
    """Decodes images into memory that all processes of this machine share.

    Every process of a run is to call it; on each machine the first one decodes, on all cores.

    Args:
        files: each once.
        load: from a file to (3, h, w) uint8; raises RunError where it cannot be read.
        size: height and width of what `load` makes: of all, or from a file's header alone, raising RunError.

    Returns:
        The images; or, where a machine of the run has not memory enough, a line that says so.
    """
    decodes = distributed.local_rank() == 0
    stores = distributed.gathered_results(lambda: _store(files, load, size) if decodes else None)
    no_room = [store for store in stores if isinstance(store, str)]
    return no_room[0] if no_room else stores[distributed.rank() - distributed.local_rank()]


def _store(
    files: Sequence[Path], load: Callable[[Path], Tensor], size: Callable[[Path], Size] | Size
) -> ImageStore | str:
    with worker_processes() as pool:
        on_all = partial(on_all_cores, unit="image", few=FEW, pool=pool)
        sizes = [size] * len(files)
        if callable(size):
            measured = on_all(partial(_size, size=size), files, "measuring images")
            sizes = [size for _, size in measured]
        lengths = torch.tensor([3 * height * width for height, width in sizes], dtype=torch.int64)
        starts, needed, free = lengths.cumsum(0) - lengths, int(lengths.sum()), memory.available()
        if free is not None and needed > SHARE * free:
            return (
                f"{len(files):,} images need {needed / 1e9:.2f} GB of memory, and of the {free / 1e9:.2f} GB "
                f"that are free they may take {SHARE:.0%}"
            )
        shared = SharedBytes(max(1, needed))
        work = partial(_decode, shared=shared, load=load)
        places = list(zip(files, starts.tolist(), sizes))
        decoded = on_all(work, places, "decoding images")
        errors = {number: error for number, (_, error) in enumerate(decoded) if error}
    return ImageStore(shared, starts, torch.tensor(sizes).view(-1, 2), errors)


def _size(file: Path, size: Callable[[Path], Size]) -> Size:
    try:
        return size(file)
    except RunError:
        return 0, 0  # whoever decodes it says why


def _decode(place: tuple[Path, int, Size], shared: SharedBytes, load: Callable[[Path], Tensor]) -> str | None:
    """Decodes an image to its place in memory; returns why it cannot be read, or None."""
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # there is a process for each core
    file, start, size = place
    try:
        image = load(file)
    except RunError as error:
        return str(error)
    if image.shape[1:] != size:
        return f"cannot read the picture {file}: it has changed while images were decoded"
    pixels_of(shared, start, size).copy_(image)
    return None
