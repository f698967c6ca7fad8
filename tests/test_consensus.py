"""Consensus: the hypothesis that a model's own samples agree on.

Oracles: CIDEr-D by its formula, and brute force.
"""

import dataclasses
import itertools
import random
from operator import itemgetter

import numpy as np
import pytest
import torch

from tests.static_cases import CONTEXT, END, PAD, START, UNKNOWN, random_images, restless_captioner
from transformer_components.beam_search import BeamSearchOptions, Hypothesis
from transformer_components.consensus import rank_by_consensus
from transformer_components.resemblance import count_ngrams, ngram_vector, resemblance
from transformer_components.sampling import fixed_uniform, token_lists

FORBIDDEN = [PAD, START, UNKNOWN]


def hypothesis(tokens: list[int], score: float = -1.0) -> Hypothesis:
    return Hypothesis(tokens, -2.0, score, [-1.0] * len(tokens))


def random_tokens(draw: random.Random) -> list[int]:
    """Few kinds of token, so that n-grams are shared and come twice."""
    return [draw.randrange(5) for _ in range(draw.randint(1, 14))]


def vector_of(tokens: list[int]):
    return ngram_vector(count_ngrams(tokens), len(tokens))


def by_the_formula(one: list[int], other: list[int]) -> float:
    """CIDEr-D's equation 5 (Vedantam et al. 2015), every n-gram weighing 1, as dense vectors."""
    total = 0.0
    for n in (1, 2, 3, 4):
        first, second = (
            [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)] for tokens in (one, other)
        )
        axes = sorted({*first, *second})
        g, h = (np.array([float(ngrams.count(axis)) for axis in axes]) for ngrams in (first, second))
        if g.any() and h.any():
            total += np.minimum(g, h) @ h / (np.linalg.norm(g) * np.linalg.norm(h))
    return total / 4 * np.exp(-((len(one) - len(other)) ** 2) / (2 * 6.0**2))


def test_resemblance_is_cider_d_s_formula():
    draw = random.Random(0)
    for _ in range(300):
        first, second = random_tokens(draw), random_tokens(draw)
        expected = by_the_formula(first, second)
        assert resemblance(vector_of(first), vector_of(second)) == pytest.approx(expected, abs=1e-12)
        assert 0 <= expected <= 1


def test_hypotheses_are_ranked_by_their_mean_resemblance_to_the_samples():
    draw = random.Random(1)
    samples = [random_tokens(draw) for _ in range(9)]
    samples += samples[:4]  # what is drawn twice counts twice
    hypotheses = [hypothesis(random_tokens(draw)) for _ in range(7)]
    expected = {
        tuple(h.tokens): sum(by_the_formula(h.tokens, sample) for sample in samples) / 13 for h in hypotheses
    }
    found = rank_by_consensus(hypotheses, samples)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    assert len({h.score for h in found}) > 4
    for one in found:
        assert one.score == pytest.approx(expected[tuple(one.tokens)], abs=1e-12)
        assert dataclasses.replace(one, score=-1.0) in hypotheses, "nothing but the score is new"


def test_what_agrees_equally_stays_in_the_order_of_the_search():
    found = rank_by_consensus([hypothesis([9]), hypothesis([7, 8]), hypothesis([5, 2])], [[5, 2], [5, 3]])
    assert [h.tokens for h in found] == [[5, 2], [9], [7, 8]]
    assert [h.score for h in found][1:] == [0, 0]


def test_a_sample_of_itself_is_full_agreement():
    (found,) = rank_by_consensus([hypothesis([3, 4, 3, 5, 2])], [[3, 4, 3, 5, 2]] * 3)
    assert found.score == pytest.approx(1)


def agreement(tokens: list[int], samples: list[list[int]]) -> float:
    return sum(resemblance(vector_of(tokens), vector_of(sample)) for sample in samples) / len(samples)


def options(**changes) -> BeamSearchOptions:
    return BeamSearchOptions(CONTEXT, **({"num_beams": 5, "consensus_samples": 8} | changes))


@pytest.mark.parametrize("execution", ["eager", "static"])
def test_generate_ranks_all_that_a_search_found_by_samples_that_it_draws(execution):
    model, images = restless_captioner(), random_images(6)
    memory = model.eval().encoder(images).detach()
    search = (START, END, FORBIDDEN)
    everything = model.generate(None, options(n_best=5, consensus_samples=0), *search, memory=memory)
    uniform = fixed_uniform(8, CONTEXT).expand(6, -1, -1)
    samples = token_lists(model.sample(memory, uniform, *search), END)
    assert all(len(set(map(tuple, of_source))) > 1 for of_source in samples)
    found = model.generate(images, options(n_best=3), *search, execution=execution)
    moved = 0
    for ours, theirs, drawn in zip(found, everything, samples):
        scored = [(agreement(one.tokens, drawn), one) for one in theirs]
        scored = sorted(scored, key=itemgetter(0), reverse=True)[:3]
        expected = [one for _, one in scored]
        assert [h.tokens for h in ours] == [h.tokens for h in expected]
        assert [h.score for h in ours] == pytest.approx([score for score, _ in scored])
        assert [h.log_probability for h in ours] == pytest.approx(
            [h.log_probability for h in expected], abs=1e-4
        )
        moved += ours[0].tokens != theirs[0].tokens
    assert moved


def test_an_output_depends_on_its_source_alone():
    model, images = restless_captioner(), random_images(5)
    together = model.generate(images, options(), START, END, FORBIDDEN)
    again = model.generate(images.flip(0), options(), START, END, FORBIDDEN)
    for image, (best,), (same,) in zip(images, together, reversed(again)):
        ((alone,),) = model.generate(image[None], options(), START, END, FORBIDDEN)
        assert alone.tokens == best.tokens == same.tokens
        assert alone.score == pytest.approx(best.score)


def test_searching_and_sampling_in_turns_keep_a_plan_each():
    """With one plan between them, a GPU would record both anew for every batch."""
    model, plans = restless_captioner(), []
    for images in random_images(6).split(3):
        model.generate(images, options(), START, END, FORBIDDEN, execution="static")
        plans.append((model.static_decoding._plan, model.static_sampling._plan))
    assert plans[0] == plans[1]
    assert None not in plans[0]
    assert len(set(itertools.chain(*plans))) == 2


def test_token_lists_end_with_the_end_token_or_with_the_last():
    samples = torch.tensor([[[5, 6, END, END], [5, 6, 7, 8]], [[END] * 4, [5, 6, 7, END]]])
    assert token_lists(samples, END) == [[[5, 6, END], [5, 6, 7, 8]], [[END], [5, 6, 7, END]]]


def test_a_negative_number_of_samples_is_refused():
    with pytest.raises(ValueError, match="consensus_samples must be 0 or more, got -1"):
        options(consensus_samples=-1)
