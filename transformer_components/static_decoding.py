"""Decoding in steps of one fixed shape, which a GPU can record once and then replay: CUDA graphs.

To write one token, a decoder runs some 200 kernels of a few microseconds each, and Python takes longer to
launch them than the GPU to run them.  A CUDA graph launches them all at once.  In return every step must do
the same to the same addresses, so here, other than in `beam_search` and `kv_cache`:

    all W beams are there from the first step on, and finished sources stay until the end;
    there is a slot for every token that can come, and a mask hides those that are not written yet;
    the position is a tensor on the device, and so is all else that changes from step to step;
    the weights are a copy, cast once to the format of the products, and renewed before each decoding.

What is computed is the same, but for the order of sums.

Shapes: B sources, W beams, L tokens at most, S source length, H heads, D hidden, k key size, v value size,
V vocabulary.
"""

import copy
import warnings
from collections.abc import Callable, Collection
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from transformer_components.beam_search import (
    BeamSearchOptions,
    Hypothesis,
    advance,
    empty_beams,
    hypotheses_of,
)
from transformer_components.decoder import DecoderLayer
from transformer_components.sampling import draw

# How the steps of a decoding are run.  eager: as they come, with shapes that shrink and grow.  static: in
# fixed shapes, one kernel after the other.  graphs: these recorded and replayed.  compiled: by torch.compile
# first, which takes a minute or so, then recorded.
Execution = Literal["eager", "static", "graphs", "compiled"]
# By type of device, else eager.  A CPU has no launches to save: 8 images, 6 beams and 60 tokens in bfloat16,
# on two cores with AMX, take 1.75 s eagerly, 2.00 static, 1.87 static with the slots in sight of `graphs`.
EXECUTIONS = {"cuda": "graphs"}
TOKENS_A_GRAPH = 16  # a graph looks at as many slots as this many tokens fill, the next at twice that, ...
STEPS_BETWEEN_LOOKS = 8  # at whether all are finished: each look waits until the GPU has come so far
WARM_UP_STEPS = 2  # let libraries set themselves up before a recording, in which they may not

MemoryKeysValues = list[tuple[Tensor, Tensor]]  # of each layer, (B, H, S, k) and (B, H, S, v)


class StaticLayerCache:
    """Keys and values of one decoder layer, at addresses that stay."""

    def __init__(self, cache: "StaticCache", memory: tuple[Tensor, Tensor]):
        self._cache = cache
        self.memory = tuple(torch.zeros_like(tensor) for tensor in memory)  # (B, H, S, k), (B, H, S, v)
        slots = cache.visible.shape[2]
        # Zero where nothing is written: what the mask hides counts zero times, but zero times NaN is NaN.
        self.stored = tuple(t.new_zeros(*t.shape[:2], slots, t.shape[3]) for t in memory)  # (B, H, W·L, ·)

    def append(self, keys: Tensor, values: Tensor) -> list[Tensor]:
        """Stores keys (B, H, W, k) and values (B, H, W, v) of new tokens; returns those that are in sight."""
        return [
            storage.index_copy_(2, self._cache.slots, new)[:, :, : self._cache.slots_in_sight]
            for storage, new in zip(self.stored, (keys, values))
        ]


