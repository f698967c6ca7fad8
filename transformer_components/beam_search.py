"""Beam search over any model that can be asked for next-token logits; greedy search is one beam.

It sees the model through one function, `step(tokens, rows) -> logits`:

    tokens (B, W)      the last token of each beam
    rows   (B, W)      the flat row b·W + w, in the previous call's batch, of the beam that each continues
    logits (B, W, V)   of the token that comes next

The first call has one beam a source, which holds the start token.  Beams that change places, the step from
one beam to W, and finished sources that leave the batch are all told by `rows`.

Shapes: B sources still searched, W beams, V vocabulary, L longest hypothesis, C candidates of a beam.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Step = Callable[[Tensor, Tensor], Tensor]
# How often to look which sources are finished: each look waits until a GPU has come so far.
STEPS_BETWEEN_LOOKS = {"cpu": 1}
STEPS_BETWEEN_LOOKS_AT_A_GPU = 8


@dataclass(frozen=True)
class BeamSearchOptions:
    """How to search.

    Raises:
        ValueError: a value outside its range.
    """

    max_length: (
        int  # tokens generated at most, the end token included; unfinished beams then compete as they are
    )
    num_beams: int = 6  # hypotheses kept of each source; 1 is greedy search
    length_alpha: float = 0.8  # hypotheses rank by log-probability / length^alpha; 0 favours the short
    n_best: int = 1  # hypotheses returned of each source, at most num_beams
    # Outputs drawn of each source, by whose agreement `generate` ranks hypotheses (consensus.py); 0: none.
    consensus_samples: int = 0

    def __post_init__(self):
        if self.max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {self.max_length}")
        if self.num_beams < 1:
            raise ValueError(f"num_beams must be at least 1, got {self.num_beams}")
        if not 0 <= self.length_alpha < float("inf"):
            raise ValueError(f"length_alpha must be a number, 0 or more, got {self.length_alpha}")
        if not 1 <= self.n_best <= self.num_beams:
            raise ValueError(f"n_best must be from 1 to num_beams = {self.num_beams}, got {self.n_best}")
        if self.consensus_samples < 0:
            raise ValueError(f"consensus_samples must be 0 or more, got {self.consensus_samples}")


@dataclass(frozen=True)
class Hypothesis:
    """One generated sequence."""

    tokens: list[int]  # without the start token, with the end token unless max_length cut it off
    log_probability: float  # of all tokens together, natural logarithm
    score: float  # log_probability / length^alpha, by which hypotheses rank; or their consensus
    token_log_probabilities: list[float]  # of each token, given those before it

    @property
    def mean_log_probability(self) -> float:
        """Of a token: what compares hypotheses of different sources."""
        return self.log_probability / len(self.tokens)


@dataclass(frozen=True)
class Beams:
    """The W best hypotheses so far of each source, best first."""

    tokens: Tensor  # (B, W, L) int64; the end token fills what is not written yet
    token_log_probabilities: Tensor  # (B, W, L)
    log_probability: Tensor  # (B, W); -inf is no hypothesis: there are fewer than W
    length: Tensor  # (B, W) int64, counts the end token
    finished: Tensor  # (B, W) bool

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in the order of the fields."""
        return self.tokens, self.token_log_probabilities, self.log_probability, self.length, self.finished

    def select(self, sources: list[int]) -> "Beams":
        """The beams of some sources only."""
        index = torch.tensor(sources, dtype=torch.long, device=self.length.device)
        return Beams(*(tensor[index] for tensor in self.tensors()))

    def copy_(self, other: "Beams") -> None:
        """Writes other beams, of as many sources or of one, into these tensors."""
        for mine, theirs in zip(self.tensors(), other.tensors()):
            mine.copy_(theirs)


