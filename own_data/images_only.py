"""Images of any folders, with no captions: the data of `train_encoder.py --images`.

    python train_encoder.py --images ~/imagenet/train ~/photographs

They are found by the endings of their names, in all sub-folders.  A hash of each one's name below its folder
takes a share for validation, as in `process_coco.py --own`, so that more images move none.
"""

import argparse
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from coco.data import CocoData, Ragged
from images.image_folders import VAL_FRACTION, by_hash, in_words, walk
from support import command_line, distributed
from support.errors import UsageError, printable


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageFolders(CocoData):
    """The images below some folders, as data that are "train" and "val" and have no captions.

    An image's id is its number: folder after folder as they are named, and by name in each.
    """

    words: str  # how many there are, and where
    digest: str  # another one when a name is new or missing, or another share is for validation
    files: Ragged  # the paths' bytes: millions of Python strings would be copied into each loader worker
    held_out: Tensor  # (images,) bool: for validation

    @classmethod
    def find(cls, paths: dict[str, Path], folders: Sequence[str], val_fraction: float | None = None) -> Self:
        """Looks into all folders; one line on stderr says what is no image.

        Args:
            paths: every file location, for the checkpoints.
            folders: where the images are; every process of a run has the same ones.
            val_fraction: share for validation; None for `VAL_FRACTION`.

        Raises:
            UsageError: a folder is not there or named twice, nothing is for training or for validation, or
                processes see different images.
        """
        folders = [os.fspath(Path(folder)) for folder in folders]  # as the paths of what is in them begin
        _require_apart(folders)
        val_fraction = val_fraction or VAL_FRACTION
        digest, held_out, left_out = hashlib.sha256(repr(val_fraction).encode()), bytearray(), Counter()

        def rows() -> Iterator[bytes]:
            for folder in folders:
                below = os.path.join(folder, "")
                for name in sorted(path.removeprefix(below) for path in walk(Path(folder), True, left_out)):
                    digest.update(os.fsencode(name) + b"\0")
                    held_out.append(by_hash(name) < val_fraction)
                    yield os.fsencode(below + name)
                digest.update(b"\0")

        files = Ragged(rows(), "B")
        where = ", ".join(map(printable, folders))
        if left_out and distributed.is_main():
            print(f"images: {in_words(left_out)}", file=sys.stderr, flush=True)
        if not 0 < sum(held_out) < len(files):
            raise UsageError(
                f"--images {where}: of {len(files):,} images {sum(held_out):,} fall to validation at "
                f"--val-fraction {val_fraction:g}, and both training and validation need one"
            )
        if len(set(distributed.gathered(digest.hexdigest()))) > 1:
            raise UsageError(f"--images {where}: the processes of this run see different images there")
        return cls(
            paths, words=f"{len(files):,} images in {where}", digest=digest.hexdigest(),
            files=files, held_out=torch.frombuffer(held_out, dtype=torch.bool),
        )  # fmt: skip

    def image_ids(self, split: str) -> list[int]:
        return (self.held_out == (split == "val")).nonzero()[:, 0].tolist()

    def image_file(self, split: str, image_id: int) -> Path:
        return Path(os.fsdecode(self.files[image_id].numpy().tobytes()))

    def splits_with_images(self, splits: Sequence[str]) -> list[str]:
        """Those asked for, images of "unlabeled" being among those of "train" here."""
        return list(dict.fromkeys("train" if split == "unlabeled" else split for split in splits))

    def for_training(self, *_: object) -> Self:
        """As they are: there are no resized copies."""
        return self

    def image_kind(self) -> str:
        return f"of {self.words}"

    def how_to_mend(self) -> str:
        return "put whole files in the places of those named above"

    def identity(self) -> dict[str, dict[str, str]]:
        return {"images": {"words": self.words, "sha256": self.digest}}


def add_images_options(parser: argparse.ArgumentParser) -> None:
    """`--images` and its share for validation."""
    parser.add_argument(
        "--images",
        metavar="DIR",
        nargs="+",
        help="train on all images below these folders, on no data root",
    )
    parser.add_argument(
        "--val-fraction",
        metavar="F",
        type=command_line.fraction,
        help=f"part of --images for validation ({VAL_FRACTION:g})",
    )


def open_images(options: argparse.Namespace, paths: dict[str, Path]) -> CocoData:
    """The images of `--images`, or else a data root."""
    if options.images:
        return ImageFolders.find(paths, options.images, options.val_fraction)
    return CocoData.open(paths, options.split_file)


def require_one_source(options: argparse.Namespace) -> None:
    """Raises UsageError where `--images` stands beside another source of images, or is missing."""
    for name in ("sample", "data", "split_file"):
        if options.images and getattr(options, name):
            raise UsageError(f"--images names the data: leave out --{name.replace('_', '-')}")
    if options.val_fraction and not options.images:
        raise UsageError("--val-fraction: a part of --images: name these, too")


def _require_apart(folders: Sequence[str]) -> None:
    """Raises UsageError unless all are folders and none lies in another: it might be in both splits."""
    for number, folder in enumerate(folders):
        if not os.path.isdir(folder):
            raise UsageError(f"--images {printable(folder)}: there is no such folder")
        for other in folders[:number] + folders[number + 1 :]:
            if Path(folder).resolve().is_relative_to(Path(other).resolve()):
                raise UsageError(f"--images {printable(folder)}: it lies in {printable(other)}: name one")
