"""Caption metrics equal to the official COCO evaluation's: BLEU-1..4, ROUGE-L and CIDEr-D, without Java.

Raw captions go in; both sides are tokenized here, as the official evaluation does it, unless another way is
asked for (comparison.py).  `image_statistics` looks at every image once and keeps the few numbers from which
all else follows, vectorised over images: the figures of all (`corpus_scores`), of each (`image_scores`), and
bootstrap intervals (`confidence_intervals`).  All figures are fractions; papers print them times 100.

    >>> references = {1: ["A dog runs.", "The dog is running."], 2: ["Two red cars on a road."]}
    >>> round(score(references, {1: "A dog runs.", 2: "A red car on a road."})["BLEU-1"], 3)
    0.778

Shapes: I images, R resamples, N = 4 the longest n-gram, M = 6 metrics.

BLEU: Papineni et al. 2002.  ROUGE-L: Lin 2004.  CIDEr-D: Vedantam et al. 2015.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from scoring.ptb_tokenizer import ptb_tokenize
from support.errors import UsageError
from transformer_components.resemblance import ORDERS, NgramVector, count_ngrams, ngram_vector, resemblance

__all__ = [
    "METRICS",
    "ImageStatistics",
    "confidence_intervals",
    "corpus_scores",
    "image_scores",
    "image_statistics",
    "ptb_tokenize",
    "score",
]

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")
ROUGE_BETA = 1.2  # recall weighs this much more than precision
# The official evaluation's guards against 0 / 0.  They show in the BLEU of single images, where an order
# without any match gives a figure such as 5.9e-9 instead of 0.
TINY, SMALL = 1e-15, 1e-9

Tokenize = Callable[[list[str]], list[str]]  # of each caption its tokens, joined by blanks


@dataclass(frozen=True)
class ImageStatistics:
    """What all metrics need to know of each image; image ids ascend.

    The figures of any selection of images follow from the sums of the integers and the means of the rest.
    """

    image_ids: list[int]  # length I
    matches: torch.Tensor  # (I, N) n-grams of the hypothesis that a reference has too, int64
    candidates: torch.Tensor  # (I, N) n-grams of the hypothesis, int64
    hypothesis_lengths: torch.Tensor  # (I,) in words, int64
    reference_lengths: torch.Tensor  # (I,) of the reference nearest in length, int64
    rouge_l: torch.Tensor  # (I,) float64
    cider: torch.Tensor  # (I,) float64


def score(
    references: dict[int, list[str]], hypotheses: dict[int, str], tokenize: Tokenize = ptb_tokenize
) -> dict[str, float]:
    """Scores one caption an image against the image's references.

    Args:
        references: for each image id, its captions as people wrote them.
        hypotheses: for each of the same ids, the caption to score.  An empty one scores 0.
        tokenize: what splits captions into what is compared; by default the official words.

    Returns:
        `METRICS` as fractions.  CIDEr weighs words by the references of these very images, so figures of
        different sets of images do not compare.

    Raises:
        UsageError: the ids of the two differ, an image has no references, or there are no images.
    """
    return corpus_scores(image_statistics(references, hypotheses, tokenize))


def image_statistics(
    references: dict[int, list[str]], hypotheses: dict[int, str], tokenize: Tokenize = ptb_tokenize
) -> ImageStatistics:
    """Tokenizes and compares; arguments and errors as for `score`."""
    from nltk.translate.bleu_score import closest_ref_length  # here, since training imports this module

    _check(references, hypotheses)
    image_ids = sorted(references)
    hypothesis_captions = tokenize([hypotheses[image_id] for image_id in image_ids])
    reference_captions = [tokenize(references[image_id]) for image_id in image_ids]

    # Where a token holds a no-break space ("22 3/4"), it is two words to BLEU and CIDEr but one to ROUGE-L.
    hypothesis_words = [caption.split() for caption in hypothesis_captions]
    reference_words = [[caption.split() for caption in captions] for captions in reference_captions]
    rouge_l = [
        _rouge_l(_split(hypothesis), [_split(caption) for caption in captions])
        for hypothesis, captions in zip(hypothesis_captions, reference_captions)
    ]
    return ImageStatistics(
        image_ids,
        matches=torch.tensor([_matches(*pair) for pair in zip(hypothesis_words, reference_words)]),
        candidates=torch.tensor([[max(0, len(words) - n + 1) for n in ORDERS] for words in hypothesis_words]),
        hypothesis_lengths=torch.tensor([len(words) for words in hypothesis_words]),
        reference_lengths=torch.tensor(
            [closest_ref_length(refs, len(words)) for words, refs in zip(hypothesis_words, reference_words)]
        ),
        rouge_l=torch.tensor(rouge_l, dtype=torch.float64),
        cider=torch.tensor(_cider(hypothesis_words, reference_words), dtype=torch.float64),
    )


def corpus_scores(statistics: ImageStatistics) -> dict[str, float]:
    """The figures of all images together: BLEU from summed counts, ROUGE-L and CIDEr as means over images."""
    everything = torch.ones(1, len(statistics.image_ids), dtype=torch.float64)
    return dict(zip(METRICS, _scores_of_samples(statistics, everything)[0].tolist()))


def image_scores(statistics: ImageStatistics) -> dict[str, torch.Tensor]:
    """The figures of each image on its own, (I,) float64 for each metric, in the order of the image ids."""
    bleu = _bleu(
        statistics.matches,
        statistics.candidates,
        statistics.hypothesis_lengths,
        statistics.reference_lengths,
    )  # (I, N)
    return dict(zip(METRICS, [*bleu.unbind(dim=1), statistics.rouge_l, statistics.cider]))


def confidence_intervals(
    statistics: ImageStatistics, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Bootstrap percentile intervals (Efron 1979): how far the figures would move with other such images.

    Images are drawn with replacement.  CIDEr's word weights stay those of all images.

    Args:
        statistics: of the images that were scored.
        resamples: sets of images to draw.
        level: share of the resamples that fall between the two bounds.
        seed: the same seed gives the same intervals.

    Returns:
        (lower, upper) for each metric.
    """
    images = len(statistics.image_ids)
    draws = torch.randint(images, (resamples, images), generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros(resamples, images, dtype=torch.float64)  # (R, I) how often each image was drawn
    counts.scatter_add_(1, draws, torch.ones((), dtype=torch.float64).expand_as(draws))

    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    bounds = _scores_of_samples(statistics, counts).quantile(tails, dim=0)  # (2, M)
    return {metric: (low, high) for metric, (low, high) in zip(METRICS, bounds.T.tolist())}


def _scores_of_samples(statistics: ImageStatistics, counts: torch.Tensor) -> torch.Tensor:
    """All metrics of R selections of images, from how often each has each image: (R, I) float64 -> (R, M)."""
    bleu = _bleu(
        counts @ statistics.matches.double(),
        counts @ statistics.candidates.double(),
        counts @ statistics.hypothesis_lengths.double(),
        counts @ statistics.reference_lengths.double(),
    )  # (R, N)
    means = (
        counts @ torch.stack([statistics.rouge_l, statistics.cider], dim=1) / counts.sum(dim=1, keepdim=True)
    )
    return torch.cat([bleu, means], dim=1)


def _bleu(
    matches: torch.Tensor,
    candidates: torch.Tensor,
    hypothesis_length: torch.Tensor,
    reference_length: torch.Tensor,
) -> torch.Tensor:
    """BLEU-1..N from counts (..., N) and lengths (...) -> (..., N), guarded as the official evaluation is."""
    precisions = (matches.double() + TINY) / (candidates.double() + SMALL)
    geometric_means = (precisions.log().cumsum(dim=-1) / torch.tensor(ORDERS)).exp()
    ratio = (hypothesis_length.double() + TINY) / (reference_length.double() + SMALL)
    brevity_penalty = (1 - 1 / ratio).clamp(max=0).exp()
    return geometric_means * brevity_penalty[..., None]


def _matches(hypothesis: list[str], references: list[list[str]]) -> list[int]:
    """BLEU's clipped matches: each n-gram counts as often as the reference that says it most often does."""
    from nltk.translate.bleu_score import modified_precision

    return [modified_precision(references, hypothesis, n).numerator for n in ORDERS]


def _rouge_l(hypothesis: list[str], references: list[list[str]]) -> float:
    """F-measure of the longest common subsequence; precision and recall each of the best reference."""
    common = [_common_subsequence(hypothesis, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(hypothesis)
    recall = max(length / len(reference) for length, reference in zip(common, references) if length)
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _split(caption: str) -> list[str]:
    """The tokens between blanks, and none in an empty caption."""
    return caption.split(" ") if caption else []


def _common_subsequence(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, a row of the table at a time as the bits of one integer.

    Bit i of `row` is 0 where the length grows from the first i words to the first i + 1 (Hyyrö 2004).
    """
    places: dict[str, int] = {}
    for i, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << i
    everywhere = row = (1 << len(first)) - 1
    for word in second:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & everywhere
    return len(first) - row.bit_count()


class Cider:
    """CIDEr-D with the word weights of some images: an n-gram weighs by how few of them have it.

    Args:
        references: of each image, its captions as lists of words.
    """

    def __init__(self, references: Iterable[list[list[str]]]):
        images_with, images = Counter(), 0
        for captions in references:
            images_with.update(set().union(*map(count_ngrams, captions)))
            images += 1
        self._log_images = math.log(images)
        self._rarity = {ngram: self._log_images - math.log(count) for ngram, count in images_with.items()}

    def vector(self, words: list[str]) -> NgramVector:
        """A caption, ready to be compared with others."""
        unseen = self._log_images
        weights = {
            ngram: count * self._rarity.get(ngram, unseen) for ngram, count in count_ngrams(words).items()
        }
        return ngram_vector(weights, len(words))

    @staticmethod
    def score(hypothesis: NgramVector, references: list[NgramVector]) -> float:
        """Mean resemblance of a caption to the references of its image, over all orders, times 10."""
        return 10 * sum(resemblance(hypothesis, reference) for reference in references) / len(references)


def _cider(hypotheses: list[list[str]], references: list[list[list[str]]]) -> list[float]:
    """CIDEr-D of each image, with the word weights of these images."""
    cider = Cider(references)
    return [
        cider.score(cider.vector(words), [cider.vector(reference) for reference in captions])
        for words, captions in zip(hypotheses, references)
    ]


def _check(references: dict[int, list[str]], hypotheses: dict[int, str]) -> None:
    if not references and not hypotheses:
        raise UsageError("There is nothing to score: no references and no captions.")
    for what, ids in (
        ("have references but no caption to score", references.keys() - hypotheses.keys()),
        ("have a caption to score but no references", hypotheses.keys() - references.keys()),
        ("have an empty list of references", [i for i, captions in references.items() if not captions]),
    ):
        if ids:
            raise UsageError(f"{len(ids)} of {len(references)} images {what}: {_some(ids)}.")


def _some(ids: Iterable[int], limit: int = 5) -> str:
    """The first few ids, ascending."""
    ordered = sorted(ids)
    return ", ".join(map(str, ordered[:limit])) + (", ..." if len(ordered) > limit else "")
