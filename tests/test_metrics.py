"""The metrics against the official COCO evaluation, and against oracles that need no file."""

import doctest
import gzip
import json
import math
import random
import time
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from nltk.translate.bleu_score import corpus_bleu

from scoring import metrics
from scoring.metrics import (
    METRICS,
    confidence_intervals,
    corpus_scores,
    image_scores,
    image_statistics,
    score,
)
from support.errors import UsageError

SHARED = Path(__file__).parents[2] / "shared"
REFERENCE = SHARED / "reference"
CAPTIONS = SHARED / "data" / "coco_captions" / "captions_val2017.json.gz"
needs_reference = pytest.mark.skipif(
    not (REFERENCE.is_dir() and CAPTIONS.is_file()),
    reason="the official evaluation's values and COCO's captions do not lie in ../shared beside the checkout",
)

WORDS = ["a", "the", "dog", "cat", "runs", "sits", "on", "red", "road", "near"]


def random_captions(seed: int, images: int) -> tuple[dict[int, list[str]], dict[int, str]]:
    """One to five references an image; the hypothesis is one of them with some words changed."""
    draw = random.Random(seed)

    def sentence() -> list[str]:
        return draw.choices(WORDS, k=draw.randint(4, 12))

    def changed(words: list[str]) -> list[str]:
        return [draw.choice(WORDS) if draw.random() < 0.3 else word for word in words[: draw.randint(4, 12)]]

    sentences = {image: [sentence() for _ in range(draw.randint(1, 5))] for image in range(images)}
    hypotheses = {image: " ".join(changed(draw.choice(captions))) for image, captions in sentences.items()}
    return {
        image: [" ".join(words) for words in captions] for image, captions in sentences.items()
    }, hypotheses


