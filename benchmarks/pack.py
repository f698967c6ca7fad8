"""Packs what `make gpu` wants to read into one file, for a machine that has neither data nor a network.

    python process_coco.py --source DIR --data ROOT            first and here, so that no GPU waits for it
    python benchmarks/pack.py --data ROOT --photographs DIR --out pack.tar
    python benchmarks/gpu.py --pack pack.tar                   there

The images of a processed data root become small ones: the shorter side 112 pixels, which is 14 patches of 8,
as WebP of quality 68.  20,373 photographs take 45 MiB so; JPEGs of 96 pixels and quality 75 take 52.
They keep their names, which end in .jpg: a file's kind is read from its content.  Photographs are packed as
they are, for the measurement of loading.
"""

import io
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from sys import path as modules

modules.insert(0, str(Path(__file__).resolve().parent.parent))

from PIL import Image

from images.image_files import opened
from images.rgb import to_rgb
from paths import PROCESSED_SPLITS, locations
from support import command_line
from support.errors import UsageError
from support.parallel import on_all_cores

SIDE, QUALITY = 112, 68  # pixels of the shorter side; of WebP
LARGEST = 60 * 2**20  # bytes of the pack


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.Parser(description="Pack data for `make gpu` into one file.")
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT", help="a processed data root")
    parser.add_argument("--photographs", type=Path, metavar="DIR", help="JPEGs in full size, to be loaded")
    parser.add_argument(
        "--count", type=command_line.positive_int, default=32, help="of the photographs (default: 32)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the pack")
    options = parser.parse_args(arguments)
    paths = locations(options.data)
    if not paths["train_image_ids"].is_file():
        raise UsageError(f"--data {options.data}: it is not processed: run process_coco.py on it first")
    photographs = sorted(options.photographs.glob("*.jpg"))[: options.count] if options.photographs else []
    if options.photographs and not photographs:
        raise UsageError(f"--photographs {options.photographs}: it holds no .jpg files")

    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(options.out, "w:gz") as pack:
        for folder in ("processed", "annotations"):
            for file in sorted(paths[folder].glob("*")):
                pack.add(file, f"data/{folder}/{file.name}")
        for photograph in photographs:
            pack.add(photograph, f"photographs/{photograph.name}")
        for name, image in small_images(paths):
            entry = tarfile.TarInfo(f"data/{name}")
            entry.size = len(image)
            pack.addfile(entry, io.BytesIO(image))
    size = options.out.stat().st_size
    print(f"{options.out}: {size / 2**20:.1f} MiB")
    if size > LARGEST:
        raise UsageError(f"{options.out} is larger than {LARGEST / 2**20:.0f} MiB: take fewer photographs")


def small_images(paths: dict[str, Path]) -> Iterator[tuple[str, bytes]]:
    """The small copies of all images of a data root, each with its place in it."""
    folders = [paths[f"{split}_images"] for split in PROCESSED_SPLITS]
    files = [file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.jpg"))]
    for file, image in on_all_cores(partial(small, side=SIDE, quality=QUALITY), files, "packing", "image"):
        yield f"{file.parent.name}/{file.name}", image


def small(file: Path, side: int, quality: int) -> bytes:
    """An image file as a small WebP; one that is smaller keeps its size."""
    with file.open("rb") as stream, opened(stream) as picture:
        image = to_rgb(picture)
    share = side / min(image.size)
    if share < 1:
        size = tuple(max(side, round(length * share)) for length in image.size)
        image = image.resize(size, Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    image.save(packed, "WEBP", quality=quality, method=4)
    return packed.getvalue()


if __name__ == "__main__":
    command_line.run(main)
