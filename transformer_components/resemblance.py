"""How much two sequences resemble each other, as CIDEr-D has it (Vedantam et al. 2015).

The cosine between their counts of n-grams, averaged over n = 1 to 4, and the less the more their lengths
differ; what one says more often than the other gains it nothing.  Counts may be weighed.  The metric compares
a caption's words with those of people, and consensus.py a hypothesis's tokens with those of samples.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

Ngram = tuple[Hashable, ...]

ORDERS = (1, 2, 3, 4)  # the lengths of n-grams
SIGMA = 6.0  # width of the Gaussian that punishes a difference in length


@dataclass(frozen=True)
class NgramVector:
    """A sequence as it is compared."""

    weights: Mapping[Ngram, float]  # of each of its n-grams
    norms: list[float]  # Euclidean, one for each order; 0 where the sequence is shorter than n
    length: int


def count_ngrams(sequence: Sequence[Hashable]) -> Counter[Ngram]:
    """How often a sequence has each of its n-grams, of all four orders."""
    counts: Counter[Ngram] = Counter()
    for n in ORDERS:
        counts.update(zip(*(sequence[start:] for start in range(n))))
    return counts


def ngram_vector(weights: Mapping[Ngram, float], length: int) -> NgramVector:
    """
    Args:
        weights: the n-grams' counts, or these times what each is worth.
        length: of the sequence.
    """
    squares = [0.0] * len(ORDERS)
    for ngram, weight in weights.items():
        squares[len(ngram) - 1] += weight * weight
    return NgramVector(weights, [math.sqrt(square) for square in squares], length)


def resemblance(one: NgramVector, other: NgramVector) -> float:
    """How like the other one is: 0 to 1, where no weight is negative."""
    products = [0.0] * len(ORDERS)
    for ngram, weight in one.weights.items():
        if theirs := other.weights.get(ngram):
            products[len(ngram) - 1] += min(weight, theirs) * theirs
    norms = [a * b for a, b in zip(one.norms, other.norms)]
    cosine = sum(product / norm for product, norm in zip(products, norms) if norm) / len(ORDERS)
    difference = one.length - other.length
    return cosine * math.exp(-(difference**2) / (2 * SIGMA**2))