class StaticCache:
    """What `DecoderCache` is, for one new token of each beam at a time and L tokens in all.

    Token t of beam w lies in slot t·W + w.
    """

    def __init__(self, memory: MemoryKeysValues, num_beams: int, max_length: int):
        """
        Args:
            memory: gives shapes, format and device.
            num_beams: W.
            max_length: L.
        """
        keys, _ = memory[0]
        device = keys.device
        self.visible = torch.zeros(
            len(keys), num_beams, num_beams * max_length, dtype=torch.bool, device=device
        )  # (B, W, W·L), the slots that each beam descends from
        self.position = torch.zeros(1, dtype=torch.long, device=device)  # of the next token
        self.slots = torch.arange(num_beams, device=device)  # (W,), of the next tokens
        self._own_beam = torch.eye(num_beams, dtype=torch.bool, device=device).expand(len(keys), -1, -1)
        self.slots_in_sight = num_beams * max_length
        self.layers = [StaticLayerCache(self, keys_values) for keys_values in memory]

    def start(self, memory: MemoryKeysValues) -> None:
        """Forgets all tokens and takes in the keys and values of other sources, at most B."""
        self.visible.zero_()
        self.position.zero_()
        for layer, new in zip(self.layers, memory):
            for mine, theirs in zip(layer.memory, new):
                mine[: len(theirs)].copy_(theirs)
            for storage in layer.stored:
                storage.zero_()

    def fold(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `DecoderCache.fold`: x (B·W, 1, D) to (B, W, D), and the mask (B, 1, W, slots in sight)."""
        sources, beams, _ = self.visible.shape
        first = self.position * beams
        self.slots.copy_(torch.arange(beams, device=x.device) + first)
        self.visible.index_copy_(2, self.slots, self._own_beam)
        return x.reshape(sources, beams, -1), self.visible[:, None, :, : self.slots_in_sight]

    def reorder(self, parents: Tensor) -> None:
        """Beam w of a source from now on continues its beam parents[b, w]; parents is (B, W)."""
        history = parents[:, :, None].expand_as(self.visible)
        self.visible.copy_(self.visible.gather(1, history))


class Writer(Protocol):
    """What chooses the next token of each beam."""

    last: Tensor  # (B, W) int64, the tokens that were chosen last
    finished: Tensor  # (B, W) bool

    def start(self, sources: int) -> None:
        """Begins anew, for the first `sources` rows; the others are finished from the start."""

    def write(self, logits: Tensor, position: Tensor) -> Tensor | None:
        """Takes the logits (B, W, V) of the tokens at `position`, (1,) int64, counted from 0.

        Returns:
            The beam (B, W) that each beam continues; None: itself.
        """


class BeamWriter:
    """Beam search, see `beam_search`."""

    def __init__(
        self,
        sources: int,
        options: BeamSearchOptions,
        start_token: int,
        end_token: int,
        forbidden_tokens: Collection[int],
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.options, self.start_token, self.end_token = options, start_token, end_token
        self.forbidden = torch.tensor(list(forbidden_tokens), dtype=torch.long, device=device)
        size = (options.num_beams, options.max_length, end_token, dtype, device)
        self.beams, self._empty = empty_beams(sources, *size), empty_beams(1, *size)
        self.last = torch.full((sources, options.num_beams), start_token, device=device)
        self.finished = self.beams.finished

    def start(self, sources: int) -> None:
        self.beams.copy_(self._empty)
        self.beams.log_probability[sources:] = float("-inf")
        self.beams.finished[sources:] = True
        self.last.fill_(self.start_token)

    def write(self, logits: Tensor, position: Tensor) -> Tensor:
        logits = logits.index_fill(2, self.forbidden, float("-inf"))
        beams, parents = advance(self.beams, logits, position, self.options, self.end_token)
        self.beams.copy_(beams)
        self.last.copy_(beams.tokens.index_select(2, position).squeeze(2))
        return parents


class SampleWriter:
    """Multinomial sampling, see `sample`; `uniform` (B, W, L) is to be filled before each decoding."""

    def __init__(
        self,
        shape: torch.Size,
        start_token: int,
        end_token: int,
        forbidden_tokens: Collection[int],
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.start_token, self.end_token = start_token, end_token
        self.forbidden = torch.tensor(list(forbidden_tokens), dtype=torch.long, device=device)
        self.uniform = torch.zeros(shape, dtype=dtype, device=device)
        self.tokens = torch.full(shape, end_token, device=device)  # (B, W, L)
        self.last = torch.full(shape[:2], start_token, device=device)
        self.finished = torch.zeros(shape[:2], dtype=torch.bool, device=device)

    def start(self, sources: int) -> None:
        self.tokens.fill_(self.end_token)
        self.last.fill_(self.start_token)
        self.finished.fill_(False)
        self.finished[sources:] = True

    def write(self, logits: Tensor, position: Tensor) -> None:
        logits = logits.index_fill(2, self.forbidden, float("-inf"))
        uniform = self.uniform.index_select(2, position).squeeze(2)
        self.last.copy_(draw(logits, uniform).masked_fill(self.finished, self.end_token))
        self.tokens.index_copy_(2, position, self.last[:, :, None])
        self.finished.copy_(self.last == self.end_token)


class Plan:
    """The buffers of decodings of one shape, the step on them, and on a GPU its recordings."""

    def __init__(
        self,
        decoder: nn.Module,
        memory: MemoryKeysValues,
        writer: Writer,
        max_length: int,
        execution: Execution,
    ):
        keys, _ = memory[0]
        sources, self.num_beams = writer.last.shape
        on_gpu = keys.device.type == "cuda"
        chunk = TOKENS_A_GRAPH if execution == "graphs" else max_length  # compiling each would take minutes
        self.lengths = range(chunk, max_length + chunk, chunk)  # tokens in sight, one graph for each
        self.decoder = _copy_for_decoding(decoder, keys.dtype)
        self.cache = StaticCache(memory, self.num_beams, self.lengths[-1])
        self.writer = writer
        self.max_length, self.capacity = max_length, sources
        # Not by a call of the module: its hooks are Python, which no graph replays.
        self.forward = self.decoder.forward
        if execution == "compiled":
            # Not the whole step: Inductor 2.11 reorders in place and reads rows that it has overwritten.
            self.forward = torch.compile(self.forward, dynamic=False, fullgraph=True)
        self.graphs: list[torch.cuda.CUDAGraph] = []
        if on_gpu and execution in ("graphs", "compiled"):
            try:
                self._record()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.graphs.clear()
                warnings.warn(f"decoding goes on without CUDA graphs: {error}", stacklevel=2)

    def run(self, decoder: nn.Module, memory: MemoryKeysValues) -> None:
        """Decodes; the writer has the outcome.  The weights are the decoder's of now."""
        with torch.no_grad():
            for mine, theirs in zip(self.decoder.state_dict().values(), decoder.state_dict().values()):
                mine.copy_(theirs)
        keys, _ = memory[0]
        self.cache.start(memory)
        self.writer.start(len(keys))
        for t in range(self.max_length):
            number = t // self.lengths.step
            if self.graphs:
                self.graphs[number].replay()
            else:
                self.cache.slots_in_sight = self.num_beams * self.lengths[number]
                self._step()
            if (t + 1) % STEPS_BETWEEN_LOOKS == 0 and self.writer.finished.all():
                break

    def _step(self) -> None:
        """One more token for each beam.  On a GPU nothing in here may wait for it."""
        tokens = self.writer.last.reshape(-1, 1)
        logits = self.forward(tokens, memory=None, cache=self.cache)  # (B·W, 1, V)
        parents = self.writer.write(logits.view(*self.writer.last.shape, -1), self.cache.position)
        if parents is not None:
            self.cache.reorder(parents)
        self.cache.position += 1

    def _record(self) -> None:
        """One graph for each number of tokens in sight, all in one pool of memory: never two run at once."""
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()
        self.writer.start(self.capacity)
        for length in self.lengths:
            self.cache.slots_in_sight = self.num_beams * length
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_STEPS):
                    self.cache.position.zero_()
                    self._step()
            torch.cuda.current_stream().wait_stream(stream)
            self.cache.position.zero_()
            graph = torch.cuda.CUDAGraph()
            # "thread_local": threads that load data may go on talking to the GPU.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self._step()
            self.graphs.append(graph)


