"""Randomness as a pure function: the same (seed, epoch, sample) gives the same draw on any machine.

Nothing here keeps state, so there is no generator to save, restore or keep in step: the number of loader
workers, the rank of a process and a restart in the middle of an epoch change nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
