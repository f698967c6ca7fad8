"""Consensus: of a search's hypotheses the one on which the model's own samples agree most.

A search finds what is likeliest as a whole, and that is often what fits anything.  Samples show all that the
model holds possible, each thing as often as it believes in it.  If people wrote like the samples, then the
hypothesis that resembles them most, on average, would be that of least expected error: minimum Bayes risk
(Kumar and Byrne 2004; by samples, Eikema and Aziz 2020, arXiv:2005.10283; captions by the consensus of those
of similar images, Devlin et al. 2015, arXiv:1505.04467).  How much they resemble it also says how sure the
model may be of it.

Two sequences resemble each other as in CIDEr-D (Vedantam et al. 2015), but with tokens in place of words, all
of the same weight: the cosine between their counts of n-grams, averaged over n = 1 to 4, and less the more
their lengths differ.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from transformer_components.beam_search import Hypothesis

ORDERS = (1, 2, 3, 4)  # the lengths of n-grams
SIGMA = 6.0  # width of the Gaussian that punishes a difference in length, in tokens


class Profile(NamedTuple):
    """What a sequence is compared by."""

    counts: tuple[Counter[tuple[int, ...]], ...]  # of its n-grams, one for each order
    norms: tuple[float, ...]  # of the counts, Euclidean; 0 where the sequence is shorter than n
    length: int


def rank_by_consensus(hypotheses: Sequence[Hypothesis], samples: Sequence[Sequence[int]]) -> list[Hypothesis]:
    """The hypotheses of one source, that on which its samples agree most first; equal ones as they came.

    Args:
        hypotheses: of a search.
        samples: token lists, with the end token where they have one, as hypotheses have; at least one.

    Returns:
        The same hypotheses.  Their score is now the mean resemblance to the samples, 0 to 1.
    """
    drawn = Counter(map(tuple, samples))  # samples are often equal
    profiles = [(profile(sample), count) for sample, count in drawn.items()]
    scored = []
    for hypothesis in hypotheses:
        own = profile(hypothesis.tokens)
        total = sum(count * resemblance(own, other) for other, count in profiles)
        scored.append(replace(hypothesis, score=total / len(samples)))
    return sorted(scored, key=lambda hypothesis: -hypothesis.score)


def profile(tokens: Sequence[int]) -> Profile:
    """Counts a sequence's n-grams."""
    counts = tuple(Counter(zip(*(tokens[start:] for start in range(n)))) for n in ORDERS)
    norms = tuple(math.sqrt(sum(count * count for count in of_order.values())) for of_order in counts)
    return Profile(counts, norms, len(tokens))


def resemblance(hypothesis: Profile, sample: Profile) -> float:
    """How like a sample a hypothesis is, 0 to 1; what it says more often than the sample gains nothing."""
    cosines = 0.0
    for mine, other, norm, other_norm in zip(
        hypothesis.counts, sample.counts, hypothesis.norms, sample.norms
    ):
        if norm and other_norm:
            shared = sum(
                min(count, other[ngram]) * other[ngram] for ngram, count in mine.items() if ngram in other
            )
            cosines += shared / (norm * other_norm)
    difference = hypothesis.length - sample.length
    return cosines / len(ORDERS) * math.exp(-(difference**2) / (2 * SIGMA**2))
