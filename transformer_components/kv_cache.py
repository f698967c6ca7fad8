"""The memory of a decoder that writes one token at a time: no key and no value is computed twice.

The W beams of a source share everything.  The source's own keys and values lie here once, whatever W is.
The keys and values of the tokens lie in one row of slots for each source, in the order in which they came,
and a bool mask says which slots each beam descends from:

    slot            <SOS>   a   the   red   big
    beam "a red"      1     1    0     1     0
    beam "a big"      1     1    0     0     1

So to the layers the beams are nothing but W·T queries of one sequence under a mask, and to reorder beams is
to reorder the rows of that small mask: keys and values are never copied, neither from the source to its beams
nor from beam to beam.

Shapes: B sources, W beams, T new tokens of each beam, S source length, H heads, D hidden,
k key size, v value size.
"""

import torch
from torch import Tensor

from transformer_components.attention import causal_mask

SMALLEST_CAPACITY = 64  # slots; storage that is full doubles, so copying stays linear in what is written


class LayerCache:
    """Keys and values of one decoder layer."""

    def __init__(self, memory: tuple[Tensor, Tensor]):
        """
        Args:
            memory: keys (B, H, S, k) and values (B, H, S, v) of the sources.
        """
        self.memory = memory
        self.length = 0  # slots in use
        self._keys: Tensor | None = None  # (B, H, capacity, k)
        self._values: Tensor | None = None  # (B, H, capacity, v)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds keys (B, H, n, k) and values (B, H, n, v); returns all so far, as views into the storage."""
        start, self.length = self.length, self.length + keys.shape[2]
        self._keys = _stored(self._keys, keys, start)
        self._values = _stored(self._values, values, start)
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]

    def select(self, sources: Tensor) -> None:
        """Keeps only these sources, (B',) int64."""
        self.memory = tuple(tensor[sources] for tensor in self.memory)
        if self._keys is not None:
            self._keys, self._values = self._keys[sources], self._values[sources]


class DecoderCache:
    """The cache of a whole decoder stack.  Made by `TransformerDecoder.new_cache`, with one beam a source."""

    def __init__(self, memory: list[tuple[Tensor, Tensor]]):
        """
        Args:
            memory: for each layer, keys (B, H, S, k) and values (B, H, S, v) of the sources.
        """
        self.layers = [LayerCache(keys_values) for keys_values in memory]
        self.position = 0  # tokens of each beam so far: the position of the next one
        keys, _ = memory[0]
        self._visible = torch.ones(len(keys), 1, 0, dtype=torch.bool, device=keys.device)  # (B, W, slots)

    def fold(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Makes room for the next T tokens of each beam and turns the beams into queries of one sequence.

        Args:
            x: (B·W, T, D), the beams of a source side by side.

        Returns:
            The same as (B, W·T, D), and the mask (B, 1, W·T, slots) of what each may look at: the slots it
            descends from and, of its own beam's new tokens, itself and those before.

        Raises:
            ValueError: x has not B·W rows.
        """
        sources, beams, _ = self._visible.shape
        rows, tokens, _ = x.shape
        if rows != sources * beams:
            raise ValueError(f"the cache holds {sources} sources × {beams} beams, got {rows} rows")
        own_beam = torch.eye(beams, dtype=torch.bool, device=x.device)
        new = torch.kron(own_beam, causal_mask(tokens, x.device)).expand(sources, -1, -1)  # (B, W·T, W·T)
        mask = torch.cat([self._visible.repeat_interleave(tokens, dim=1), new], dim=2)  # (B, W·T, slots)
        self._visible = mask[:, tokens - 1 :: tokens]  # what the last token of each beam sees
        self.position += tokens
        return x.reshape(sources, beams * tokens, -1), mask[:, None]

    def reorder(self, rows: Tensor) -> None:
        """Says which beam so far each beam from now on continues.

        Beams may be copied, dropped, added; whole sources may be dropped, but keep their order.

        Args:
            rows: (B', W') int64, the flat row b·W + w in the batch so far.  All rows of one source come from
                one source; as many sources as before are the same sources.
        """
        sources, beams, _ = self._visible.shape
        if len(rows) != sources:
            for layer in self.layers:
                layer.select(rows[:, 0] // beams)
        self._visible = self._visible.flatten(0, 1)[rows]  # (B', W', slots)


def _stored(storage: Tensor | None, new: Tensor, start: int) -> Tensor:
    """The storage with `new` (B, H, n, ·) written from slot `start` on; a larger one if that does not fit."""
    sources, heads, count, size = new.shape
    if storage is None or start + count > storage.shape[2]:
        bigger = new.new_empty(sources, heads, max(2 * (start + count), SMALLEST_CAPACITY), size)
        if storage is not None:
            bigger[:, :, :start] = storage[:, :, :start]
        storage = bigger
    storage[:, :, start : start + count] = new
    return storage
