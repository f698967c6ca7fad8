"""Consensus: of a search's hypotheses the one on which the model's own samples agree most.

A search finds what is likeliest as a whole, and that is often what fits anything.  Samples show all that the
model holds possible, each thing as often as it believes in it.  If people wrote like the samples, then the
hypothesis that resembles them most, on average, would be that of least expected error: minimum Bayes risk
(Kumar and Byrne 2004; by samples, Eikema and Aziz 2020, arXiv:2005.10283; captions by the consensus of those
of similar images, Devlin et al. 2015, arXiv:1505.04467).  How much they resemble it also says how sure the
model may be of it.

How alike two of them are, resemblance.py says, over tokens that all weigh the same.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from transformer_components.beam_search import Hypothesis
from transformer_components.resemblance import NgramVector, count_ngrams, ngram_vector, resemblance


def rank_by_consensus(hypotheses: Sequence[Hypothesis], samples: Sequence[Sequence[int]]) -> list[Hypothesis]:
    """The hypotheses of one source, that on which its samples agree most first; equal ones as they came.

    Args:
        hypotheses: of a search.
        samples: token lists, with the end token where they have one, as hypotheses have; at least one.

    Returns:
        The same hypotheses.  Their score is now the mean resemblance to the samples, 0 to 1.
    """
    drawn = Counter(map(tuple, samples))  # samples are often equal
    vectors = [(_vector(sample), count) for sample, count in drawn.items()]
    scored = []
    for hypothesis in hypotheses:
        own = _vector(hypothesis.tokens)
        total = sum(count * resemblance(own, other) for other, count in vectors)
        scored.append(replace(hypothesis, score=total / len(samples)))
    return sorted(scored, key=lambda hypothesis: -hypothesis.score)


def _vector(tokens: Sequence[int]) -> NgramVector:
    return ngram_vector(count_ngrams(tokens), len(tokens))
