"""Which samples go into which batch: pure functions of (seed, epoch), for any number of processes.

Both samplers here are batch samplers for `torch.utils.data.DataLoader`.  They yield lists of keys
`(index, sample_seed)`: whatever is random about a sample follows from its seed, and since the seed travels
with the index, a loader worker that outlives an epoch needs no word of the new one.

Randomness is a pure function, too: the same (seed, epoch, sample) gives the same draw on any machine.
Nothing here keeps state, so there is no generator to save, restore or keep in step: the number of loader
workers, the rank of a process and a restart in the middle of an epoch change nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

MASK64 = (1 << 64) - 1
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(*integers: int) -> int:
    """Hashes integers, in order, into one seed of 63 bits (SplitMix64 finalizer; Steele et al. 2014)."""
    state = 0
    for integer in integers:
        state = (state ^ (integer & MASK64)) + GOLDEN & MASK64
        state = (state ^ (state >> 30)) * FIRST & MASK64
        state = (state ^ (state >> 27)) * SECOND & MASK64
        state ^= state >> 31
    return state >> 1


def hashed_noise(seeds: torch.Tensor, count: int) -> torch.Tensor:
    """`count` 64-bit draws for each seed, equal on every device: SplitMix64 with `seed` as its state.

    Args:
        seeds: (B,) int64, one per sample.
        count: draws per sample.

    Returns:
        (B, count) int64.
    """
    steps = torch.arange(1, count + 1, device=seeds.device) * _signed(GOLDEN)  # wraps, as intended
    state = seeds[:, None] + steps  # (B, count)
    state = (state ^ _shift(state, 30)) * _signed(FIRST)
    state = (state ^ _shift(state, 27)) * _signed(SECOND)
    return state ^ _shift(state, 31)


def permutation(count: int, *key: int) -> torch.Tensor:
    """A random order of `count` things, (count,) int64: a pure function of `key`."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(mix(*key)))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the CPU's global generator starts from `seed`; afterwards it stands where it stood before."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed also reaches for the GPUs
    try:
        yield
    finally:
        torch.set_rng_state(before)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    """A logical right shift; torch's own on int64 drags the sign bit along."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


BATCHES_SORTED_TOGETHER = 100  # the more, the less padding, and the more alike the captions of a batch

Key = tuple[int, int]  # (index into the data set, seed of all that is random about the sample)


class MicroBatch(NamedTuple):
    """What one rank computes in one forward pass."""

    indices: list[int]
    real: bool  # False: there are too few samples to go round, and this one must be given weight zero


class EpochSampler:
    """Shuffled batches for training, cut into micro-batches for ranks and gradient accumulation.

    The order of an epoch is a pure function of (seed, epoch).  One optimizer step takes the next `batch_size`
    samples, whatever the number of processes; the last step of an epoch takes what is left.  A step's samples
    are cut into `world_size * accumulation` runs, equal but for one sample, and each rank computes
    `accumulation` of them.  A rank whose run is empty still computes something, or the others would wait for
    its gradients for ever: the step's first sample, marked as not real.

    Args:
        count: samples in the data set.
        batch_size: samples an optimizer step takes, over all ranks.
        seed: of the order and of the samples.
        rank: this process, 0 to world_size - 1.
        world_size: number of processes.
        accumulation: micro-batches each rank adds up before a step.
        lengths: (count,) of the samples; where given, samples of like length share a batch, so that padding
            costs little.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        lengths: Tensor | None = None,
    ):
        self.lengths = lengths
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world_size, self.accumulation = rank, world_size, accumulation
        self.steps = -(-count // batch_size)  # optimizer steps of a whole epoch
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Makes the next iteration that of `epoch`, from its step `start_step` on (counted from 0)."""
        self.epoch, self.start_step = epoch, start_step
        self.order = permutation(self.count, self.seed, epoch)
        if self.lengths is not None:
            self.order = bucket_by_length(self.order, self.lengths, self.batch_size, self.seed, epoch)

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """The `accumulation` micro-batches of this rank at one step of the epoch."""
        batch = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        runs = batch.tensor_split(self.world_size * self.accumulation)
        mine = runs[self.rank * self.accumulation : (self.rank + 1) * self.accumulation]
        return [MicroBatch((run if len(run) else batch[:1]).tolist(), real=len(run) > 0) for run in mine]

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.start_step, self.steps):
            for micro_batch in self.micro_batches(step):
                yield [(index, mix(self.seed, self.epoch, index)) for index in micro_batch.indices]

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step) * self.accumulation


class EvaluationSampler:
    """Each sample once, in ascending order; rank r takes r, r + world_size, ...: none twice and no stand-ins.

    Ranks may get different numbers of batches, so evaluation must not wait for one another between batches.
    A sample's seed does not depend on the epoch: figures of two epochs differ by the model alone.

    Args: as for `EpochSampler`, but `batch_size` is that of one rank.
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        self.indices = range(rank, count, world_size)
        self.batch_size, self.seed = batch_size, seed

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.indices), self.batch_size):
            batch = self.indices[start : start + self.batch_size]
            yield [(index, mix(self.seed, 0, index)) for index in batch]

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)


def bucket_by_length(order: Tensor, lengths: Tensor, batch_size: int, *key: int) -> Tensor:
    """Regroups a random order into batches of like length, which come in random order themselves.

    A stretch of `BATCHES_SORTED_TOGETHER` batches is sorted by length, cut into batches, and these are
    shuffled.  What makes no full batch stays at the end.

    Args:
        order: (n,) int64, samples.
        lengths: (n,) of the samples, by sample.
        batch_size: samples of a batch.
        key: of the shuffling.

    Returns:
        (n,) int64, the same samples.
    """
    full = len(order) // batch_size * batch_size
    stretches = []
    for number, stretch in enumerate(order[:full].split(BATCHES_SORTED_TOGETHER * batch_size)):
        batches = stretch[lengths[stretch].argsort(stable=True)].view(-1, batch_size)
        stretches.append(batches[permutation(len(batches), *key, number)].flatten())
    return torch.cat([*stretches, order[full:]])


def subset_of(ids: Tensor, fraction: float) -> Tensor:
    """A fixed share of things, chosen by the hash of their ids: no seed, so it is the same on every run.

    A smaller fraction chooses a part of what a greater one does.

    Args:
        ids: (n,) int64, distinct.
        fraction: share to choose, in (0, 1]; at least one is chosen.

    Returns:
        Positions in `ids` of the chosen, ascending.
    """
    chosen = max(1, round(fraction * len(ids)))
    return hashed_noise(ids, 1)[:, 0].argsort()[:chosen].sort().values
