"""All that evaluation says of the captions of a split: figures, what they compare with, how varied they are.

`assess` gives one dict of plain values, which is what the metrics JSON holds; `lines` words it.  All
figures in the dict are fractions; the lines print them times 100.

`caption_statistics` counts what a set of captions is like, whatever it scores: how varied, how much of it
learned by heart.  Two captions stand beside every figure: one that says the same of every image, and a
person's.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from scoring.calibration import (
    calibrate,
    calibration_error,
    chance_error,
    cross_fitted,
    rank_correlation,
    reliability,
)
from scoring.comparison import OFFICIAL, Scoring
from scoring.metrics import (
    METRICS,
    ImageStatistics,
    Tokenize,
    confidence_intervals,
    corpus_scores,
    image_statistics,
    score,
)
from scoring.ptb_tokenizer import MARKS, ptb_tokenize

# A model that has collapsed says nearly the same of every image, and its BLEU can still be 5 to 20.  The
# caption decoder has then learned how people write and does not look at the picture.
COLLAPSED_BELOW = 0.05  # distinct captions, as a share of all
COLLAPSED_ABOVE = 0.5  # images with the same caption, as a share of all
FEWEST = 20  # images; of fewer these shares say nothing

WORD = re.compile(rf"[\w{MARKS}]+")


@dataclass(frozen=True)
class CaptionStatistics:
    """Counts over the captions of a split, one an image.  Captions are the same if their words are."""

    captions: int
    distinct: int
    words: int  # different ones, as the metrics tokenize: characters, where they are what is compared
    in_train: int  # captions that stand word for word in train
    most_frequent: str
    most_frequent_count: int

    @property
    def collapsed(self) -> bool:
        """Whether fewer than 5 % of the captions are distinct, or more than half of them are one."""
        few = self.distinct < COLLAPSED_BELOW * self.captions
        return self.captions >= FEWEST and (few or self.most_frequent_count > COLLAPSED_ABOVE * self.captions)

    @property
    def share_in_train(self) -> float:
        """The share of the captions, 0 to 1, that stand word for word in train."""
        return self.in_train / max(1, self.captions)

    def warning(self) -> str:
        """What to tell the user of a collapsed model."""
        return (
            f"WARNING: the model has collapsed: {self.distinct:,} distinct captions for {self.captions:,} "
            f"pictures, and {self.most_frequent_count:,} of them get {self.most_frequent!r}: "
            "it hardly looks at the pictures, and its scores mean nothing"
        )


def caption_statistics(
    captions: Collection[str],
    train: Iterable[str] = (),
    tokenize: Tokenize = ptb_tokenize,
) -> CaptionStatistics:
    """Counts what there is to count.

    Args:
        captions: one an image.
        train: the captions that the model was trained on.
        tokenize: what cuts captions into words, with blanks between them.
    """
    keys = [same_words(caption) for caption in captions]
    counts = Counter(keys)
    known = counts.keys() & {same_words(caption) for caption in train}
    most = max(counts, key=lambda key: (counts[key], key), default="")  # in whatever order they come
    return CaptionStatistics(
        captions=len(keys),
        distinct=len(counts),
        words=len({word for caption in tokenize(list(captions)) for word in caption.split()}),
        in_train=sum(counts[key] for key in known),
        most_frequent=next((caption for caption, key in zip(captions, keys) if key == most), ""),
        most_frequent_count=counts[most],
    )


def same_words(caption: str) -> str:
    """Equal for captions that differ in case, blanks and punctuation only."""
    return " ".join(WORD.findall(caption.lower()))


def constant_caption(train: Collection[str]) -> str:
    """What a model could say of every image without looking: the most frequent caption of train.

    Where several are the most frequent, as in a data set in which none occurs twice, it is the one whose runs
    of four words are in the most captions on average, which is the likeliest to fit any picture.
    """
    keys = [same_words(caption) for caption in train]
    counts = Counter(keys)
    most = max(counts.values(), default=0)
    tied = {key for key, count in counts.items() if count == most}
    captions_with = Counter(run for key in keys for run in set(runs_of_four(key))) if len(tied) > 1 else {}

    def usual(key: str) -> float:
        runs = runs_of_four(key)
        return sum(captions_with[run] for run in runs) / len(runs) if runs and captions_with else 0.0

    chosen = max(tied, key=lambda key: (usual(key), key), default="")
    return next((" ".join(text.lower().split()) for text, key in zip(train, keys) if key == chosen), "")


def runs_of_four(words: str) -> list[tuple[str, ...]]:
    """The 4-grams of words with blanks between."""
    split = words.split()
    return list(zip(*(split[start:] for start in range(4))))


def human_captions(references: Mapping[int, list[str]]) -> tuple[dict[int, list[str]], dict[int, str]]:
    """A person's captions to score: the first of each image that has two or more, against its others.

    Args:
        references: for each image id, what people wrote.

    Returns:
        The references that are left, and the captions.
    """
    several = {image_id: texts for image_id, texts in references.items() if len(texts) > 1}
    others = {image_id: texts[1:] for image_id, texts in several.items()}
    return others, {image_id: texts[0] for image_id, texts in several.items()}


def with_references(references: Mapping[int, list[str]]) -> dict[int, list[str]]:
    """The images that can be scored: those that have a caption by a person."""
    return {image_id: texts for image_id, texts in references.items() if texts}


def assess(
    references: Mapping[int, list[str]],
    captions: Mapping[int, str],
    scores: Mapping[int, float],
    train: list[str],
    scoring: Scoring = OFFICIAL,
) -> dict[str, Any]:
    """Scores and counts.

    Args:
        references: for each image id, what people wrote; an image without is counted but not scored.
        captions: for the same ids, what the model wrote.
        scores: for the same ids, how sure the model was of the caption.
        train: all captions of the training split.
        scoring: how captions are compared, in all figures alike.

    Returns:
        By metric, as fractions: "metrics", "intervals" (of 95 %, two bounds), and the figures of a constant
        caption and of people.  Besides how all were scored, counts of images, how varied the captions are,
        and "calibration".

    Raises:
        UsageError: no image has references.
    """
    known = with_references(references)
    statistics = image_statistics(
        known, {image_id: captions[image_id] for image_id in known}, scoring.tokenize
    )
    train = scoring.readable(train)
    constant = constant_caption(train)
    others, people = human_captions(known)
    counts = caption_statistics(captions.values(), train, scoring.tokenize)
    return {
        "references": scoring.references,
        "unit": scoring.unit,
        "notes": list(scoring.notes),
        "images": len(captions),
        "scored_images": len(known),
        "metrics": corpus_scores(statistics),
        "intervals": {metric: list(bounds) for metric, bounds in confidence_intervals(statistics).items()},
        "constant_caption": constant,
        "constant_caption_metrics": score(known, dict.fromkeys(known, constant), scoring.tokenize),
        "human_metrics": score(others, people, scoring.tokenize) if people else None,
        "human_images": len(people),
        "captions": asdict(counts) | {"collapsed": counts.collapsed, "share_in_train": counts.share_in_train},
        "calibration": _confidence(statistics, scores),
    }


def _confidence(statistics: ImageStatistics, scores: Mapping[int, float]) -> dict[str, Any] | None:
    """The map from a caption's score to the share of its words that people confirm, and what it is worth."""
    shares = (statistics.matches[:, 0] / statistics.candidates[:, 0].clamp(min=1)).tolist()
    ordered = [scores[image_id] for image_id in statistics.image_ids]
    calibration, confidences = calibrate(ordered, shares), cross_fitted(ordered, shares)
    if calibration is None or confidences is None:
        return None
    bins = reliability(ordered, confidences, shares)
    return {
        **asdict(calibration),
        "reliability": [asdict(row) for row in bins],
        "error": calibration_error(bins),
        "chance_error": chance_error(bins),
        "rank_correlation": rank_correlation(ordered, statistics.cider.tolist()),  # with CIDEr
    }