def beam_search(
    step: Step,
    num_sources: int,
    options: BeamSearchOptions,
    start_token: int,
    end_token: int,
    forbidden_tokens: Collection[int] = (),
    device: torch.device | str = "cpu",
) -> list[list[Hypothesis]]:
    """The best continuations of the start token, for many sources at once.

    A beam that wrote the end token is finished and stays as it is.  At each step the finished beams of a
    source and all one-token extensions of its live ones compete, by log-probability / length^alpha (after Wu
    et al. 2016, section 7); the best W stay.  A source whose beams are all finished leaves the batch.

    Args:
        step: see the head of this module.
        num_sources: sources in the first call's batch.
        options: how to search.
        start_token: given to the first call, never part of a hypothesis.
        end_token: finishes a hypothesis.
        forbidden_tokens: never generated; their probability goes to the others.
        device: where `step` wants its arguments.

    Returns:
        For each source its `n_best` hypotheses, best first; fewer where fewer are possible.

    Raises:
        ValueError: the end token is forbidden.
        FloatingPointError: `step` gave logits that are NaN or +inf.
    """
    if end_token in forbidden_tokens:
        raise ValueError(f"the end token {end_token} is among the forbidden tokens")
    forbidden = torch.tensor(list(forbidden_tokens), dtype=torch.long, device=device)
    found: list[list[Hypothesis]] = [[] for _ in range(num_sources)]
    live = list(range(num_sources))  # the sources still in the batch
    tokens = torch.full((num_sources, 1), start_token, device=device)
    rows = torch.arange(num_sources, device=device)[:, None]
    position = torch.zeros(1, dtype=torch.long, device=device)
    beams = None

    for length in range(1, options.max_length + 1):
        if not live:
            break
        logits = step(tokens, rows).index_fill(2, forbidden, float("-inf"))  # (B, W, V)
        if beams is None:
            beams = empty_beams(len(live), 1, options.max_length, end_token, logits.dtype, device)
        beams, parents = advance(beams, logits, position, options, end_token)
        position += 1
        first_rows = torch.arange(len(live), device=device)[:, None] * logits.shape[1]
        rows = first_rows + parents  # (B, W)

        if length == options.max_length:
            done = [True] * len(live)
        elif length % STEPS_BETWEEN_LOOKS.get(rows.device.type, STEPS_BETWEEN_LOOKS_AT_A_GPU) == 0:
            done = beams.finished.all(dim=1).tolist()  # the one place that waits for the device
        else:
            done = []  # a finished source that stays does not change
        if any(done):
            leaving = [b for b, is_done in enumerate(done) if is_done]
            staying = [b for b, is_done in enumerate(done) if not is_done]
            for b, hypotheses in zip(leaving, hypotheses_of(beams.select(leaving), options)):
                found[live[b]] = hypotheses
            live = [live[b] for b in staying]
            beams, rows = beams.select(staying), rows[staying]
        tokens = beams.tokens[:, :, length - 1]  # (B, W)
    return found


def empty_beams(
    sources: int, beams: int, max_length: int, end_token: int, dtype: torch.dtype, device: torch.device | str
) -> Beams:
    """What a search starts from: the first beam of each source is empty, the others are no hypotheses yet.

    Args:
        sources: B.
        beams: W.
        max_length: L.
        end_token: fills what is not written yet.
        dtype: of the logits; log-probabilities are kept in the same, but never below float32.
        device: where they lie.
    """
    shape, dtype = (sources, beams), torch.promote_types(dtype, torch.float32)
    missing = (torch.arange(beams, device=device) > 0).expand(
        shape
    )  # counts as finished: nothing waits for it
    return Beams(
        tokens=torch.full((*shape, max_length), end_token, device=device),
        token_log_probabilities=torch.zeros(*shape, max_length, dtype=dtype, device=device),
        log_probability=torch.zeros(shape, dtype=dtype, device=device).masked_fill(missing, float("-inf")),
        length=torch.zeros(shape, dtype=torch.long, device=device),
        finished=missing.clone(),
    )


