"""Randomness as a pure function: against a plain SplitMix64, and in what must not disturb it."""

import torch

from training.sampling import GOLDEN, MASK64, hashed_noise, mix, permutation, seeded


def splitmix64(state: int) -> int:
    """Vigna's reference, in Python integers."""
    z = state & MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


def test_noise_is_splitmix64_seed_by_seed():
    seeds = torch.tensor([0, 1, 2**62 + 12345, -7])
    noise = hashed_noise(seeds, 5)
    for row, seed in enumerate(seeds.tolist()):
        expected = [splitmix64(seed + (step + 1) * GOLDEN) for step in range(5)]
        assert [value & MASK64 for value in noise[row].tolist()] == expected


def test_the_published_first_output_of_seed_zero():
    assert hashed_noise(torch.tensor([0]), 1).item() & MASK64 == 0xE220A8397B1DCDAF


def test_mix_tells_order_length_and_value_apart():
    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0), (2**63,), (-1,)]
    assert len({mix(*key) for key in keys}) == len(keys)
    assert all(0 <= mix(*key) < 2**63 for key in keys)


def test_permutation_depends_on_its_key_alone():
    torch.manual_seed(1)
    first = permutation(50, 3, 4)
    torch.manual_seed(2)
    assert torch.equal(first, permutation(50, 3, 4))
    assert not torch.equal(first, permutation(50, 3, 5))
    assert first.sort().values.tolist() == list(range(50))


def test_a_seeded_block_leaves_the_global_generator_as_it_was():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with seeded(99):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded(99):
        assert torch.equal(torch.rand(3), inside)