def statistics_of(assessment: Mapping[str, Any]) -> CaptionStatistics:
    """How varied the captions of an assessment are."""
    counts = assessment["captions"]
    return CaptionStatistics(**{field.name: counts[field.name] for field in fields(CaptionStatistics)})


def lines(assessment: Mapping[str, Any]) -> Iterator[str]:
    """The assessment as a page of text."""
    yield from _figures(assessment)
    statistics = statistics_of(assessment)
    yield ""
    yield (
        f"{statistics.captions:,} captions: {statistics.distinct:,} distinct, {statistics.words:,} different "
        f"{assessment['unit']}s, {statistics.in_train:,} ({statistics.share_in_train:.1%}) copied word for "
        "word from train"
    )
    yield f"the most frequent, {statistics.most_frequent_count:,} times: {statistics.most_frequent!r}"
    if missing := assessment["images"] - assessment["scored_images"]:
        yield f"{missing:,} images have no reference captions: captioned, but not scored"
    if assessment["calibration"]:
        by = "log-probabilities of its tokens"
        if assessment.get("consensus_samples"):
            by = f"agreement of {assessment['consensus_samples']} samples with it"
        yield from _reliability(assessment["calibration"], assessment["unit"], by)
    if statistics.collapsed:
        yield ""
        yield statistics.warning()


def _figures(assessment: Mapping[str, Any]) -> Iterator[str]:
    human = assessment["human_metrics"]
    yield f"{'':8} {'captioner':>9}   {'95 % interval':15} {'constant caption':>16} {'human':>7}"
    for metric in METRICS:
        low, high = (100 * bound for bound in assessment["intervals"][metric])
        figure, constant = assessment["metrics"][metric], assessment["constant_caption_metrics"][metric]
        person = f"{100 * human[metric]:7.2f}" if human else f"{'–':>7}"
        interval = f"{low:.2f} – {high:.2f}"
        yield f"{metric:8} {100 * figure:9.2f}   {interval:15} {100 * constant:16.2f} {person}"
    yield f"constant caption: {assessment['constant_caption']!r}, the most frequent of train"
    if human:
        images = f"{assessment['human_images']:,} images with two or more"
        yield f"human: the first caption of an image against its others, {images}"
    else:
        yield "human: no image has two captions"
    yield from (f"note: {note}" for note in assessment["notes"])


def _reliability(calibration: Mapping[str, Any], unit: str, by: str) -> Iterator[str]:
    yield ""
    yield f"confidence: the share of a caption's {unit}s found in the image's references, predicted from the"
    yield f"{by}; each half of the images by the fit to the other half"
    yield f"{'score':>15} {'predicted':>9} {'observed':>10} {'images':>9}"
    for row in calibration["reliability"]:
        span = f"{row['lowest']:.2f} – {row['highest']:.2f}"
        yield f"{span:>15} {row['confidence']:9.2f} {row['confirmed']:10.2f} {row['captions']:9,}"
    error, chance = calibration["error"], calibration["chance_error"]
    yield f"calibration error {error:.3f} ({chance:.3f} expected from sampling noise alone)"
    yield f"rank correlation of the score with a caption's own CIDEr: {calibration['rank_correlation']:.3f}"
