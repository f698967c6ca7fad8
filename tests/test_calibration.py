"""The map from a caption's score to how sure one may be, against brute force and by hand."""

import random

import pytest

from support.calibration import (
    BINS,
    Bin,
    Calibration,
    calibrate,
    calibration_error,
    foretold,
    load,
    reliability,
    save,
)


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
    assert foretold([-1.0] * 39, [0.5] * 39) is None


def test_no_caption_s_own_outcome_has_a_part_in_its_confidence():
    draw = random.Random(3)
    scores, shares = [-draw.random() for _ in range(100)], [draw.random() for _ in range(100)]
    before = foretold(scores, shares)
    for place in (0, 51, 99):
        changed = [*shares[:place], 1 - shares[place], *shares[place + 1 :]]
        after = foretold(scores, changed)
        assert after[place] == before[place]
        assert after != before


def test_the_reliability_table_is_what_one_counts_by_hand():
    confidences = [0.2] * 10 + [0.4] * 10 + [0.9] * 20
    shares = [0.0] * 10 + [0.5] * 10 + [1.0] * 20
    bins = reliability(confidences, shares)
    assert bins == [
        Bin(20, 0.2, 0.4, pytest.approx(0.3), pytest.approx(0.25)),
        Bin(20, 0.9, 0.9, pytest.approx(0.9), pytest.approx(1.0)),
    ]
    assert calibration_error(bins) == pytest.approx((0.05 + 0.1) / 2)


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
