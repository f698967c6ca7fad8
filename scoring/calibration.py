"""How sure a captioner may be: from the score of a caption to the share of its words that people confirm.

A caption's score, `sureness`, is how much samples for the same image agree with it (consensus.py), or, where
none were drawn, a mean of its tokens' log-probabilities in which the least sure tokens count most.  It ranks
captions, but says nothing in itself: how high a network's probabilities are depends on how long it was
trained (Guo et al. 2017, arXiv:1706.04599).
So the share of words that stand in an image's references is measured on a validation split, for captions of
low score and of high, and a map that never falls is laid through it.

    bins           captions in order of score, cut into runs of equal length
    points         mean score and mean share of each bin, neighbours pooled while the share falls
                   (isotonic regression by pooling adjacent violators, Zadrozny and Elkan 2002)
    in between     a straight line; beyond the ends, the value there

What that is worth shows on captions that had no part in it: each half of them by the map of the other half.
Rows of such a table are sorted by score.  Sorting by confidence would select captions whose fit happened to
be optimistic, and even an exact confidence would look too high there.
"""

import argparse
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from statistics import StatisticsError, correlation, fmean, stdev
from typing import Any, TypeVar

from support.command_line import search_asked_for
from support.files import read_json, write_json
from training.checkpoints import digest, stem
from transformer_components.beam_search import BeamSearchOptions, Hypothesis

BINS = 10  # at most
FEWEST_IN_BIN = 20  # captions
# Of the power mean of -log p: 1 is the plain mean, infinity the least sure token alone.  On 1,000 photographs
# the rank correlation with a caption's own CIDEr was 0.295 with 1, 0.339 with 2, 0.351 with 3, 0.347 with 4,
# and 0.300 with infinity.
POWER = 3

Row = TypeVar("Row")


@dataclass(frozen=True)
class Calibration:
    """A map from scores to confidences, by its corner points."""

    scores: tuple[float, ...]  # ascending
    confidences: tuple[float, ...]  # ascending, 0 to 1

    def __call__(self, score: float) -> float:
        """The share of words, 0 to 1, to expect of a caption of this score."""
        right = bisect_right(self.scores, score)
        if right in (0, len(self.scores)):
            return self.confidences[min(right, len(self.scores) - 1)]
        (x0, x1), (y0, y1) = self.scores[right - 1 : right + 1], self.confidences[right - 1 : right + 1]
        return y0 + (y1 - y0) * (score - x0) / (x1 - x0)


@dataclass(frozen=True)
class Bin:
    """Captions of similar score."""

    captions: int
    lowest: float  # score
    highest: float  # score
    confidence: float  # the mean
    confirmed: float  # mean share of words that people confirm
    chance: float  # their mean difference if the confidence is exact: sampling noise alone


def sureness(caption: Hypothesis, search: BeamSearchOptions) -> float:
    """The score of a caption: its consensus, 0 to 1, if the search had one.

    Else 0 or less: the negative power mean of the surprise -log p of its tokens.
    """
    if search.consensus_samples:
        return caption.score
    surprises = (max(0.0, -log_p) for log_p in caption.token_log_probabilities)
    return -(fmean(surprise**POWER for surprise in surprises) ** (1 / POWER))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's correlation of two columns, -1 to 1; 0 where all values of one are equal."""
    columns = []
    for values in (first, second):
        ordered = sorted(values)
        columns.append([bisect_left(ordered, value) + bisect_right(ordered, value) for value in values])
    try:
        return correlation(*columns)
    except StatisticsError:
        return 0.0


def save(path: Path, calibration: Calibration, made_for: Mapping[str, Any]) -> None:
    """Writes the map, and what it was measured on: it holds for nothing else."""
    points = {"scores": calibration.scores, "confidences": calibration.confidences}
    write_json(path, {"made_for": dict(made_for), **points})


def load(path: Path, made_for: Mapping[str, Any]) -> Calibration | None:
    """The map that `save` wrote for the same; None where there is none, or it is of something else."""
    content = read_json(path, {})
    columns = [content.get("scores"), content.get("confidences")]
    sound = all(
        isinstance(c, list) and c and all(type(x) is float and math.isfinite(x) for x in c) for c in columns
    )
    if content.get("made_for") != dict(made_for) or not sound or len(columns[0]) != len(columns[1]):
        return None
    return Calibration(*map(tuple, columns))


