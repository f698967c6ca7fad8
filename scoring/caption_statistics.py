"""What a set of captions is like, whatever it scores: how varied, how much of it learned by heart.

And the two that every figure wants beside it: a caption that says the same of every picture, and a person's.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from scoring.ptb_tokenizer import MARKS, ptb_tokenize

# A model that has collapsed says nearly the same of every picture, and its BLEU can still be 5 to 20.  The
# caption decoder has then learned how people write and does not look at the picture.
COLLAPSED_BELOW = 0.05  # distinct captions, as a share of all
COLLAPSED_ABOVE = 0.5  # pictures with the same caption, as a share of all
FEWEST = 20  # pictures; of fewer these shares say nothing

WORD = re.compile(rf"[\w{MARKS}]+")


@dataclass(frozen=True)
class CaptionStatistics:
    """Counts over the captions of a split, one a picture.  Captions are the same if their words are."""

    captions: int
    distinct: int
    words: int  # different ones, as the metrics tokenize
    in_train: int  # captions that stand word for word in train
    most_frequent: str
    most_frequent_count: int

    @property
    def collapsed(self) -> bool:
        """Whether fewer than 5 % of the captions are distinct, or more than half of them are one."""
        few = self.distinct < COLLAPSED_BELOW * self.captions
        return self.captions >= FEWEST and (few or self.most_frequent_count > COLLAPSED_ABOVE * self.captions)

    def warning(self) -> str:
        """What to tell the user of a collapsed model."""
        return (
            f"WARNING: the model has collapsed: {self.distinct:,} distinct captions for {self.captions:,} "
            f"pictures, and {self.most_frequent_count:,} of them get {self.most_frequent!r}: "
            "it hardly looks at the pictures, and its scores mean nothing"
        )


def caption_statistics(captions: Collection[str], train: Iterable[str] = ()) -> CaptionStatistics:
    """Counts what there is to count.

    Args:
        captions: one a picture.
        train: the captions that the model was trained on.
    """
    keys = [same_words(caption) for caption in captions]
    counts = Counter(keys)
    known = counts.keys() & {same_words(caption) for caption in train}
    most = max(counts, key=lambda key: (counts[key], key), default="")  # in whatever order they come
    return CaptionStatistics(
        captions=len(keys),
        distinct=len(counts),
        words=len({word for caption in ptb_tokenize(list(captions)) for word in caption.split()}),
        in_train=sum(counts[key] for key in known),
        most_frequent=next((caption for caption, key in zip(captions, keys) if key == most), ""),
        most_frequent_count=counts[most],
    )


def same_words(caption: str) -> str:
    """Equal for captions that differ in case, blanks and punctuation only."""
    return " ".join(WORD.findall(caption.lower()))


def constant_caption(train: Collection[str]) -> str:
    """What a model could say of every picture without looking: the most frequent caption of train.

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
    """A person's captions to score: the first of each picture that has two or more, against its others.

    Args:
        references: for each image id, what people wrote.

    Returns:
        The references that are left, and the captions.
    """
    several = {image_id: texts for image_id, texts in references.items() if len(texts) > 1}
    others = {image_id: texts[1:] for image_id, texts in several.items()}
    return others, {image_id: texts[0] for image_id, texts in several.items()}
