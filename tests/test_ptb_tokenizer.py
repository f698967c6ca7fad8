"""The tokenizer against the official one: construct by construct, and all captions of val2017."""

import doctest
import gzip
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring import ptb_tokenizer
from scoring.ptb_tokenizer import ptb_tokenize

REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "ptb_val2017.json.gz"

# What the official tokenizer makes of a sentence for each construct.
OFFICIAL_TOKENS = [
    ("", ""),
    ("!!! ??? ...", "!!! ???"),
    ("The dog's bowl, the dogs' bowls.", "the dog 's bowl the dogs bowls"),
    ("SHE'S at TOM'S", "she 's at tom 's"),
    ("They're sure he'll say I'm late", "they 're sure he 'll say i 'm late"),
    ("It isn't, can't and DON'T; he cannot.", "it is n't ca n't and do n't he can not"),
    ("'Twas nice, and they're gonna stay.", "'t was nice and they 're gon na stay"),
    ("He don’t know it’s the dog’s", "he do n't know it 's the dog 's"),
    ("A \"quoted\", a 'single' and ``another''.", "a quoted a single and another"),
    ("Mr. Smith, at 5th Ave. and Main St.", "mr. smith at 5th ave. and main st."),
    ("The corner of W. Pine Blvd. and Elm Rd.", "the corner of w. pine blvd. and elm rd."),
    ("Flags of the U.S. on a T.V. at 5 p.m. today", "flags of the u.s. on a t.v. at 5 p.m. today"),
    ("He lives in the U.S.", "he lives in the u.s."),
    ("A sign that says K. The dog barks.", "a sign that says k the dog barks"),
    ("A sign that says K.", "a sign that says k"),
    ("A close-up of jack-o-lanterns", "a close-up of jack-o-lanterns"),
    ("A multi- colored kite -- half -eaten", "a multi colored kite half eaten"),
    ("1,000 coins, 3.5 pounds, 50% off for $5.99", "1,000 coins 3.5 pounds 50 % off for $ 5.99"),
    ("Take 3/4 of it at 22 3/4 street", "take 3/4 of it at 22\u00a03/4 street"),
    ("It is 12:45, or 5:45pm on 10-29-2011", "it is 12:45 or 5:45 pm on 10-29-2011"),
    ("The #41 bus, number #1!", "the # 41 bus number # 1"),
    ("A cat (asleep) on [a] {mat}", "a cat -lrb- asleep -rrb- on -lsb- a -rsb- -lcb- mat -rcb-"),
    ("Wait... what?! No!! Yes.", "wait what ?! no !! yes"),
    ("red/white and/or blue /", "red/white and/or blue /"),
    ("A fish &amp; a chip, AT&T & me", "a fish & a chip at&t & me"),
    ("A man in the street.A bus is near.", "a man in the street.a bus is near"),
    ("Mail bob@example.com or see www.example.com.", "mail bob@example.com or see www.example.com"),
    ("Rock 'n' roll at 9 o'clock, hors d'oeuvres", "rock 'n' roll at 9 o'clock hors d'oeuvres"),
    ("A café with art — à la carte … 😀 ☺", "a café with art à la carte ☺"),
    ("Half ½ for £5 or €6", "half 1/2 for # 5 or $ 6"),
    ("The '90s and the 1990's", "the '90s and the 1990 's"),
    ("<b>bold</b> a < b = c + e * f", "<b> bold </b> a < b = c + e * f"),
    ("A dog., a cat; no. 5 and no.", "a dog. a cat no. 5 and no"),
    ("Two\nlines\n", "two lines"),
]


@pytest.mark.parametrize(("caption", "tokens"), OFFICIAL_TOKENS)
def test_tokens_are_the_official_ones_for_every_construct(caption, tokens):
    assert ptb_tokenize([caption]) == [tokens]


@pytest.mark.skipif(not REFERENCE.is_file(), reason="no official tokens in ../shared beside the checkout")
def test_tokens_of_all_captions_of_val2017_are_the_official_ones():
    pairs = json.loads(gzip.decompress(REFERENCE.read_bytes()))
    tokenized = ptb_tokenize([caption for caption, _ in pairs])
    assert len(pairs) == 25_014
    assert [t for t, (_, official) in zip(tokenized, pairs) if t != official] == []


def test_tokens_do_not_depend_on_the_neighbouring_captions():
    """The official tokenizer reads all captions as one text: the next one decides on the period of "K."."""
    captions = [caption for caption, _ in OFFICIAL_TOKENS]
    alone = [ptb_tokenize([caption])[0] for caption in captions]
    assert ptb_tokenize(captions) == alone
    assert ptb_tokenize(captions[::-1]) == alone[::-1]


@given(st.text())
def test_any_text_at_all_becomes_lower_case_tokens(text):
    (tokens,) = ptb_tokenize([text])
    assert tokens == tokens.lower()
    assert tokens == tokens.strip(" ")
    assert "  " not in tokens
    assert not {".", ",", "?", "!", ":", ";", "-", "--", "...", "''", "``"} & set(tokens.split(" "))


@given(st.lists(st.sampled_from([tokens for _, tokens in OFFICIAL_TOKENS if "'t" not in tokens])))
def test_tokens_stay_as_they_are_when_tokenized_again(parts):
    (once,) = ptb_tokenize([" and ".join(parts)])
    assert ptb_tokenize([once]) == [once]


@pytest.mark.parametrize(
    "piece", ["a,", "a.", "'", "<a ", "a@", "1 ", "a/", "&amp;", "a-", "\u00ad", "(", "www."]
)
def test_a_monstrous_caption_takes_no_monstrous_time(piece):
    started = time.process_time()
    ptb_tokenize([piece * (3000 // len(piece))])
    assert time.process_time() - started < 5


def test_the_example_in_the_docstring_holds():
    results = doctest.testmod(ptb_tokenizer)
    assert results.attempted
    assert not results.failed
