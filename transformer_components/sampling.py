"""Multinomial sampling: captions drawn as the model says how likely they are, several of each source.

All randomness comes in as numbers between 0 and 1, one for each token, so the same numbers give the same
captions whatever the batch, the device or the process (but for rounding).

Shapes: B sources, W samples of each, V vocabulary, L longest sample.
"""

from collections.abc import Collection

import torch
from torch import Tensor

from transformer_components.beam_search import Step


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the cumulated probabilities exceed `uniform`: inversion of the distribution.

    Args:
        logits: (..., V); -inf is never drawn.
        uniform: (...) in [0, 1).

    Returns:
        (...) int64.
    """
    probabilities = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    cumulated = probabilities.cumsum(-1)
    reached = uniform[..., None] * cumulated[..., -1:]
    tokens = torch.searchsorted(cumulated, reached, right=True).clamp_(max=logits.shape[-1] - 1)
    # Sums are rounded, so at the border of two tokens one that has no chance may turn up.
    possible = probabilities.gather(-1, tokens) > 0
    return torch.where(possible, tokens, logits.argmax(-1, keepdim=True)).squeeze(-1)


def sample(
    step: Step,
    uniform: Tensor,
    start_token: int,
    end_token: int,
    forbidden_tokens: Collection[int] = (),
) -> Tensor:
    """Samples of many sources at once.  A source whose samples are all finished leaves the batch.

    Args:
        step: see the head of beam_search.py; here the first call has W rows a source, too.
        uniform: (B, W, L) in [0, 1), one number for each token.
        start_token: given to the first call, never part of a sample.
        end_token: finishes a sample.
        forbidden_tokens: never drawn; their probability goes to the others.

    Returns:
        (B, W, L) int64; from the first end token on there are only such.

    Raises:
        ValueError: the end token is forbidden.
    """
    if end_token in forbidden_tokens:
        raise ValueError(f"the end token {end_token} is among the forbidden tokens")
    device, (sources, samples, max_length) = uniform.device, uniform.shape
    forbidden = torch.tensor(list(forbidden_tokens), dtype=torch.long, device=device)
    found = torch.full(uniform.shape, end_token, device=device)
    live = torch.arange(sources, device=device)  # the sources still in the batch
    rows = live[:, None].expand(-1, samples)  # (B, W), into the batch of the call before
    tokens = torch.full((sources, samples), start_token, device=device)
    finished = torch.zeros_like(tokens, dtype=torch.bool)
    for t in range(max_length):
        if len(live) == 0:
            break
        logits = step(tokens, rows).index_fill(2, forbidden, float("-inf"))  # (B, W, V)
        tokens = draw(logits, uniform[live, :, t]).masked_fill(finished, end_token)
        found[live, :, t] = tokens
        finished = tokens == end_token
        staying = (~finished.all(dim=1)).nonzero()[:, 0]
        rows = staying[:, None] * samples + torch.arange(samples, device=device)
        live, tokens, finished = live[staying], tokens[staying], finished[staying]
    return found


def fixed_uniform(samples: int, max_length: int) -> Tensor:
    """Numbers for samples of one source, (W, L) in [0, 1): always the same."""
    return torch.rand(samples, max_length, generator=torch.Generator().manual_seed(0))


def lengths_of(samples: Tensor, end_token: int) -> Tensor:
    """(B, W, 1) int64: tokens of each sample (B, W, L), the end token included."""
    before = (samples != end_token).sum(dim=2, keepdim=True)  # only end tokens follow the first
    return (before + 1).clamp(max=samples.shape[2])


def token_lists(samples: Tensor, end_token: int) -> list[list[list[int]]]:
    """The tokens of samples (B, W, L), each to its end token or to the last."""
    lengths = lengths_of(samples, end_token).squeeze(2).tolist()
    return [[tokens[:length] for tokens, length in zip(*source)] for source in zip(samples.tolist(), lengths)]