@cache
def coco_references() -> dict[int, list[str]]:
    captions = {}
    for annotation in json.loads(gzip.decompress(CAPTIONS.read_bytes()))["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return captions


@needs_reference
@pytest.mark.parametrize("system", ["human1_vs_rest", "constant_caption"])
def test_every_figure_of_the_official_evaluation_is_met(system):
    official = json.loads((REFERENCE / f"{system}_val2017.json").read_bytes())
    references = coco_references()
    if system == "human1_vs_rest":
        hypotheses = {image: captions[0] for image, captions in references.items()}
        references = {image: captions[1:] for image, captions in references.items()}
    else:
        hypotheses = dict.fromkeys(references, "A man is standing on a street with a dog.")

    started = time.process_time()
    statistics = image_statistics(references, hypotheses)
    figures = corpus_scores(statistics)
    assert time.process_time() - started < 20

    expected = [*official["BLEU"], official["ROUGE_L"], official["CIDEr"]]
    assert list(figures) == list(METRICS)
    assert list(figures.values()) == pytest.approx(expected, rel=1e-6, abs=0)
    images = image_scores(statistics)
    assert images["BLEU-4"][:10].tolist() == pytest.approx(official["BLEU4_first10"], rel=1e-6, abs=0)
    assert images["CIDEr"][:10].tolist() == pytest.approx(official["CIDEr_first10"], rel=1e-6, abs=0)


@pytest.mark.parametrize("times", [1, 2], ids=["short", "long"])
@pytest.mark.parametrize("seed", range(3))
def test_bleu_equals_the_corpus_bleu_of_nltk(seed, times):
    references, hypotheses = random_captions(seed, images=40)
    hypotheses = {image: " ".join([caption] * times) for image, caption in hypotheses.items()}
    weights = [(1,), (1 / 2,) * 2, (1 / 3,) * 3, (1 / 4,) * 4]
    expected = corpus_bleu(
        [[caption.split() for caption in captions] for captions in references.values()],
        [caption.split() for caption in hypotheses.values()],
        weights=weights,
    )
    figures = score(references, hypotheses)
    assert [figures[f"BLEU-{n}"] for n in (1, 2, 3, 4)] == pytest.approx(expected, rel=1e-6)


def brute_force_rouge_l(hypothesis: str, references: list[str]) -> float:
    @cache
    def common(a: tuple[str, ...], b: tuple[str, ...]) -> int:
        if not a or not b:
            return 0
        if a[0] == b[0]:
            return 1 + common(a[1:], b[1:])
        return max(common(a[1:], b), common(a, b[1:]))

    words = tuple(hypothesis.split())
    pairs = [(common(words, tuple(r.split())), len(r.split())) for r in references]
    precision, recall = max(c for c, _ in pairs) / len(words), max(c / length for c, length in pairs)
    return (1 + 1.44) * precision * recall / (recall + 1.44 * precision) if precision else 0.0


@pytest.mark.parametrize("seed", range(5))
def test_rouge_l_equals_a_brute_force_search_for_the_longest_common_subsequence(seed):
    references, hypotheses = random_captions(seed, images=20)
    expected = [brute_force_rouge_l(hypotheses[image], references[image]) for image in references]
    images = image_scores(image_statistics(references, hypotheses))["ROUGE-L"]
    assert images.tolist() == pytest.approx(expected)
    assert score(references, hypotheses)["ROUGE-L"] == pytest.approx(sum(expected) / len(expected))


def dense_cider(references: dict[int, list[str]], hypotheses: dict[int, str], n: int) -> list[float]:
    """The paper's formula for one order, with a number for every n-gram that anyone says."""

    def ngrams(caption: str) -> Counter:
        words = caption.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    said = [set().union(*(ngrams(caption) for caption in captions)) for captions in references.values()]
    vocabulary = sorted(set().union(*said, *(ngrams(caption) for caption in hypotheses.values())))
    rarity = [math.log(len(said) / max(1, sum(gram in image for image in said))) for gram in vocabulary]

    def vector(caption: str) -> torch.Tensor:
        counts = ngrams(caption)
        values = [counts[gram] * weight for gram, weight in zip(vocabulary, rarity)]
        return torch.tensor(values, dtype=torch.float64)

    scores = []
    for image, captions in references.items():
        total, own = 0.0, vector(hypotheses[image])
        for caption in captions:
            other = vector(caption)
            norm = (own.norm() * other.norm()).item()
            cosine = (torch.minimum(own, other) @ other).item() / norm if norm else 0.0
            difference = len(hypotheses[image].split()) - len(caption.split())
            total += cosine * math.exp(-(difference**2) / 72)
        scores.append(10 * total / len(captions))
    return scores


@pytest.mark.parametrize("seed", range(3))
def test_cider_equals_the_formula_on_dense_vectors(seed):
    references, hypotheses = random_captions(seed, images=15)
    orders = [dense_cider(references, hypotheses, n) for n in (1, 2, 3, 4)]
    expected = [sum(figures) / 4 for figures in zip(*orders)]
    images = image_scores(image_statistics(references, hypotheses))["CIDEr"]
    assert max(expected) > 1
    assert images.tolist() == pytest.approx(expected)
    assert score(references, hypotheses)["CIDEr"] == pytest.approx(sum(expected) / len(expected))


def test_intervals_equal_scoring_every_resample_from_scratch():
    references, hypotheses = random_captions(7, images=12)
    statistics = image_statistics(references, hypotheses)
    intervals = confidence_intervals(statistics, resamples=30, level=0.8, seed=3)

    draws = torch.randint(12, (30, 12), generator=torch.Generator().manual_seed(3)).tolist()
    for metric in ("BLEU-1", "BLEU-4", "ROUGE-L"):  # CIDEr's word weights stay those of all images
        figures = [
            score(
                {i: references[k] for i, k in enumerate(draw)}, {i: hypotheses[k] for i, k in enumerate(draw)}
            )
            for draw in draws
        ]
        resampled = torch.tensor([figure[metric] for figure in figures], dtype=torch.float64)
        bounds = resampled.quantile(torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
        assert list(intervals[metric]) == pytest.approx(bounds)
    means = [statistics.cider[draw].mean() for draw in draws]
    bounds = torch.stack(means).quantile(torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
    assert list(intervals["CIDEr"]) == pytest.approx(bounds)


def test_repeating_a_reference_word_for_word_is_perfect():
    references = {3: ["A dog runs on the road.", "It runs!"], 8: ["Two red cars sit near a cat."]}
    figures = score(references, {8: "two red cars sit near a cat", 3: "a dog runs on the road"})
    assert [figures[metric] for metric in METRICS[:5]] == pytest.approx([1.0] * 5)
    alone = image_scores(image_statistics(references, {3: "nothing", 8: references[8][0]}))
    assert alone["CIDEr"].tolist() == pytest.approx([0.0, 10.0])


def test_an_empty_caption_scores_nothing():
    references = {1: ["A dog runs on the road.", "..."], 2: ["Two red cars near a cat."]}
    for empty in ("", " ", "..."):
        images = image_scores(image_statistics(references, {1: empty, 2: "Two red cars near a cat"}))
        assert [images[metric][0].item() for metric in METRICS] == [0.0] * 6
        assert score(references, dict.fromkeys(references, empty)) == dict.fromkeys(METRICS, 0.0)


def test_orders_longer_than_the_caption_count_as_the_official_evaluation_counts_them():
    """It guards 0 / 0 as 1e-15 / 1e-9, where nltk would take 0 / 1."""
    images = image_scores(image_statistics({1: ["a dog"], 2: ["a cat"]}, {1: "dog", 2: "a cat"}))
    brevity_penalty = math.exp(1 - 2)
    expected = [brevity_penalty * 1e-6 ** ((n - 1) / n) for n in (1, 2, 3, 4)]
    assert [images[f"BLEU-{n}"][0].item() for n in (1, 2, 3, 4)] == pytest.approx(expected, rel=1e-6, abs=0)


def test_images_are_scored_in_ascending_order_of_their_ids_whatever_the_order_given():
    references, hypotheses = random_captions(1, images=20)
    huge = {image * 7919 % 20 + 2**40: image for image in references}  # ids beyond 32 bits, in disorder
    references = {new: references[old] for new, old in huge.items()}
    hypotheses = {new: hypotheses[old] for new, old in reversed(huge.items())}
    statistics = image_statistics(references, hypotheses)
    ordered = image_statistics(dict(sorted(references.items())), dict(sorted(hypotheses.items())))
    assert statistics.image_ids == sorted(references)
    assert torch.equal(statistics.cider, ordered.cider)
    assert torch.equal(statistics.matches, ordered.matches)


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        ({}, {}, "nothing to score"),
        ({1: ["a"], 42: ["b"]}, {1: "a"}, r"1 of 2 images .* no caption to score: 42\."),
        ({1: ["a"]}, {1: "a", 43: "b"}, r"no references: 43\."),
        ({1: ["a"], 44: []}, {1: "a", 44: "b"}, r"empty list of references: 44\."),
        ({i: ["a"] for i in range(9)}, {}, r"9 of 9 images .*: 0, 1, 2, 3, 4, \.\.\.\."),
    ],
)
def test_images_that_cannot_be_scored_are_named(references, hypotheses, message):
    with pytest.raises(UsageError, match=message):
        score(references, hypotheses)


def test_the_example_in_the_docstring_holds():
    results = doctest.testmod(metrics)
    assert results.attempted
    assert not results.failed
