"""The tokenizer: byte pair encoding (Sennrich et al., 2016) on normalized text, with nothing lost on the way.

    tokenizer = train_tokenizer(["A dog runs.", ...], vocabulary_size=5000)
    ids = tokenizer.encode("A dog runs.").ids        # <SOS>, " a", " dog", " runs", ".", <EOS>
    tokenizer.decode(ids)                            # "a dog runs."

Normalized means: lower case, no accents, single blanks, composed characters (Unicode's NFC).
`decode(encode(text).ids)` is the normalized text, for every text: pieces are made of bytes, all 256 are in
the vocabulary, and a word carries its blank.  A tokenizer without a decoder gives "jo gg er running" for
"jogger running", and BLEU then scores word pieces.

Accents are the marks on Latin and Greek letters.  In other scripts a mark makes another letter or is a vowel
(Cyrillic й, Hindi कि, Thai ที่, Japanese が, Arabic harakat), and marks stay.  `keep_accents=True` keeps all.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from support.errors import UsageError

SPECIAL_TOKENS = PAD, SOS, EOS, UNK = "<PAD>", "<SOS>", "<EOS>", "<UNK>"
BLANKS = r"\s+"
ACCENTS = r"(?<=[\p{Latin}\p{Greek}])\p{M}+"  # in decomposed text
# A word with the blank before it, a number, punctuation; English endings.  A mark belongs to its letter.
WORDS = r"'(?:s|t|re|ve|m|ll|d)| ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+"
PATTERNS = (BLANKS, ACCENTS, WORDS)  # the only ones that a tokenizer may hold


def normalizer(keep_accents: bool) -> normalizers.Normalizer:
    """Lower case and single blanks; without accents unless they are to be kept; composed at the end."""
    strip_accents = [] if keep_accents else [normalizers.Replace(Regex(ACCENTS), "")]
    return normalizers.Sequence(
        [
            normalizers.NFD(),  # "é" becomes "e" and an accent
            normalizers.Lowercase(),
            *strip_accents,
            normalizers.NFC(),  # or Korean syllables, "が" and "й" would stay in pieces
            normalizers.Replace(Regex(BLANKS), " "),
            normalizers.Strip(),
        ]
    )


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, keep_accents: bool = False) -> Tokenizer:
    """Trains byte pair encoding on `texts`: the same texts in the same order give the same tokenizer.

    Args:
        texts: what the pieces are counted on.
        vocabulary_size: the largest vocabulary, special tokens included; few texts give a smaller one.
        keep_accents: whether "é" stays "é"; the tokenizer's file records it.

    Returns:
        A tokenizer whose `encode` puts <SOS> first and <EOS> last, and whose `decode` leaves them out.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.normalizer = normalizer(keep_accents)
    # Splits words, numbers and punctuation, so that "dog" and "dog." share a piece.  A word has its blank
    # with it.  The first word is given one too, or "dog" at the start would be another word than later on.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="always", split=False),
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Strip(content=" ", left=1, right=0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,  # a piece seen once teaches nothing
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SOS} $A {EOS}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (SOS, EOS)],
    )
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a tokenizer file.

    Raises:
        UsageError: it is missing, damaged, or lacks a special token.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the tokenizer {path} ({error}): process_coco.py makes it") from None
    return parse_tokenizer(text, str(path))


def parse_tokenizer(text: str, name: str) -> Tokenizer:
    """The tokenizer from `tokenizer.to_str()`, as a checkpoint keeps it; `name` is for the error message."""
    try:
        _require_harmless(json.loads(text))
        tokenizer = Tokenizer.from_str(text)
        tokenizer.decode(tokenizer.encode("a").ids)  # some damage is met only here
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        # Errors of the Rust library are plain Exceptions, its panics are not even that.
        raise UsageError(f"{name} is not a tokenizer ({error}): process_coco.py makes one") from None
    missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    if missing:
        raise UsageError(
            f"the tokenizer {name} lacks {' '.join(missing)}: process_coco.py makes one that has them"
        )
    ids = sorted(tokenizer.get_vocab(with_added_tokens=True).values())
    if ids != list(range(len(ids))):
        raise UsageError(f"the tokenizer {name} does not number its pieces 0, 1, 2, ...: {ids[-1]} is one")
    # A caption that spells "<EOS>" has these five signs and does not end there.  No file keeps this switch.
    tokenizer.encode_special_tokens = True
    return tokenizer


def normalized(tokenizer: Tokenizer, texts: Iterable[str]) -> list[str]:
    """The texts as the tokenizer reads them; as they are where it has no normalizer."""
    own = tokenizer.normalizer
    return [own.normalize_str(text) for text in texts] if own else list(texts)


def losing_accents(tokenizer: Tokenizer, texts: Iterable[str]) -> list[str]:
    """Those of the texts that the tokenizer changes beyond case, blanks and the order of marks."""
    plain = normalizer(keep_accents=True).normalize_str
    texts = [text for text in texts if not text.isascii()]
    read = normalized(tokenizer, texts)
    return [text for text, own in zip(texts, read) if plain(own) != plain(text)]


def words_of(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[tuple[str, list[int]]]:
    """The words that tokens spell, and which of the tokens spell each.

    Returns:
        (word, places in `tokens`) in order.  A full stop or comma belongs to the word before it; special
        tokens belong to none.
    """
    words = tokenizer.decode(tokens).split()
    special = {tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    places: list[list[int]] = [[] for _ in words]
    for place, token in enumerate(tokens):
        if words and token not in special:
            # The word that one letter more would belong to: a blank is the start of the next one.
            begun = len((tokenizer.decode(tokens[: place + 1]) + "x").split())
            places[min(begun, len(words)) - 1].append(place)
    return [(word, mine) for word, mine in zip(words, places) if mine]


def _require_harmless(value: Any) -> None:
    """Raises ValueError on what a file may ask for and no tokenizer here has: a pattern, or a fixed length.

    A pattern can take years to match a short text; padding to a fixed length can take all memory.
    """
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
        raise ValueError("it has no model")
    if value.get("padding") is not None or value.get("truncation") is not None:
        raise ValueError("it pads or truncates")
    parts = [value.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor", "decoder")]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            if "Regex" in part and part["Regex"] not in PATTERNS:
                raise ValueError(f"it matches the pattern {part['Regex']!r:.40}")
            if undefined := _undefined_tokens(part):
                raise ValueError(f"its template names {min(undefined)!r:.40} and does not define it")
            parts += part.values()
        elif isinstance(part, list):
            parts += part


def _undefined_tokens(part: dict[str, Any]) -> set[str]:
    """The special tokens that a template names and does not define; the Rust library panics at one.

    A panic can be caught, but not before it has printed lines of its own.
    """
    pieces = [piece for key in ("single", "pair") if isinstance(part.get(key), list) for piece in part[key]]
    named = [piece["SpecialToken"] for piece in pieces if isinstance(piece, dict) and "SpecialToken" in piece]
    defined = part.get("special_tokens")
    ids = {str(token.get("id")) for token in named if isinstance(token, dict)}
    return ids - (defined.keys() if isinstance(defined, dict) else set())