def advance(
    beams: Beams, logits: Tensor, position: Tensor, options: BeamSearchOptions, end_token: int
) -> tuple[Beams, Tensor]:
    """One step of the search, in which nothing waits for the device.

    Args:
        beams: w beams of each source, w = 1 or W.
        logits: (B, w, V).
        position: (1,) int64, on the device: of the token that this step adds, counted from 0.
        options: how to search.
        end_token: finishes a hypothesis.

    Returns:
        The best W, and for each the beam (B, W) that it continues.
    """
    tokens, log_probabilities = _extensions(beams, logits, options.num_beams, end_token)  # (B, w, C)
    candidates = tokens.shape[2]
    totals = beams.log_probability[:, :, None] + log_probabilities
    lengths = torch.where(beams.finished, beams.length, position + 1)  # (B, w)
    scores = totals / (lengths.to(totals.dtype) ** options.length_alpha)[:, :, None]

    _, best = scores.flatten(1).topk(options.num_beams)  # (B, W), best first
    parents = best // candidates
    totals = totals.flatten(1).gather(1, best)
    tokens = tokens.flatten(1).gather(1, best)
    log_probabilities = log_probabilities.flatten(1).gather(1, best)
    history = parents[:, :, None].expand(-1, -1, beams.tokens.shape[2])  # (B, W, L)
    return Beams(
        beams.tokens.gather(1, history).index_copy_(2, position, tokens[:, :, None]),
        beams.token_log_probabilities.gather(1, history).index_copy_(
            2, position, log_probabilities[:, :, None]
        ),
        totals,
        lengths.gather(1, parents),
        finished=tokens == end_token,
    ), parents


def _extensions(beams: Beams, logits: Tensor, num_beams: int, end_token: int) -> tuple[Tensor, Tensor]:
    """The candidates of each beam: its W best next tokens and, last, itself as it is.

    More than W extensions of one beam cannot be among the best W.  Staying as it is counts as one more end
    token of log-probability 0: finished beams may do that and nothing else, live ones all but that.

    Returns:
        Tokens (B, w, C) and their log-probabilities, -inf where there is no such candidate.
    """
    logits = logits.to(beams.log_probability.dtype)
    top, tokens = logits.topk(min(num_beams, logits.shape[2]))
    missing = (0, num_beams - top.shape[2])  # where the vocabulary is smaller than W
    top, tokens = F.pad(top, missing, value=float("-inf")), F.pad(tokens, missing)  # (B, w, W)
    log_probabilities = top - logits.logsumexp(dim=2, keepdim=True)
    impossible = (top == float("-inf")) | beams.finished[:, :, None]
    log_probabilities = log_probabilities.masked_fill(impossible, float("-inf"))
    stay = torch.zeros_like(beams.log_probability).masked_fill(~beams.finished, float("-inf"))  # (B, w)
    # An impossible extension counts as finished: nothing waits for it, and its token is a token.
    tokens = tokens.masked_fill(impossible, end_token)
    return F.pad(tokens, (0, 1), value=end_token), torch.cat([log_probabilities, stay[:, :, None]], dim=2)


def hypotheses_of(beams: Beams, options: BeamSearchOptions) -> list[list[Hypothesis]]:
    """The `n_best` of each source as plain Python values."""
    if not (beams.log_probability < float("inf")).all():
        raise FloatingPointError("beam search got logits that are NaN or +inf")
    columns = (beams.tokens, beams.token_log_probabilities, beams.log_probability, beams.length)
    sources = zip(*(column[:, : options.n_best].tolist() for column in columns))
    return [
        [_hypothesis(*beam, options) for beam in zip(*source) if beam[2] > float("-inf")]
        for source in sources
    ]


def _hypothesis(
    tokens: list[int], log_probabilities: list[float], total: float, length: int, options: BeamSearchOptions
) -> Hypothesis:
    score = total / length**options.length_alpha
    return Hypothesis(tokens[:length], total, score, log_probabilities[:length])
