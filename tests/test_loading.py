"""Loader workers: how many there are and when."""

import multiprocessing
import os
from collections.abc import Callable

import pytest
import torch

from coco_loader import get_coco_loader
from image_transforms import EvaluationTransform
from support import distributed, loading
from support.loading import Loader, samples_or_errors
from support.sampling import EvaluationSampler

EVALUATION = EvaluationTransform(16)


@pytest.fixture
def two_cores(monkeypatch) -> None:
    monkeypatch.setattr(loading, "share_of_cores", lambda: 2)


class Numbers(torch.utils.data.Dataset):
    """Samples that are their own index; `work(index)` is done for each."""

    def __init__(self, work: Callable[[int], object]):
        self.work = work

    def __getitem__(self, key: tuple[int, int]) -> int:
        self.work(key[0])
        return key[0]

    def __getitems__(self, keys: list) -> list:
        return samples_or_errors(self, keys)

    def batch(self, samples: list) -> tuple[torch.Tensor]:
        return (torch.tensor(samples),)


# --- how many workers ---


@pytest.mark.parametrize(("cores", "processes", "workers"), [(8, 1, 5), (8, 4, 2), (8, 3, 2), (2, 8, 1)])
def test_the_processes_of_a_machine_divide_its_cores(monkeypatch, cores, processes, workers):
    """Three pools of eight workers for each of eight processes were 192 (issue 10)."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(distributed, "local_world_size", lambda: processes)
    assert Loader(Numbers(abs), EvaluationSampler(8, 4, seed=0), num_workers=5).num_workers == workers


def test_torchrun_says_how_many_processes_a_machine_has(monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert distributed.local_world_size() == 1, "it stands in the environment, but this is a plain run"
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        assert distributed.local_world_size() == 3
    finally:
        torch.distributed.destroy_process_group()


def test_only_the_training_loader_keeps_its_workers(tiny_coco, two_cores):
    options = {"batch_size": 2, "transform": EVALUATION, "num_workers": 2, "paths": tiny_coco}
    train = get_coco_loader("train", mode="image_only", shuffle=True, **options)
    others = [get_coco_loader("val", mode=mode, **options) for mode in ("image_only", "image_first")]

    def workers() -> int:
        return len(multiprocessing.active_children())

    counts = []
    with train, others[0], others[1]:
        for epoch in range(2):
            train.batch_sampler.set_epoch(epoch)
            for loader in (train, *others):
                batches = iter(loader)
                next(batches)
                counts.append(workers())
                assert list(batches)
                counts.append(workers())
    assert counts == [2, 2, 4, 2, 4, 2] * 2
    assert workers() == 0


def test_an_error_while_a_batch_is_used_ends_the_workers(tiny_coco, two_cores):
    loader = get_coco_loader("val", 2, EVALUATION, 2, mode="image_only", paths=tiny_coco)
    with pytest.raises(ZeroDivisionError), loader:
        [1 / 0 for _ in loader]
    assert not multiprocessing.active_children()
