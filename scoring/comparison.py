"""How captions are compared: references as people wrote them or normalized, words or characters.

The official COCO evaluation compares words with the references as people wrote them, but for case.  A model
cannot be right by it where its tokenizer takes the accents away, nor where words have no blanks between them.
So `choose_scoring` departs from it, for a whole split, by two rules:

- references are normalized as the tokenizer normalizes where that changes more than 1 % of the captions
  beyond case and blanks, and official elsewhere;
- characters are compared where more than half of the letters are of scripts that put no blanks between words.

COCO's captions meet neither.  Both sides of a comparison are always treated alike.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal
from unicodedata import category

from tokenizers import Regex, Tokenizer, normalizers

from coco.tokenizer import BLANKS, normalized
from scoring.ptb_tokenizer import ptb_tokenize

References = Literal["official", "normalized"]
Unit = Literal["word", "character"]
CHANGED = 0.01  # of the captions; fewer that normalization changes are left as people wrote them
UNSPACED = 0.5  # of the letters

# Thai and Lao, Burmese, Khmer, hiragana and katakana, Chinese characters.  Tibetan parts its syllables.
UNSPACED_LETTER = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff]"
)
PLAIN = normalizers.Sequence(
    [normalizers.Lowercase(), normalizers.Replace(Regex(BLANKS), " "), normalizers.Strip()]
)


@dataclass(frozen=True)
class Scoring:
    """What becomes of captions, of people and of models, before they are compared."""

    references: References = "official"
    unit: Unit = "word"
    tokenizer: Tokenizer | None = None  # whose normalization it is
    notes: tuple[str, ...] = ()  # what the reader of a figure should know

    @property
    def signature(self) -> str:
        """The way of scoring in a figure's signature."""
        parts = ["coco-ptb" if self.unit == "word" else "characters"]
        return " ".join(parts + ["normalized"] * (self.references == "normalized"))

    def readable(self, captions: Collection[str]) -> list[str]:
        """The captions as they are compared, before they are split into tokens."""
        if self.references == "official" or self.tokenizer is None:
            return list(captions)
        return normalized(self.tokenizer, captions)

    def tokenize(self, captions: Collection[str]) -> list[str]:
        """The tokens that are compared of each caption, joined by blanks."""
        split = ptb_tokenize if self.unit == "word" else characters
        return split(self.readable(captions))


OFFICIAL = Scoring()


def choose_scoring(
    tokenizer: Tokenizer,
    captions: Collection[str],
    references: References | None = None,
    unit: Unit | None = None,
) -> Scoring:
    """The way of scoring that the rules above give, or that is asked for.

    Args:
        tokenizer: the model's.
        captions: the references of a whole split, so that a share of it is scored as all of it.
        references: asked for; None follows the rule.
        unit: asked for; None follows the rule.
    """
    changed = _changed(tokenizer, captions)
    many = changed > CHANGED * len(captions)
    unspaced = mostly_unspaced(captions)
    references = references or ("normalized" if many else "official")
    unit = unit or ("character" if unspaced else "word")
    notes = []
    if many:
        how, other = ("as it reads them", "official")
        if references == "official":
            how, other = ("as they are, which no caption of this model can match", "normalized")
        notes.append(
            f"the tokenizer changes {changed:,} of {len(captions):,} references beyond case; they are scored "
            f"{how} (otherwise with evaluate_captioner.py --references {other})"
        )
    if unspaced:
        how, other = ("characters are scored, which does not compare with words", "word")
        if unit == "word":
            how, other = ("scores of words mean little", "character")
        notes.append(
            f"most references have no blanks between words; {how} "
            f"(otherwise with evaluate_captioner.py --unit {other})"
        )
    return Scoring(references, unit, tokenizer, tuple(notes))


def _changed(tokenizer: Tokenizer, captions: Collection[str]) -> int:
    """How many captions the tokenizer changes beyond case and blanks."""
    read = normalized(tokenizer, captions)
    return sum(PLAIN.normalize_str(own) != PLAIN.normalize_str(text) for own, text in zip(read, captions))


def mostly_unspaced(captions: Collection[str]) -> bool:
    """Whether most letters of the captions are of scripts that put no blanks between words."""
    words = ["".join(filter(str.isalpha, caption)) for caption in captions]
    unspaced = sum(len(UNSPACED_LETTER.findall(letters)) for letters in words)
    return unspaced > UNSPACED * sum(map(len, words))


def characters(captions: Collection[str]) -> list[str]:
    """The letters and digits of each caption in lower case, each with its marks, joined by blanks."""
    return [" ".join(_characters(caption.lower())) for caption in captions]


def _characters(caption: str) -> list[str]:
    found: list[str] = []
    for sign in caption:
        if sign.isalnum():
            found.append(sign)
        elif found and category(sign) in ("Mn", "Mc"):
            found[-1] += sign
    return found