class StaticDecoding:
    """Decodes in fixed shapes, and keeps the plan of the last one for the next of like shape.

    A copy of it, as part of a copied or pickled model, is empty: recordings cannot be copied.
    """

    def __init__(self):
        self._plan: Plan | None = None
        self._key: tuple = ()

    def __reduce__(self):
        return StaticDecoding, ()

    def release(self) -> None:
        """Gives the plan's memory back."""
        self._plan, self._key = None, ()

    def search(
        self,
        decoder: nn.Module,
        memory: Tensor,
        options: BeamSearchOptions,
        start_token: int,
        end_token: int,
        forbidden_tokens: Collection[int],
        execution: Execution,
    ) -> list[list[Hypothesis]]:
        """As `beam_search`, over memory (B, S, D) of at least one source."""
        key = (options, start_token, end_token, tuple(forbidden_tokens))

        def new_writer(dtype: torch.dtype) -> BeamWriter:
            return BeamWriter(len(memory), *key, dtype, memory.device)

        memory_keys_values = _projected(decoder, memory)
        plan = self._fitting_plan(decoder, memory_keys_values, new_writer, options.max_length, execution, key)
        plan.run(decoder, memory_keys_values)
        return hypotheses_of(plan.writer.beams.select(list(range(len(memory)))), options)

    def sample(
        self,
        decoder: nn.Module,
        memory: Tensor,
        uniform: Tensor,
        start_token: int,
        end_token: int,
        forbidden_tokens: Collection[int],
        execution: Execution,
    ) -> Tensor:
        """As `sampling.sample`, over memory (B, S, D) of at least one source."""
        tokens = (start_token, end_token, tuple(forbidden_tokens))

        def new_writer(_: torch.dtype) -> SampleWriter:
            return SampleWriter(uniform.shape, *tokens, uniform.dtype, memory.device)

        memory_keys_values = _projected(decoder, memory)
        key = (*tokens, *uniform.shape[1:], uniform.dtype)
        plan = self._fitting_plan(decoder, memory_keys_values, new_writer, uniform.shape[2], execution, key)
        plan.writer.uniform[: len(uniform)].copy_(uniform)
        plan.run(decoder, memory_keys_values)
        return plan.writer.tokens[: len(uniform)].clone()

    def _fitting_plan(
        self,
        decoder: nn.Module,
        memory: MemoryKeysValues,
        new_writer: Callable[[torch.dtype], Writer],
        max_length: int,
        execution: Execution,
        key: tuple,
    ) -> Plan:
        """The plan that is there, if it fits, or a new one in its place.

        Args:
            decoder: the model's.
            memory: of the sources.
            new_writer: makes the writer, given the format of the logits.
            max_length: L.
            execution: how to run the steps.
            key: what the writer depends on besides.
        """
        keys, _ = memory[0]
        formats = (tuple(p.dtype for p in decoder.parameters()), keys.dtype, keys.device, keys.shape[1:])
        key = (key, max_length, execution, *formats)
        sources = len(keys)
        # Rows without a source cost time: a plan twice as large as it must be does not fit.
        if self._key != key or not self._plan.capacity / 2 < sources <= self._plan.capacity:
            self.release()
            with torch.inference_mode(False), torch.no_grad():
                # All of its tensors lie outside inference mode, in which torch.compile would not take them.
                dtype = next(decoder.parameters()).dtype
                self._plan = Plan(decoder, memory, new_writer(dtype), max_length, execution)
            self._key = key
        return self._plan


def _projected(decoder: nn.Module, memory: Tensor) -> MemoryKeysValues:
    return [layer.memory for layer in decoder.new_cache(memory).layers]


def _copy_for_decoding(decoder: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy whose weights no training step moves, with the products of its layers in `dtype`.

    That is what autocast would cast them to, at each step.  LayerNorms and the projection to the vocabulary
    keep their own format under autocast, too.
    """
    decoder = copy.deepcopy(decoder).eval().requires_grad_(False)
    for layer in decoder.modules():
        if isinstance(layer, DecoderLayer):
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    module.to(dtype)
    return decoder
