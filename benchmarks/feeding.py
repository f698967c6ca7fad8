"""How images get to a device fast enough: from memory, by a loader's workers, or by a GPU's JPEG engine."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks import floor, loading, sizes, training
from benchmarks.measuring import Contestant, Row, Setting, compare
from coco.data import CocoData
from coco_loader import LoaderOptions, get_coco_loader
from coco_samples import ImageBatch
from image_transforms import TrainingTransform
from paths import locations
from training.loading import Loader, share_of_cores
from training.step import to_device


def rows(setting: Setting) -> Iterator[Row]:
    """What matters most comes first: the whole loop of the first stage beside its steps alone."""
    data = setting.data and CocoData(locations(setting.data))
    if data:
        yield from loops(setting, data)
    setting = replace(setting, repeats=2)  # a call takes a second
    if setting.pictures:
        yield from decoders(setting)
    if data:
        count = len(torch.load(data.paths["train_image_ids"], weights_only=True))
        yield from loaders(setting, "a data root's small images", data, count)
    if setting.pictures:
        with TemporaryDirectory() as folder:
            count = len(loading.files(setting)) if setting.quick else loading.MANY
            own = CocoData(loading.prepare(setting, Path(folder), count)[loading.OWN])
            yield from loaders(setting, "photographs", own, count)


def loops(setting: Setting, data: CocoData) -> list[Row]:
    """Steps of the first stage with the loading of their batches, from memory and from files, and without."""
    config = sizes.mae_config(setting)
    count = 4 if setting.quick else config.batch_size
    step = cache(partial(training.mae_step, setting, config, sizes.image_batch(setting, count)))  # one model

    def loop(cached: bool) -> Callable[[], object]:
        loader = loader_of(setting, data, count, share_of_cores(), cached)
        return partial(step(), batches=endless(loader, count))

    contestants = [
        Contestant("from memory", lambda: loop(cached=True)),
        Contestant("from files", lambda: loop(cached=False)),
        Contestant("steps alone", step),
    ]
    return compare(
        setting, "MAE loop, loading included", f"{count} images, {share_of_cores()} workers", "images/s",
        count, contestants, floor.mae_step(config, count),
    )  # fmt: skip


def endless(loader: Loader, batch_size: int) -> Iterator[ImageBatch]:
    """Full batches, one epoch after the other: a smaller one would have the model compiled anew."""
    for epoch in itertools.count():
        loader.batch_sampler.set_epoch(epoch)
        yield from (batch for batch in loader if len(batch.image_ids) == batch_size)


def loader_of(
    setting: Setting, data: CocoData, batch_size: int, workers: int, cached: bool = False
) -> Loader:
    """The loader that train_encoder.py makes."""
    return get_coco_loader(
        "train", batch_size, TrainingTransform(sizes.mae_config(setting).image_size), workers,
        mode="image_only", shuffle=True, data=data, options=LoaderOptions(cache_images=cached),
    )  # fmt: skip


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


def loaders(setting: Setting, what: str, data: CocoData, count: int) -> Iterator[Row]:
    """Epochs of the first stage's loader, each batch brought to the device, by the number of workers."""
    cores = share_of_cores()
    for workers in sorted({0, min(8, cores), cores}):
        size = f"{count} images, {workers} workers"
        yield from compare(
            setting, f"loader, {what}", size, "images/s", min(count, limit(workers)),
            [
                Contestant("from files", lambda workers=workers: epoch(setting, data, workers, cached=False)),
                Contestant("from memory", lambda workers=workers: epoch(setting, data, workers, cached=True)),
            ],
            warm_up=1,
        )  # fmt: skip


def limit(workers: int) -> int:
    """Images of a timed epoch: about a second's work."""
    return 512 * max(1, workers)


def epoch(setting: Setting, data: CocoData, workers: int, cached: bool) -> Callable[[], object]:
    """As much of an epoch as `limit` says."""
    loader = loader_of(setting, data, loading.BATCH, workers, cached)

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
