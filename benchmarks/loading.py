"""How fast images are loaded: read, decoded, cropped, resized, mirrored and put into batches.

A row is what one core does: one process, one thread, no worker.  The images are photographs, of the folder
that `--pictures` names; after the first round the system holds them in memory, so that no disk is measured.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.measuring import Contestant, Row, Setting, compare
from benchmarks.peers import original
from coco.data import CocoData
from coco_loader import get_coco_loader
from image_transforms import TrainingTransform
from images.image_folders import image_name
from images.resized_copies import copy_picture, with_resized
from paths import locations
from support.cores import usable_cores
from support.errors import RunError

COPY_SIZE = 256  # pixels, the shorter side
BATCH = 64
MOST = 256  # images in the epoch of a row
MANY = 1024  # in that of a curve: so many that the start into an epoch does not count
OWN, COPIES = "COCO's own files", f"copies of {COPY_SIZE} pixels"


def rows(setting: Setting) -> Iterator[Row]:
    """The first stage's loader on one core, from the images as they are and from copies."""
    if setting.on_gpu or setting.pictures is None:
        return
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        count = min(len(files(setting)), MOST)
        places = prepare(setting, Path(folder), count)
        torch.set_num_threads(1)
        try:
            for kind, paths in places.items():
                contestants = [Contestant("ours", lambda paths=paths: epoch(paths, workers=0))]
                if setting.original:
                    contestants.append(original.loader(setting, places[OWN], BATCH))
                size = f"{count} pictures, ours of {mean_kilobytes(paths):.0f} KB"
                measured = compare(setting, f"loader, {kind}", size, "images/s", count, contestants)
                yield from (replace(row, where="CPU, one core", peak_bytes=None) for row in measured)
        finally:
            torch.set_num_threads(threads)


def curves(setting: Setting) -> Iterator[Row]:
    """Pictures a second against the number of workers, ours alone."""
    if setting.on_gpu or setting.pictures is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        count = len(files(setting)) if setting.quick else MANY
        for kind, paths in prepare(setting, Path(folder), count).items():
            for workers in numbers_of_workers():
                yield from compare(
                    setting, f"loader against the workers, {kind}", f"{workers} workers", "images/s", count,
                    [Contestant("ours", lambda paths=paths, workers=workers: epoch(paths, workers))],
                )  # fmt: skip


def numbers_of_workers() -> list[int]:
    """0, 1, 2, 4, 8 ... and the cores."""
    cores = usable_cores()
    return [0, *(2**power for power in range(8) if 2**power < cores), cores]


def epoch(paths: Mapping[str, Path], workers: int) -> Callable[[], object]:
    """An epoch of the loader that train_encoder.py makes."""
    transform = TrainingTransform()
    loader = get_coco_loader(
        "train", BATCH, transform, workers, mode="image_only", shuffle=True, data=CocoData(paths)
    )
    return lambda: [None for _ in loader]


def files(setting: Setting) -> list[Path]:
    return sorted(setting.pictures.glob("*.jpg"))[: 4 if setting.quick else MOST]


def prepare(setting: Setting, folder: Path, count: int) -> dict[str, dict[str, Path]]:
    """A data root of `count` links to the images, and one to copies; if there are fewer, some come again.

    Returns:
        The file locations of both.
    """
    own = locations(folder)
    copies = with_resized(own, COPY_SIZE)
    small = folder / "each"
    small.mkdir()
    for picture in files(setting):
        if reason := copy_picture(picture, small, COPY_SIZE):
            raise RunError(f"{picture} cannot be read: {reason}")
    link(files(setting), own["train_images"], count)
    link(sorted(small.iterdir()), copies["train_images"], count)
    own["processed"].mkdir()
    torch.save(list(range(count)), own["train_image_ids"])
    return {OWN: own, COPIES: copies}


def link(targets: list[Path], folder: Path, count: int) -> None:
    """So many images of a data set in a folder, as links to the targets."""
    folder.mkdir()
    for number in range(count):
        (folder / image_name(number)).symlink_to(targets[number % len(targets)].resolve())


def mean_kilobytes(paths: Mapping[str, Path]) -> float:
    sizes = [path.stat().st_size for path in paths["train_images"].iterdir()]
    return sum(sizes) / len(sizes) / 1000
