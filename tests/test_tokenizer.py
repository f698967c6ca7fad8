"""The tokenizer loses nothing, whatever the text; training is deterministic; damaged files are refused."""

import json
import random
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from coco.tokenizer import (
    EOS,
    PAD,
    SOS,
    SPECIAL_TOKENS,
    UNK,
    load_tokenizer,
    parse_tokenizer,
    train_tokenizer,
)
from support.errors import UsageError

CAPTIONS = [
    f"A {size} {colour} {thing} is {place} the {other}."
    for size in ("small", "large")
    for colour in ("red", "green", "blue")
    for thing in ("dog", "house", "jogger")
    for place in ("behind", "above", "running past")
    for other in ("car", "tree")
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(CAPTIONS, 320)


def normalized(text: str) -> str:
    """The oracle: Unicode's own tables, as Python has them."""
    text = unicodedata.normalize("NFD", text).lower()
    text = "".join(sign for sign in text if unicodedata.category(sign) != "Mn")
    return re.sub(r"\s+", " ", text).strip()


@pytest.mark.parametrize(
    "text",
    [
        "A jogger running.",
        "Joggers, dogs & a HOUSE!",
        "  Two   blanks\tand\na line ",
        "Café à la Crème, naïve Ångström",
        "emoji 😀 and 日本語",
        "don't; it's the men's 3.5 x 1,000",
        "",
        " ",
    ],
)
def test_decode_gives_back_what_encode_was_given(tokenizer: Tokenizer, text: str) -> None:
    """Without a decoder, captions came back as "jo gg er running", and BLEU was scored on such pieces."""
    assert tokenizer.decode(tokenizer.encode(text).ids) == normalized(text)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=st.text())
def test_every_string_survives(tokenizer: Tokenizer, text: str) -> None:
    """Here the oracle is the tokenizer's own normalizer: versions of Unicode differ in rare letters."""
    assert tokenizer.decode(tokenizer.encode(text).ids) == tokenizer.normalizer.normalize_str(text)


def test_captions_begin_and_end_and_batches_agree(tokenizer: Tokenizer) -> None:
    start, end = tokenizer.token_to_id(SOS), tokenizer.token_to_id(EOS)
    for code, caption in zip(tokenizer.encode_batch_fast(CAPTIONS), CAPTIONS):
        assert code.ids == tokenizer.encode(caption).ids
        assert (code.ids[0], code.ids[-1]) == (start, end)
        assert not {start, end, tokenizer.token_to_id(PAD), tokenizer.token_to_id(UNK)} & set(code.ids[1:-1])


