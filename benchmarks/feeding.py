"""How images get to a device fast enough: by the workers of a loader, or by a GPU's own JPEG engine."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks import loading
from benchmarks.measuring import Contestant, Row, Setting, compare
from coco.data import CocoData
from coco_loader import get_coco_loader
from image_transforms import TrainingTransform
from paths import locations
from training.loading import share_of_cores
from training.step import to_device


def rows(setting: Setting) -> Iterator[Row]:
    """Whole photographs first, then the small images of a data root."""
    setting = replace(setting, repeats=2)  # a call takes a second
    if setting.pictures:
        yield from decoders(setting)
        with TemporaryDirectory() as folder:
            count = len(loading.files(setting)) if setting.quick else loading.MANY
            own = loading.prepare(setting, Path(folder), count)[loading.OWN]
            yield from loaders(setting, "photographs", own, count)
    if setting.data:
        paths = locations(setting.data)
        count = len(torch.load(paths["train_image_ids"], weights_only=True))
        yield from loaders(setting, "a data root's small images", paths, count)


def decoders(setting: Setting) -> list[Row]:
    """JPEGs to pixels: one core, all cores, the GPU's engine, whose pixels are on the device already."""
    files = itertools.cycle(loading.files(setting))
    count = 8 if setting.quick else 256
    encoded = [torch.frombuffer(bytearray(next(files).read_bytes()), dtype=torch.uint8) for _ in range(count)]
    contestants = [
        Contestant("one core", lambda: lambda: [decode_jpeg(one, ImageReadMode.RGB) for one in encoded]),
        Contestant(f"{share_of_cores()} threads", lambda: threads(encoded)),
    ]
    if setting.on_gpu:
        contestants.append(Contestant("JPEG engine", lambda: engine(encoded, setting.device)))
    return compare(
        setting, "decoding of JPEGs", f"{count} photographs", "images/s", count, contestants, warm_up=1
    )


def threads(encoded: list[Tensor]) -> Callable[[], object]:
    pool = ThreadPoolExecutor(share_of_cores())  # the decoder lets go of Python's lock
    return lambda: list(pool.map(lambda one: decode_jpeg(one, ImageReadMode.RGB), encoded))


def engine(encoded: list[Tensor], device: torch.device, batch: int = 64) -> Callable[[], object]:
    """Batches of 64, as a training step would ask for them."""
    batches = [encoded[start : start + batch] for start in range(0, len(encoded), batch)]
    return lambda: [decode_jpeg(some, ImageReadMode.RGB, device=device) for some in batches]


def loaders(setting: Setting, what: str, paths: dict[str, Path], count: int) -> Iterator[Row]:
    """Epochs of the first stage's loader, each batch brought to the device, by the number of workers."""
    cores = share_of_cores()
    for workers in sorted({0, min(8, cores), cores}):
        size = f"{count} images, {workers} workers"
        yield from compare(
            setting, f"loader, {what}", size, "images/s", min(count, limit(workers)),
            [Contestant("ours", lambda workers=workers: epoch(setting, paths, workers))], warm_up=1,
        )  # fmt: skip


def limit(workers: int) -> int:
    """Images of a timed epoch: about a second's work."""
    return 512 * max(1, workers)


def epoch(setting: Setting, paths: dict[str, Path], workers: int) -> Callable[[], object]:
    """As much of an epoch as `limit` says."""
    loader = get_coco_loader(
        "train",
        loading.BATCH,
        TrainingTransform(),
        workers,
        mode="image_only",
        shuffle=True,
        data=CocoData(paths),
    )

    def run() -> None:
        seen = 0
        for batch in loader:
            to_device(batch, setting.device)
            seen += len(batch.images)
            if seen >= limit(workers):
                break

    return run


def curves(setting: Setting) -> Iterator[Row]:
    """None."""
    yield from ()
