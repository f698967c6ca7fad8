"""Loader workers need no more memory at an epoch's end than at its start.

All is measured in a process of its own: a worker begins as a copy of the process that starts it, and would
write to whatever free memory earlier tests have left there.
"""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import coco_samples
from coco.data import CocoData
from coco_loader import CaptFirstDataset, ImageCaptionsDataset
from image_transforms import EvaluationTransform
from paths import locations
from tests.training_cases import ROOT
from training.loading import Loader
from training.sampling import EvaluationSampler

CAPTIONS, TOKENS = 8_000, 96  # long ones, as it is the tokens that count
WARM_UP = 20  # batches, until a worker has what it needs to make any
LITTLE = 10 * 2**20  # bytes: what other work of a worker comes to, however many captions there are

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or multiprocessing.get_start_method() != "fork",
    reason="memory is told apart by /proc, and shared by fork",
)


class ListOfLists(CaptFirstDataset):
    """Captions as Python holds them; a token is an object of its own, as those beyond 256 are."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        rows = (self.captions[row].tolist() for row in range(len(self.captions)))
        self.captions = [[1000 + token for token in row] for row in rows]

    def tokens_of(self, index: int) -> Tensor:
        return torch.tensor(self.captions[index])


@pytest.fixture
def data(tiny_coco) -> Path:
    """The root of a data set of many captions."""
    ids = torch.load(tiny_coco["train_image_ids"], weights_only=True)
    caption = [1, *[4] * (TOKENS - 2), 2]
    entries = [{"caption": caption, "image_id": ids[number % len(ids)]} for number in range(CAPTIONS)]
    torch.save(entries, tiny_coco["train_tokenized"])
    return tiny_coco["data"]


def print_growths(data: str) -> None:
    """Prints as JSON how much a worker grows by over an epoch of each kind of data set."""
    coco_samples.load_transformed = lambda *_: torch.zeros(
        3, 1, 1, dtype=torch.uint8
    )  # no time lost on images
    options = {"transform": EvaluationTransform(16), "data": CocoData(locations(data))}
    kinds = ListOfLists("train", **options), CaptFirstDataset("train", **options)
    by_image = ImageCaptionsDataset("train", captions_per_image=5, **options)
    print(json.dumps([growth(dataset) for dataset in (*kinds, by_image)]))


def growth(dataset: CaptFirstDataset) -> int:
    """By how many bytes the memory that belongs to a worker alone grows over an epoch."""
    sampler = EvaluationSampler(len(dataset), 20, seed=0)
    with Loader(dataset, sampler, num_workers=1, persistent=True) as loader:
        batches = iter(loader)
        for _ in range(WARM_UP):
            next(batches)
        (worker,) = loader._iterator._workers
        before = private_bytes(worker.pid)
        for _ in batches:
            pass
        return private_bytes(worker.pid) - before


def private_bytes(process: int) -> int:
    """What the process would free if it ended now (USS)."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))


def test_a_worker_copies_none_of_the_captions_that_it_reads(data):
    """A list of lists is copied into every worker, as reading an object writes its reference count
    (pytorch#13246): here 32 bytes and more for each token."""
    code = f"from tests.test_worker_memory import print_growths; print_growths({str(data)!r})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    naive, ours, by_image = json.loads(run.stdout.splitlines()[-1])
    assert naive > 0.9 * CAPTIONS * TOKENS * 32 > 2 * LITTLE, "else this test would see nothing"
    assert ours < LITTLE
    assert by_image < LITTLE
