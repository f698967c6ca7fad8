"""The map from a caption's score to how sure one may be, against brute force and by hand."""

import math
import random

import pytest
import torch

from scoring.calibration import (
    BINS,
    POWER,
    Bin,
    Calibration,
    calibrate,
    calibration_error,
    chance_error,
    cross_fitted,
    load,
    rank_correlation,
    reliability,
    save,
    sureness,
)
from transformer_components.beam_search import BeamSearchOptions, Hypothesis


@pytest.mark.parametrize("seed", range(5))
def test_pooling_equals_the_best_map_that_never_falls(seed):
    """The oracle is the minimax formula of isotonic regression, tried on all runs of bins."""
    draw = random.Random(seed)
    scores = [-draw.random() for _ in range(200)]
    shares = [min(1.0, max(0.0, 0.5 + 0.3 * score + draw.gauss(0, 0.3))) for score in scores]
    pairs = sorted(zip(scores, shares))
    means = [sum(share for _, share in pairs[20 * b : 20 * b + 20]) / 20 for b in range(BINS)]

    def mean(first: int, last: int) -> float:
        return sum(means[first : last + 1]) / (last + 1 - first)

    expected = [
        max(min(mean(first, last) for last in range(b, BINS)) for first in range(b + 1)) for b in range(BINS)
    ]
    found = calibrate(scores, shares)
    assert sorted({round(value, 9) for value in expected}) == pytest.approx(list(found.confidences))
    assert list(found.scores) == sorted(found.scores)
    assert len(found.scores) < BINS, "nothing was pooled: the example shows nothing"


def test_between_the_points_runs_a_straight_line_and_beyond_them_a_level_one():
    calibration = Calibration((-2.0, -1.0, -0.5), (0.2, 0.6, 0.9))
    asked = [-9.0, -2.0, -1.75, -1.0, -0.6, -0.5, 0.0]
    assert [calibration(score) for score in asked] == pytest.approx([0.2, 0.2, 0.3, 0.6, 0.84, 0.9, 0.9])


def test_a_single_point_gives_one_confidence():
    assert [Calibration((-1.0,), (0.4,))(score) for score in (-3.0, -1.0, 0.0)] == [0.4] * 3


def test_two_bins_are_the_means_of_the_halves():
    scores = [-float(number) for number in range(40)]  # falling
    shares = [0.8] * 20 + [0.2] * 20
    assert calibrate(scores, shares) == Calibration((-29.5, -9.5), (pytest.approx(0.2), pytest.approx(0.8)))


def test_too_few_captions_give_no_map():
    assert calibrate([-1.0] * 19, [0.5] * 19) is None
    assert cross_fitted([-1.0] * 39, [0.5] * 39) is None


def test_no_caption_s_own_outcome_has_a_part_in_its_confidence():
    draw = random.Random(3)
    scores, shares = [-draw.random() for _ in range(100)], [draw.random() for _ in range(100)]
    before = cross_fitted(scores, shares)
    for place in (0, 51, 99):
        changed = [*shares[:place], 1 - shares[place], *shares[place + 1 :]]
        after = cross_fitted(scores, changed)
        assert after[place] == before[place]
        assert after != before


def test_captions_of_one_score_have_one_confidence_whatever_their_order():
    assert calibrate([-1.0] * 40, [0.0] * 20 + [1.0] * 20) == Calibration((-1.0,), (0.5,))
    assert calibrate([-1.0] * 40, [1.0] * 20 + [0.0] * 20) == Calibration((-1.0,), (0.5,))


def test_the_reliability_table_is_what_one_counts_by_hand():
    scores = [-float(number) for number in range(40)]  # falling
    confidences = [0.9] * 20 + [0.4] * 10 + [0.2] * 10
    shares = [1.0, 0.8] * 10 + [0.5] * 10 + [0.0] * 10
    bins = reliability(scores, confidences, shares)
    chance = [(2 / math.pi) ** 0.5 * (n * d**2 / (n - 1) / n) ** 0.5 for n, d in ((20, 0.25), (20, 0.1))]
    assert bins == [
        Bin(20, -39.0, -20.0, *map(pytest.approx, (0.3, 0.25, chance[0]))),
        Bin(20, -19.0, 0.0, *map(pytest.approx, (0.9, 0.9, chance[1]))),
    ]
    assert calibration_error(bins) == pytest.approx(0.05 / 2)
    assert chance_error(bins) == pytest.approx(sum(chance) / 2)


