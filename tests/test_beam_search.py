"""Beam search, driven by fake models: tables of next-token probabilities for every prefix."""

import itertools
import math

import pytest
import torch

from transformer_components.beam_search import BeamSearchOptions, Hypothesis, beam_search

START, END = 0, 1
INFINITY = float("inf")


class TableModel:
    """Draws the logits after each (source, prefix) once, and plays `step` by keeping every beam's prefix.

    It checks what `step` is promised and notes the batch shape of each call.
    """

    def __init__(self, num_sources: int, vocabulary_size: int, seed: int = 0, first_source: int = 0):
        self.vocabulary_size = vocabulary_size
        self.seed = seed
        self.beams = [(first_source + b, ()) for b in range(num_sources)]  # (source, prefix) of each flat row
        self.shapes: list[tuple[int, int]] = []

    def logits(self, source: int, prefix: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, source, prefix)) & 0x7FFFFFFF)
        return 2 * torch.randn(self.vocabulary_size, dtype=torch.float64, generator=generator)

    def step(self, tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(tokens.shape))
        beams = [
            (self.beams[row][0], (*self.beams[row][1], token))
            for row, token in zip(rows.flatten().tolist(), tokens.flatten().tolist())
        ]
        for source in range(len(tokens)):
            of_source = beams[source * tokens.shape[1] : (source + 1) * tokens.shape[1]]
            assert len({source for source, _ in of_source}) == 1  # the rows of a source stay its own
        self.beams = beams
        return torch.stack([self.logits(*beam) for beam in beams]).view(*tokens.shape, -1)

    def log_probabilities(self, source: int, prefix: tuple[int, ...], forbidden=(START,)) -> list[float]:
        logits = self.logits(source, prefix)
        logits[list(forbidden)] = -INFINITY
        return logits.log_softmax(0).tolist()


def search(model: TableModel, forbidden=(START,), **options) -> list[list[Hypothesis]]:
    return beam_search(model.step, len(model.beams), BeamSearchOptions(**options), START, END, forbidden)


def ranked(hypotheses: dict[tuple[int, ...], float], alpha: float) -> list[tuple[tuple[int, ...], float]]:
    """(tokens, score), best first."""
    scored = [(tokens, total / len(tokens) ** alpha) for tokens, total in hypotheses.items()]
    return sorted(scored, key=lambda pair: -pair[1])


def every_hypothesis(model: TableModel, source: int, max_length: int) -> dict[tuple[int, ...], float]:
    """All sequences that end in END or are cut off at max_length, with their log-probability."""
    found = {}
    for length in range(1, max_length + 1):
        for tokens in itertools.product(range(1, model.vocabulary_size), repeat=length):
            whole = END not in tokens[:-1] and (tokens[-1] == END or length == max_length)
            if whole:
                found[tokens] = sum(
                    model.log_probabilities(source, (START, *tokens[:i]))[token]
                    for i, token in enumerate(tokens)
                )
    return found


def plain_beam_search(
    model: TableModel, source: int, num_beams: int, alpha: float, max_length: int
) -> list[tuple[tuple[int, ...], float]]:
    """The same search in plain Python, one source at a time, from the words of its docstring."""
    beams = {(): 0.0}
    for _ in range(max_length):
        candidates = {}
        for tokens, total in beams.items():
            if tokens[-1:] == (END,):
                candidates[tokens] = total
                continue
            for token, log_probability in enumerate(model.log_probabilities(source, (START, *tokens))):
                candidates[(*tokens, token)] = total + log_probability
        best = ranked(candidates, alpha)[:num_beams]
        beams = {tokens: candidates[tokens] for tokens, score in best if score > -INFINITY}
    return ranked(beams, alpha)


def check_equal(hypotheses: list[Hypothesis], expected: list[tuple[tuple[int, ...], float]]) -> None:
    assert [tuple(hypothesis.tokens) for hypothesis in hypotheses] == [tokens for tokens, _ in expected]
    scores = [score for _, score in expected]
    assert [hypothesis.score for hypothesis in hypotheses] == pytest.approx(scores, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.8, 1.0, 2.5])