def test_a_caption_cannot_spell_a_special_token(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A caption "<EOS> a dog" would end where it begins."""
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_str())
    for each in (tokenizer, load_tokenizer(path), parse_tokenizer(tokenizer.to_str(), "checkpoint")):
        assert each.encode("<EOS> a <PAD> dog").ids.count(each.token_to_id(EOS)) == 1
        assert each.decode(each.encode("<EOS> a <PAD> dog").ids) == "<eos> a <pad> dog"


def test_words_share_their_piece_wherever_they_stand(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.encode(text).tokens for text in ("dog", "A dog.", "a red DOG, dog", '"dog"')]
    assert all("Ġdog" in tokens for tokens in pieces[:3])
    assert pieces[1][1:-1] == ["Ġa", "Ġdog", "."]


def test_vocabulary_is_bounded_and_smaller_where_texts_are_few() -> None:
    assert train_tokenizer(CAPTIONS, 300).get_vocab_size() == 300
    few = train_tokenizer(["a dog", "a dog"], 5000)
    assert few.get_vocab_size() < 280
    assert few.decode(few.encode("Ω zebra").ids) == "ω zebra"
    assert all(few.token_to_id(token) is not None for token in SPECIAL_TOKENS)


def test_training_is_deterministic(tokenizer: Tokenizer) -> None:
    assert train_tokenizer(iter(CAPTIONS), 320).to_str() == tokenizer.to_str()


def test_loaded_tokenizer_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_str())
    assert load_tokenizer(path).to_str() == tokenizer.to_str()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": "1.0"}', "\0" * 100])
def test_damaged_files_are_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"tokenizer\.json"):
        load_tokenizer(path)


def test_missing_special_token_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="lacks <UNK>"):
        parse_tokenizer(tokenizer.to_str().replace("<UNK>", "<HUH>"), "other.json")
    with pytest.raises(UsageError, match="cannot read"):
        load_tokenizer(Path("nowhere.json"))


def test_mutated_files_load_or_are_refused(tokenizer: Tokenizer) -> None:
    """200 files with changed bytes or values: a tokenizer or a UsageError, and nothing else."""
    draw, original = random.Random(0), tokenizer.to_str()
    refused = 0
    for number in range(200):
        if number % 2:
            content = list(original)
            for _ in range(3):
                content[draw.randrange(len(content))] = chr(draw.randrange(32, 127))
            text = "".join(content)
        else:
            tree = json.loads(original)
            part = draw.choice(
                [tree, tree["model"], tree["decoder"], tree["post_processor"], tree["normalizer"]]
            )
            part[draw.choice(list(part))] = draw.choice([None, -1, 2**70, "x", [], {}, [{}], True])
            text = json.dumps(tree)
        try:
            parse_tokenizer(text, "mutated.json").encode("a dog")
        except UsageError:
            refused += 1
    assert 50 < refused < 200


def hostile_trees(tree: dict) -> dict[str, dict]:
    """By what each tries, a tokenizer file that the library itself takes, or that breaks it."""
    deep: list = []
    for _ in range(500):
        deep = [deep]
    pattern = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    fixed = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None}
    padding = {**fixed, "pad_id": 0, "pad_type_id": 0, "pad_token": "<PAD>"}
    template = tree["post_processor"]
    without = {**template, "special_tokens": {"<SOS>": template["special_tokens"]["<SOS>"]}}
    huh = {"SpecialToken": {"id": "<HUH>", "type_id": 0}}
    vocabulary = tree["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    return {
        "a pattern that never ends": {**tree, "pre_tokenizer": pattern},
        "one in a decoder": {
            **tree,
            "decoder": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""},
        },
        "padding of all memory": {**tree, "padding": padding},
        "a huge number": {**tree, "model": {**tree["model"], "vocab": {**vocabulary, last: 4 * 10**9}}},
        "a gap": {**tree, "model": {**tree["model"], "vocab": {**vocabulary, last: vocabulary[last] + 1}}},
        "two of a number": {**tree, "model": {**tree["model"], "vocab": {**vocabulary, last: 7}}},
        "a number below 0": {**tree, "model": {**tree["model"], "vocab": {**vocabulary, last: -1}}},
        "no special tokens": {
            **tree,
            "added_tokens": [],
            "model": {**tree["model"], "vocab": {"a": 0}, "merges": [], "unk_token": None},
        },
        "a template of a token that it does not define": {**tree, "post_processor": without},
        "one of another token": {**tree, "post_processor": {**template, "single": [huh]}},
        "one in a sequence": {**tree, "post_processor": {"type": "Sequence", "processors": [without]}},
        "an unknown model": {**tree, "model": {**tree["model"], "type": "Evil"}},
        "no model": {**tree, "model": None},
        "a deep nest": {**tree, "normalizer": deep},
        "a list": {"list": [tree]},
    }


KINDS = list(hostile_trees(json.loads(train_tokenizer(["a"], 300).to_str())))


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_files_are_one_line_and_cost_nothing(
    tokenizer: Tokenizer, tmp_path: Path, kind: str, capfd
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(hostile_trees(json.loads(tokenizer.to_str()))[kind]))
    with pytest.raises(UsageError) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