def test_luck_of_one_half_does_not_look_like_too_high_a_confidence():
    """Two halves in which 0.7 and 0.9 were observed: the map of each is wrong by luck, and right for both.

    In order of confidence the table would say 0.9 for captions of which 0.7 was observed.
    """
    scores = [-number / 80 for number in range(80)]
    shares = [0.7, 0.9] * 40
    confidences = cross_fitted(scores, shares)
    assert sorted(set(confidences)) == pytest.approx([0.7, 0.9])
    bins = reliability(scores, confidences, shares)
    assert [(bin.confidence, bin.confirmed) for bin in bins] == [pytest.approx((0.8, 0.8))] * 4


def test_equal_confidences_are_not_told_apart_by_what_came():
    bins = reliability([-1.0] * 80, [0.5] * 80, [0.0, 1.0] * 40)
    assert [bin.confirmed for bin in bins] == [0.5] * 4


def test_an_exact_confidence_differs_by_what_chance_is_said_to_make():
    """The oracle draws each word of each caption with just the probability that is predicted."""
    draw = random.Random(7)
    errors, expected = [], []
    for _ in range(60):
        scores = [-draw.random() for _ in range(400)]
        confidences = [0.9 + 0.3 * score for score in scores]
        shares = [sum(draw.random() < chance for _ in range(10)) / 10 for chance in confidences]
        bins = reliability(scores, confidences, shares)
        errors.append(calibration_error(bins))
        expected.append(chance_error(bins))
    assert sum(errors) == pytest.approx(sum(expected), rel=0.08)


def test_a_map_comes_near_the_truth_that_outcomes_are_drawn_from():
    draw = random.Random(5)
    scores = [-2 * draw.random() for _ in range(4000)]
    shares = [sum(draw.random() < truth(score) for _ in range(10)) / 10 for score in scores]
    found = calibrate(scores, shares)
    asked = [-1.8 + 0.2 * number for number in range(9)]
    assert [found(score) for score in asked] == pytest.approx([truth(score) for score in asked], abs=0.02)


def test_sureness_is_the_power_mean_of_the_tokens_surprise():
    """The oracle is torch's norm; the figure lies between the mean and the least sure token."""
    log_probabilities = torch.tensor([-0.1, -2.0, -0.5, -0.7], dtype=torch.float64)
    expected = -float(log_probabilities.norm(POWER)) / 4 ** (1 / POWER)
    search = BeamSearchOptions(9)
    assert sureness(caption_of(log_probabilities.tolist()), search) == pytest.approx(expected, rel=1e-12)
    assert -2.0 < expected < float(log_probabilities.mean())
    assert sureness(caption_of([-0.3]), search) == pytest.approx(-0.3)
    assert sureness(caption_of([1e-9]), search) == 0  # a certain token, rounded up


def test_sureness_is_the_consensus_where_there_was_one():
    assert sureness(caption_of([-0.3]), BeamSearchOptions(9, consensus_samples=4)) == 0.25


def caption_of(log_probabilities: list[float]) -> Hypothesis:
    return Hypothesis([5] * len(log_probabilities), sum(log_probabilities), 0.25, log_probabilities)


def test_rank_correlation_is_that_of_ranks_counted_by_brute_force():
    """Values that are equal get their mean rank."""
    draw = random.Random(2)
    first = [draw.randrange(8) for _ in range(40)]
    second = [value + draw.randrange(8) for value in first]

    def ranks(values: list[int]) -> torch.Tensor:
        return torch.tensor([sum((a > b) + (a == b) / 2 for b in values) for a in values])

    expected = float(torch.corrcoef(torch.stack([ranks(first), ranks(second)]))[0, 1])
    assert rank_correlation(first, second) == pytest.approx(expected, abs=1e-6)
    assert rank_correlation([1, 2, 3], [-5, 0, 1e9]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [4, 4, 4]) == 0


def truth(score: float) -> float:
    return 1 / (1 + math.exp(-2.5 - 2 * score))


def test_a_saved_map_is_that_of_the_same_model_and_search_only(tmp_path):
    path = tmp_path / "calibration.json"
    calibration, made_for = Calibration((-1.0, -0.5), (0.3, 0.7)), {"sha256": "ab", "num_beams": 6}
    assert load(path, made_for) is None
    save(path, calibration, made_for)
    assert load(path, made_for) == calibration
    assert load(path, made_for | {"num_beams": 1}) is None
    for damage in (
        "{",
        "[]",
        '{"made_for": {"sha256": "ab", "num_beams": 6}, "scores": [], "confidences": []}',
    ):
        path.write_text(damage)
        assert load(path, made_for) is None