def test_with_enough_beams_it_is_exhaustive_search(alpha):
    """V = 4 with START forbidden and 4 tokens at most leave 31 hypotheses; 32 beams prune none of them."""
    found = search(TableModel(3, 4), num_beams=32, n_best=32, length_alpha=alpha, max_length=4)
    for source in range(3):
        expected = ranked(every_hypothesis(TableModel(3, 4), source, 4), alpha)
        assert len(expected) == 31
        check_equal(found[source], expected)


@pytest.mark.parametrize("num_beams", [1, 2, 3, 6])
@pytest.mark.parametrize("alpha", [0.0, 0.8, 2.0])
def test_with_few_beams_it_prunes_as_said(num_beams, alpha):
    found = search(TableModel(4, 7), num_beams=num_beams, n_best=num_beams, length_alpha=alpha, max_length=9)
    for source in range(4):
        check_equal(found[source], plain_beam_search(TableModel(4, 7), source, num_beams, alpha, 9))


def test_one_beam_is_greedy_search():
    model = TableModel(20, 5)
    for source, (hypothesis,) in enumerate(search(TableModel(20, 5), num_beams=1, max_length=12)):
        tokens = []
        while END not in tokens and len(tokens) < 12:
            log_probabilities = model.log_probabilities(source, (START, *tokens))
            tokens.append(max(range(5), key=log_probabilities.__getitem__))
        assert hypothesis.tokens == tokens


def test_batched_equals_single():
    together = search(TableModel(5, 6), num_beams=4, n_best=3, max_length=8)
    for source, expected in enumerate(together):
        (alone,) = search(TableModel(1, 6, first_source=source), num_beams=4, n_best=3, max_length=8)
        assert [(h.tokens, h.log_probability) for h in alone] == [
            (h.tokens, pytest.approx(h.log_probability, abs=1e-12)) for h in expected
        ]


def test_the_figures_of_a_hypothesis_agree():
    model = TableModel(3, 6)
    for source, hypotheses in enumerate(search(model, num_beams=4, n_best=4, max_length=7, length_alpha=0.7)):
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        for h in hypotheses:
            assert START not in h.tokens
            assert END not in h.tokens[:-1]
            assert h.tokens[-1] == END or len(h.tokens) == 7
            expected = [
                model.log_probabilities(source, (START, *h.tokens[:i]))[token]
                for i, token in enumerate(h.tokens)
            ]
            assert h.token_log_probabilities == pytest.approx(expected, abs=1e-12)
            assert h.log_probability == pytest.approx(sum(expected), abs=1e-12)
            assert h.score == pytest.approx(sum(expected) / len(h.tokens) ** 0.7, abs=1e-12)


class ScheduledModel(TableModel):
    """Source b must end at its token number b + 1, and cannot before."""

    def logits(self, source: int, prefix: tuple[int, ...]) -> torch.Tensor:
        logits = super().logits(source, prefix)
        if len(prefix) == source + 1:
            logits[2:] = -INFINITY
        else:
            logits[END] = -INFINITY
        return logits


def test_a_source_whose_beams_are_finished_costs_no_more_steps():
    model = ScheduledModel(4, 9)
    found = search(model, num_beams=3, n_best=3, max_length=20)
    assert model.shapes == [(4, 1), (3, 3), (2, 3), (1, 3)]
    assert [len(hypotheses[0].tokens) for hypotheses in found] == [1, 2, 3, 4]


def test_a_finished_beam_stays_as_it_is_and_competes():
    """END at once at 0.4, or 2 at 0.6 and then anything at 0.25: greedy goes wrong where two beams do not."""

    def step(tokens, rows):
        first = torch.tensor([0.0, 0.4, 0.6, 0.0, 0.0])
        later = torch.tensor([0.0, 0.25, 0.25, 0.25, 0.25])
        return torch.where((tokens == START)[:, :, None], first, later).log()

    def best(num_beams: int, alpha: float) -> Hypothesis:
        options = BeamSearchOptions(3, num_beams, alpha)
        return beam_search(step, 1, options, START, END)[0][0]

    assert best(2, 0.0).tokens == [END]
    assert best(2, 0.0).log_probability == pytest.approx(math.log(0.4))
    assert best(1, 0.0).tokens[0] == 2