def calibration_path(checkpoint: Path, search: Sequence[str] = ()) -> Path:
    """The file beside a checkpoint that says how sure its captioner may be.

    Args:
        checkpoint: the captioner's.
        search: what `other_search` gives.
    """
    return checkpoint.with_name("_".join([stem(checkpoint), *search, "calibration.json"]))


def other_search(options: argparse.Namespace, state: dict[str, Any]) -> list[str]:
    """How a search is to differ from the checkpoint's own, each in a word for the name of a file.

    Args:
        options: of the command line, see `add_search_options`.
        state: what the checkpoint holds.
    """
    own, words = state["config"], {"num_beams": "beams", "consensus_samples": "consensus"}
    asked_for = search_asked_for(options).items()
    return [f"{words[key]}{value}" for key, value in asked_for if value not in (None, own[key])]


def calibrated_for(checkpoint: Path, options: BeamSearchOptions) -> dict[str, Any]:
    """What a calibration holds for: this model, searching like this, and this kind of score."""
    search = {"num_beams": options.num_beams, "length_alpha": options.length_alpha}
    kind = {"consensus_samples": options.consensus_samples} if options.consensus_samples else {"power": POWER}
    return {"sha256": digest(checkpoint), **search, **kind}


def calibrate(scores: Sequence[float], shares: Sequence[float]) -> Calibration | None:
    """Fits the map; None where there are too few captions to tell.

    Args:
        scores: of captions, as `sureness` gives them.
        shares: of each caption's words, those that stand in a reference, 0 to 1.
    """
    pooled: list[tuple[int, float, float]] = []  # captions, mean score, mean share
    for run in _runs(sorted(zip(scores, shares), key=itemgetter(0))):
        block = len(run), *map(fmean, zip(*run))
        while pooled and not (pooled[-1][1] < block[1] and pooled[-1][2] < block[2]):
            block = _together(pooled.pop(), block)
        pooled.append(block)
    if not pooled:
        return None
    return Calibration(tuple(score for _, score, _ in pooled), tuple(share for _, _, share in pooled))


def cross_fitted(scores: Sequence[float], shares: Sequence[float]) -> list[float] | None:
    """The confidence of each caption by a map that was fitted without it: on the other half of them.

    A map looks good on the captions that it was fitted on; this is what it is worth on others.  None where
    there are too few.
    """
    halves = [calibrate(scores[start::2], shares[start::2]) for start in (1, 0)]
    if None in halves:
        return None
    return [halves[place % 2](score) for place, score in enumerate(scores)]


def reliability(scores: Sequence[float], confidences: Sequence[float], shares: Sequence[float]) -> list[Bin]:
    """Captions in order of score, in bins of equal length: predicted and observed shares.

    Args:
        scores: of captions, as `sureness` gives them.
        confidences: of the same captions, 0 to 1.
        shares: of each caption's words, those that stand in a reference, 0 to 1.
    """
    bins = []
    for run in _runs(sorted(zip(scores, confidences, shares), key=itemgetter(0))):
        ordered, foreseen, came = zip(*run)
        # The mean of n outcomes deviates by their standard deviation / sqrt(n), about normally; a normal
        # variable lies sqrt(2 / pi) standard deviations from its mean, on average.
        chance = math.sqrt(2 / math.pi) * stdev(came) / math.sqrt(len(run))
        bins.append(Bin(len(run), ordered[0], ordered[-1], fmean(foreseen), fmean(came), chance))
    return bins


def calibration_error(bins: Sequence[Bin]) -> float:
    """How far confidence and outcome lie apart in a bin, on average over captions (Guo et al. 2017)."""
    return fmean((abs(row.confidence - row.confirmed) for row in bins), [row.captions for row in bins])


def chance_error(bins: Sequence[Bin]) -> float:
    """What `calibration_error` would be, on average, from sampling noise alone: less cannot be measured."""
    return fmean((row.chance for row in bins), [row.captions for row in bins])


def _runs(rows: list[Row]) -> list[list[Row]]:
    """Cuts a list into `BINS` runs equal but for one, or fewer where runs would be short; maybe none."""
    count = min(BINS, len(rows) // FEWEST_IN_BIN)
    edges = [len(rows) * number // max(1, count) for number in range(count + 1)]
    return [rows[start:end] for start, end in pairwise(edges)]


def _together(first: tuple[int, float, float], second: tuple[int, float, float]) -> tuple[int, float, float]:
    captions = first[0] + second[0]
    means = [(first[0] * a + second[0] * b) / captions for a, b in zip(first[1:], second[1:])]
    return captions, *means
