"""The cache: whatever is decoded through it equals the same decoded without."""

import pytest
import torch
from torch import nn

from transformer_components.decoder import TransformerDecoder
from transformer_components.kv_cache import DecoderCache, LayerCache
from transformer_components.sublayers import StackConfig

CONFIG = StackConfig(num_layers=3, num_heads=2, hidden_size=8, key_size=3, value_size=5, feedforward_size=16)
SOURCES, LENGTH, MEMORY = 3, 9, 6


@pytest.fixture(params=[False, True], ids=["post-norm", "pre-norm"])
def decoder(request):
    config = StackConfig(**{**vars(CONFIG), "pre_norm": request.param})
    decoder = TransformerDecoder(config, MEMORY).double()
    torch.manual_seed(1)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        yield decoder


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunks", [[1] * LENGTH, [LENGTH], [4, 1, 3, 1], [1, 8]])
def test_with_cache_equals_without(decoder, chunks):
    """Token by token, all at once, and in chunks: a chunk needs a causal mask behind what is cached."""
    x, memory = draw(SOURCES, LENGTH, 8), draw(SOURCES, 4, MEMORY)
    cache = decoder.new_cache(memory)
    parts = [decoder(chunk, None, cache) for chunk in x.split(chunks, dim=1)]
    close(torch.cat(parts, dim=1), decoder(x, memory))
    assert cache.position == LENGTH


def test_long_sequences_outgrow_the_storage_without_a_trace(decoder):
    x, memory = draw(2, 150, 8), draw(2, 4, MEMORY)
    cache = decoder.new_cache(memory)
    parts = [decoder(token, None, cache) for token in x.split(1, dim=1)]
    close(torch.cat(parts, dim=1), decoder(x, memory))


def test_storage_doubles_so_that_copying_stays_linear():
    cache, allocations = LayerCache((torch.empty(0), torch.empty(0))), set()
    for _ in range(1000):
        keys, _ = cache.append(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
        allocations.add(keys.untyped_storage().nbytes())
    assert cache.length == keys.shape[2] == 1000
    assert len(allocations) <= 5


@pytest.mark.parametrize("seed", range(5))
def test_random_histories_of_beams_equal_plain_sequences(decoder, seed):
    """Beams are widened, copied, dropped and reordered, sources leave, chunks of 1 to 3 tokens come.

    The oracle keeps the whole sequence of every beam and runs it without a cache.
    """
    generator = torch.Generator().manual_seed(seed)

    def randint(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator)

    memory = draw(SOURCES, 4, MEMORY)
    cache = decoder.new_cache(memory)
    sequences = torch.zeros(SOURCES, 1, 0, 8, dtype=torch.float64)  # (B, W, T, D)
    for _ in range(8):
        sources, beams = sequences.shape[:2]
        staying = torch.arange(sources)
        if sources > 1 and randint(3).item() == 0:
            staying = staying[torch.arange(sources) != randint(sources)]
        rows = staying[:, None] * beams + randint(beams, len(staying), 1 + randint(4).item())
        cache.reorder(rows)
        memory, sequences = memory[staying], sequences.flatten(0, 1)[rows]
        new = torch.randn(*rows.shape, 1 + randint(3).item(), 8, dtype=torch.float64, generator=generator)
        sequences = torch.cat([sequences, new], dim=2)
        actual = decoder(new.flatten(0, 1), None, cache)
        each_memory = memory.repeat_interleave(rows.shape[1], dim=0)
        close(actual, decoder(sequences.flatten(0, 1), each_memory)[:, -new.shape[2] :])


def test_memory_is_projected_once_and_held_once_for_all_beams(decoder):
    """The faulty version copied keys and values of the image for every beam: six times the memory."""
    calls = []
    for layer in decoder.layers:
        for projection in (layer.cross_attention.key_projection, layer.cross_attention.value_projection):
            projection.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape))
    memory = draw(SOURCES, 4, MEMORY)
    cache = decoder.new_cache(memory)
    held = [tensor for layer in cache.layers for tensor in layer.memory]
    decoder(draw(SOURCES, 1, 8), memory, cache)
    cache.reorder(torch.arange(SOURCES)[:, None].expand(-1, 6))
    for _ in range(3):
        decoder(draw(SOURCES * 6, 1, 8), None, cache)
        cache.reorder(torch.arange(SOURCES * 6).view(SOURCES, 6).flip(1))
    assert calls == [(SOURCES, 4, MEMORY)] * 6
    now = [tensor for layer in cache.layers for tensor in layer.memory]
    assert all(before is after for before, after in zip(held, now))
    assert cache.layers[0].memory[0].shape == (SOURCES, 2, 4, 3)  # (B, H, S, k)
    assert cache.layers[0].memory[1].shape == (SOURCES, 2, 4, 5)  # (B, H, S, v)


def test_finished_sources_leave_the_cache(decoder):
    memory = draw(SOURCES, 4, MEMORY)
    cache = decoder.new_cache(memory)
    decoder(draw(SOURCES, 2, 8), None, cache)
    cache.reorder(torch.tensor([[0, 0], [2, 2]]))
    for layer in cache.layers:
        keys, values = layer.append(torch.zeros(2, 2, 1, 3), torch.zeros(2, 2, 1, 5))
        assert len(keys) == len(values) == len(layer.memory[0]) == len(layer.memory[1]) == 2


def test_neither_memory_nor_cache_is_refused(decoder):
    with pytest.raises(ValueError, match="needs a memory or a cache"):
        decoder(draw(SOURCES, 2, 8), None)


def test_wrong_number_of_rows_is_refused():
    keys_values = (torch.zeros(2, 1, 4, 3), torch.zeros(2, 1, 4, 3))
    with pytest.raises(ValueError, match="holds 2 sources × 1 beams, got 5 rows"):
        DecoderCache([keys_values]).fold(torch.zeros(5, 1, 8))
