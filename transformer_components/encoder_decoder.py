"""An encoder and a decoder joined: the whole model, which can be trained and can generate.

Shapes: B sources, W beams, T tokens, S source length, M memory width, V vocabulary, H heads.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from transformer_components.beam_search import BeamSearchOptions, Hypothesis, Step, beam_search
from transformer_components.consensus import rank_by_consensus
from transformer_components.sampling import fixed_uniform, sample, token_lists
from transformer_components.static_decoding import EXECUTIONS, Execution, StaticDecoding
from transformer_components.sublayers import evaluating

Found = TypeVar("Found")


class TransformerEncoderDecoder(nn.Module):
    """Any encoder with any decoder that has

    decoder(tokens, memory, cache=None, cross_weights=None) -> logits   (B, T), (B, S, M) -> (B, T, V)
    decoder.new_cache(memory) -> DecoderCache
    decoder.context_length                                              tokens that fit
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.static_decoding, self.static_sampling = StaticDecoding(), StaticDecoding()

    def forward(
        self,
        source: Tensor,
        tokens: Tensor,
        cross_weights: list[Tensor] | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of the token that follows each of tokens (B, T).

        Args:
            source: what the encoder takes.
            tokens: (B, T) int64; or (B·C, T), C sequences of each source side by side, which is encoded once.
            cross_weights: a list to which each decoder layer appends where it looked, (B, H, T, S).
            kept: (B, S) int64, what of the source the encoder is to see, if it can be told; None: all.
        """
        memory = self.encoder(source) if kept is None else self.encoder(source, kept)  # (B, S, M)
        return self.decoder(tokens, memory, cross_weights=cross_weights)

    @torch.no_grad()  # in inference mode autocast would cast all weights anew for every token
    def generate(
        self,
        source: Tensor | None,
        options: BeamSearchOptions,
        start_token: int,
        end_token: int,
        forbidden_tokens: Collection[int] = (),
        memory: Tensor | None = None,
        execution: Execution | Literal["auto"] = "auto",
    ) -> list[list[Hypothesis]]:
        """Searches for the likeliest outputs.  Encodes once, tracks no gradient, drops nothing out.

        With `options.consensus_samples` all that a search found is ranked anew, see consensus.py.  Samples
        are drawn by the same numbers for every source, in every call: but for rounding, an output depends on
        its source alone.

        Args:
            source: what the encoder takes; None if `memory` is given.
            options: how to search.
            start_token: what every output begins with; not part of a hypothesis.
            end_token: what ends it.
            forbidden_tokens: what no output may hold, such as padding.
            memory: (B, S, M) the encoder's output, if it is there already.
            execution: how the decoder's steps are run; `auto` is what the type of device is best at.

        Returns:
            For each source its `n_best` hypotheses, best first.

        Raises:
            ValueError: not exactly one of source and memory; max_length above the decoder's context.
        """
        if (source is None) == (memory is None):
            raise ValueError("generate takes either source or memory")
        self._require_context(options.max_length)
        with evaluating(self):
            memory = self.encoder(source) if memory is None else memory  # (B, S, M)
            tokens = (start_token, end_token, forbidden_tokens)
            wanted = options if options.consensus_samples == 0 else replace(options, n_best=options.num_beams)
            found = self._decode(
                memory,
                execution,
                lambda way: self.static_decoding.search(self.decoder, memory, wanted, *tokens, way),
                lambda step: beam_search(step, len(memory), wanted, *tokens, memory.device),
            )
            if options.consensus_samples == 0:
                return found
            uniform = fixed_uniform(options.consensus_samples, options.max_length).to(memory.device)
            uniform = uniform.expand(len(memory), -1, -1)  # (B, W, L)
            samples = self.sample(memory, uniform, *tokens, execution=execution)
            return [
                rank_by_consensus(hypotheses, drawn)[: options.n_best]
                for hypotheses, drawn in zip(found, token_lists(samples, end_token))
            ]

    @torch.no_grad()
    def sample(
        self,
        memory: Tensor,
        uniform: Tensor,
        start_token: int,
        end_token: int,
        forbidden_tokens: Collection[int] = (),
        execution: Execution | Literal["auto"] = "auto",
    ) -> Tensor:
        """Draws W outputs of each source, as likely as the model says; tracks no gradient, drops nothing out.

        Args:
            memory: (B, S, M) the encoder's output.
            uniform: (B, W, L) in [0, 1): the randomness, a number for each token.
            start_token: what every output begins with; not part of a sample.
            end_token: what ends it.
            forbidden_tokens: what no output may hold, such as padding.
            execution: as for `generate`.

        Returns:
            (B, W, L) int64; from the first end token on there are only such.

        Raises:
            ValueError: L above the decoder's context.
        """
        self._require_context(uniform.shape[2])
        arguments = (uniform, start_token, end_token, forbidden_tokens)
        with evaluating(self):
            return self._decode(
                memory,
                execution,
                lambda way: self.static_sampling.sample(self.decoder, memory, *arguments, way),
                lambda step: sample(step, *arguments),
            )

    def _require_context(self, max_length: int) -> None:
        if max_length > self.decoder.context_length:
            limit = self.decoder.context_length
            raise ValueError(f"max_length {max_length} is more than the decoder's context of {limit}")

    def _decode(
        self,
        memory: Tensor,
        execution: Execution | Literal["auto"],
        static: Callable[[Execution], Found],
        eager: Callable[[Step], Found],
    ) -> Found:
        """Decodes in one of two ways: in steps of one shape, or of shapes that shrink and grow."""
        if execution == "auto":
            execution = EXECUTIONS.get(memory.device.type, "eager")
        if execution != "eager" and len(memory) > 0:
            try:
                return static(execution)
            except torch.OutOfMemoryError:
                for kept in (self.static_decoding, self.static_sampling):
                    kept.release()  # sources that leave, as below, leave room
        cache = self.decoder.new_cache(memory)

        def step(tokens: Tensor, rows: Tensor) -> Tensor:
            cache.reorder(rows)
            logits = self.decoder(tokens.reshape(-1, 1), memory=None, cache=cache)  # (B·W, 1, V)
            return logits.view(*tokens.shape, -1)  # (B, W, V)

        return eager(step)
