"""Samplers against brute force: an epoch is a permutation, and cutting it up loses and repeats nothing."""

from itertools import pairwise
from operator import itemgetter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coco.data import Ragged
from training.sampling import BATCHES_SORTED_TOGETHER, EpochSampler, EvaluationSampler, mix, subset_of


def epoch_of(sampler: EpochSampler, epoch: int, start_step: int = 0) -> list:
    sampler.set_epoch(epoch, start_step)
    return list(sampler)


def test_an_epoch_is_a_permutation_and_a_pure_function_of_seed_and_epoch():
    """A resumed run that replays epoch 0's order, or draws a new one, trains on other data than it says."""
    sampler = EpochSampler(103, batch_size=10, seed=7)
    first, second = epoch_of(sampler, 0), epoch_of(sampler, 1)
    indices = [index for batch in first for index, _ in batch]
    assert sorted(indices) == list(range(103))
    assert indices != sorted(indices)
    assert [len(batch) for batch in first] == [10] * 10 + [3]  # the small last batch is not dropped
    assert indices != [index for batch in second for index, _ in batch]
    assert first == epoch_of(EpochSampler(103, batch_size=10, seed=7), 0)
    assert second == epoch_of(EpochSampler(103, batch_size=10, seed=7), 1)
    assert first != epoch_of(EpochSampler(103, batch_size=10, seed=8), 0)


def test_the_order_does_not_depend_on_the_batch_size():
    flat = [
        [key for batch in epoch_of(EpochSampler(50, size, 0), 3) for key in batch] for size in (1, 7, 50, 64)
    ]
    assert all(left == right for left, right in pairwise(flat))


def test_a_sample_has_one_seed_an_epoch_whatever_its_batch():
    seeds = {}
    for batch in epoch_of(EpochSampler(20, 6, seed=5), 2):
        seeds |= dict(batch)
    assert seeds == {index: mix(5, 2, index) for index in range(20)}
    other = dict(key for batch in epoch_of(EpochSampler(20, 6, seed=5), 3) for key in batch)
    assert not set(seeds.values()) & set(other.values())


@pytest.mark.parametrize("lengths", [None, torch.arange(47) % 7])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_an_epoch_can_be_entered_at_any_step(accumulation, lengths):
    """Right position but wrong permutation, or a whole epoch dropped: how resuming fails elsewhere."""
    sampler = EpochSampler(47, batch_size=5, seed=1, accumulation=accumulation, lengths=lengths)
    whole = epoch_of(sampler, 4)
    for step in range(sampler.steps + 1):
        rest = epoch_of(sampler, 4, start_step=step)
        assert rest == whole[step * accumulation :]
        assert len(sampler) == len(rest)
    again = EpochSampler(47, 5, 1, accumulation=accumulation, lengths=lengths)
    assert epoch_of(sampler, 5) == epoch_of(again, 5)


def test_batches_by_length_lose_nothing_and_pad_little():
    """Sorting the whole epoch would bring the same batches each time, and the shortest captions first."""
    count, size = 10 * BATCHES_SORTED_TOGETHER + 3, 4
    lengths = torch.randint(5, 60, (count,), generator=torch.Generator().manual_seed(0))
    plain = EpochSampler(count, size, seed=1)
    sampler = EpochSampler(count, size, seed=1, lengths=lengths)

    def padding(batches: list) -> float:
        rows = [lengths[[index for index, _ in batch]] for batch in batches]
        return sum(len(row) * int(row.max()) for row in rows) / int(lengths.sum())

    first, second = epoch_of(sampler, 0), epoch_of(sampler, 1)
    assert sorted(key for batch in first for key in batch) == sorted(
        key for batch in epoch_of(plain, 0) for key in batch
    )
    assert [len(batch) for batch in first] == [size] * (count // size) + [count % size]
    assert padding(epoch_of(plain, 0)) > 1.4
    assert padding(first) < 1.02
    assert not {frozenset(map(itemgetter(0), batch)) for batch in first} & {
        frozenset(map(itemgetter(0), batch)) for batch in second
    }
    longest = [float(lengths[[index for index, _ in batch]].max()) for batch in first]
    assert abs(torch.corrcoef(torch.tensor([longest, list(range(len(longest)))]))[0, 1]) < 0.2


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 5), st.integers(1, 4))
def test_ranks_and_micro_batches_together_are_the_batch_of_one_process(count, size, world, accumulation):
    alone = EpochSampler(count, size, seed=3)
    ranks = [EpochSampler(count, size, 3, rank, world, accumulation) for rank in range(world)]
    for step in range(alone.steps):
        ((batch, _),) = alone.micro_batches(step)
        parts = [part for rank in ranks for part in rank.micro_batches(step)]
        assert len(parts) == world * accumulation
        assert [index for part in parts if part.real for index in part.indices] == batch
        assert all(
            part.indices == batch[:1] for part in parts if not part.real
        )  # never empty, or ranks would hang
        sizes = [len(part.indices) if part.real else 0 for part in parts]
        assert max(sizes) - min(sizes) <= 1
    for rank in ranks:
        yielded = [[index for index, _ in keys] for keys in rank]
        assert yielded == [part.indices for step in range(rank.steps) for part in rank.micro_batches(step)]
        assert len(rank) == len(yielded) == alone.steps * accumulation


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 40), st.integers(1, 12), st.integers(1, 5))
def test_evaluation_sees_each_sample_once_over_all_ranks(count, size, world):
    """Samples repeated to make the ranks even are counted twice in a score."""
    seen = []
    for rank in range(world):
        sampler = EvaluationSampler(count, size, 0, rank, world)
        batches = list(sampler)
        mine = [index for batch in batches for index, _ in batch]
        assert len(sampler) == len(batches)
        assert mine == list(range(rank, count, world))
        seen += mine
    assert sorted(seen) == list(range(count))


def test_evaluation_seeds_are_fixed():
    keys = [key for batch in EvaluationSampler(5, 2, seed=9) for key in batch]
    assert keys == [(index, mix(9, 0, index)) for index in range(5)]


def test_a_subset_is_the_same_on_every_run_and_grows_with_its_share():
    ids = torch.arange(1000) * 7919 + 2**31
    chosen = {share: subset_of(ids, share).tolist() for share in (0.0001, 0.1, 0.5, 1.0)}
    assert {share: len(rows) for share, rows in chosen.items()} == {0.0001: 1, 0.1: 100, 0.5: 500, 1.0: 1000}
    assert set(chosen[0.0001]) < set(chosen[0.1]) < set(chosen[0.5])
    assert all(rows == sorted(rows) for rows in chosen.values())
    assert chosen[0.1] == subset_of(ids, 0.1).tolist()
    assert chosen[0.1] != list(range(100))
    # Chosen by id and not by place: the same pictures, however they are listed.
    backwards = ids.flip(0)
    assert set(backwards[subset_of(backwards, 0.1)].tolist()) == set(ids[chosen[0.1]].tolist())


@given(st.lists(st.lists(st.integers(-(2**31), 2**31 - 1))))
def test_ragged_rows_are_the_lists_they_were_made_of(rows):
    ragged = Ragged(rows)
    assert [ragged[row].tolist() for row in range(len(ragged))] == rows
    assert ragged.values.dtype == torch.int32