def test_fewer_tokens_than_beams():
    """Two words and END in a vocabulary of 4, but 10 beams: at first there are not 10 hypotheses to keep."""
    (found,) = search(TableModel(1, 4), num_beams=10, n_best=10, max_length=1)
    check_equal(found, ranked(every_hypothesis(TableModel(1, 4), 0, 1), 0.8))
    assert len(found) == 3
    (found,) = search(TableModel(1, 4), num_beams=10, n_best=10, max_length=6)
    assert len({tuple(h.tokens) for h in found}) == 10


def test_one_source_one_beam_one_token():
    """Trap: the original crashed at batch 1 × 1 beam, where a squeeze took an axis too many."""
    model = TableModel(1, 6)
    ((found,),) = search(model, num_beams=1, max_length=1)
    assert model.shapes == [(1, 1)]
    assert len(found.tokens) == len(found.token_log_probabilities) == 1


def test_forbidden_tokens_are_never_generated_and_the_others_share_their_probability():
    """A model that is not yet trained may well want <PAD>; a caption must not hold it."""

    def step(tokens, rows):
        return torch.tensor([9.0, 0.0, 0.0, 9.0, 9.0]).expand(*tokens.shape, 5)

    options = BeamSearchOptions(4, num_beams=3, n_best=3)
    (found,) = beam_search(step, 1, options, START, END, forbidden_tokens=[0, 3, 4])
    assert {token for hypothesis in found for token in hypothesis.tokens} == {END, 2}
    assert found[0].token_log_probabilities[0] == pytest.approx(math.log(0.5))


class ImpossibleModel(TableModel):
    """Gives most tokens, and after some prefixes all, no chance at all."""

    def logits(self, source: int, prefix: tuple[int, ...]) -> torch.Tensor:
        logits = super().logits(source, prefix)
        logits[2 + len(prefix) % 3 :] = -INFINITY
        if source == 1 or prefix[-1] == 3:
            logits[:] = -INFINITY
        return logits

    def log_probabilities(self, *arguments) -> list[float]:
        return [-INFINITY if math.isnan(x) else x for x in super().log_probabilities(*arguments)]


def test_tokens_of_no_chance_are_not_generated():
    """log_softmax over nothing but -inf is NaN, and a NaN wins every comparison of topk."""
    model = ImpossibleModel(3, 6)
    found = search(model, num_beams=4, n_best=4, max_length=7)
    for source in (0, 2):
        check_equal(found[source], plain_beam_search(model, source, 4, 0.8, 7))
    assert found[1] == []  # nothing is possible, so nothing is found


@pytest.mark.parametrize("broken", [float("nan"), INFINITY])
def test_broken_logits_are_an_error(broken):
    def step(tokens, rows):
        return torch.tensor([0.0, 0.0, broken]).expand(*tokens.shape, 3)

    with pytest.raises(FloatingPointError, match="NaN or \\+inf"):
        beam_search(step, 2, BeamSearchOptions(3, 2), START, END)


def test_half_precision_logits_are_summed_in_single_precision():
    """Sums of log-probabilities in bfloat16 have steps of 0.06 at -10: captions would tie at random."""
    logits = torch.tensor([0.1, -9.0, 0.3], dtype=torch.bfloat16)
    ((found,),) = beam_search(
        lambda tokens, rows: logits.expand(*tokens.shape, 3), 1, BeamSearchOptions(50, 1), START, END
    )
    expected = 50 * logits.float().log_softmax(0)[2].item()
    assert found.log_probability == pytest.approx(expected, abs=1e-4)


def test_no_sources_give_no_hypotheses():
    assert search(TableModel(0, 4), max_length=5) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_beams": 0}, "num_beams must be at least 1, got 0"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"length_alpha": -0.1}, "length_alpha must be a number, 0 or more, got -0.1"),
        ({"length_alpha": float("nan")}, "length_alpha must be a number, 0 or more, got nan"),
        ({"num_beams": 3, "n_best": 4}, "n_best must be from 1 to num_beams = 3, got 4"),
        ({"n_best": 0}, "n_best must be from 1 to num_beams = 6, got 0"),
    ],
)
def test_impossible_options_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        BeamSearchOptions(**{"max_length": 5, **wrong})


def test_the_end_token_cannot_be_forbidden():
    with pytest.raises(ValueError, match="the end token 1 is among the forbidden"):
        search(TableModel(1, 4), forbidden=(START, END), max_length=5)
