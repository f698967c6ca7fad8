"""Captions of other languages than English come back whole, from tokens and from the official words."""

import gzip
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

import process_coco
from coco.tokenizer import losing_accents, normalized, normalizer, parse_tokenizer, train_tokenizer
from scoring.assessment import caption_statistics
from scoring.ptb_tokenizer import ptb_tokenize
from support.errors import UsageError
from tests.language_cases import CAPTIONS, UNSPACED

COCO = Path(__file__).parents[2] / "shared" / "data" / "coco_captions" / "captions_val2017.json.gz"
# Letters, signs and marks that have long been in Unicode: versions differ in newer ones.
OLD_LETTERS = "".join(map(chr, [*range(0x20, 0x370), *range(0x391, 0x3CA), *range(0x400, 0x460), 0x2060]))
OLD_LETTERS += "".join(text for text, *_ in CAPTIONS.values()) + "ἀᾳḋự각ᄀㅏ゛ガが가각क़ढ़ส้ำ 😀☀️"


def stripped_letter_by_letter(text: str) -> str:
    """The oracle: Unicode's tables as Python has them, one character after the other."""
    kept, accented = [], False
    for sign in unicodedata.normalize("NFD", text):
        if not unicodedata.category(sign).startswith("M"):
            accented = unicodedata.name(sign, "").startswith(("LATIN ", "GREEK "))
            accented = accented or sign in "ªº"
        elif accented:
            continue
        kept.append(sign.lower())
    return " ".join(unicodedata.normalize("NFC", "".join(kept)).split())


@pytest.mark.parametrize("language", CAPTIONS)
def test_accents_are_stripped_where_the_script_means_accents_by_them(language):
    text, without, with_accents = CAPTIONS[language]
    assert normalizer(keep_accents=False).normalize_str(text) == unicodedata.normalize("NFC", without)
    assert normalizer(keep_accents=True).normalize_str(text) == unicodedata.normalize("NFC", with_accents)
    decomposed = unicodedata.normalize("NFD", text)
    for keep in (False, True):
        strip = normalizer(keep).normalize_str
        assert strip(decomposed) == strip(text), "one spelling, however it is written"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=st.text(st.sampled_from(OLD_LETTERS)))
def test_the_normalizer_is_what_unicode_s_tables_say(text):
    read = normalizer(keep_accents=False).normalize_str(text)
    assert read == stripped_letter_by_letter(text)
    assert normalizer(keep_accents=False).normalize_str(read) == read


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text())
@pytest.mark.parametrize("keep", [False, True])
def test_what_is_normalized_stays_so(text, keep):
    """A caption that a model wrote is normalized once more before it is scored."""
    once = normalizer(keep).normalize_str(text)
    assert normalizer(keep).normalize_str(once) == once


@pytest.mark.parametrize("language", [name for name in CAPTIONS if name not in UNSPACED])
def test_the_official_tokens_keep_the_marks_of_words(language):
    """Vowel signs were dropped, and words broken where they stood: `कुत्ता` was `क त त`."""
    text = CAPTIONS[language][0].rstrip(".")
    blanks = text.lower().replace("\u200c", " ").split()
    assert ptb_tokenize([text])[0].split(" ") == blanks
    assert ptb_tokenize([text + "।"])[0].split(" ") == blanks


@pytest.mark.parametrize("language", [name for name in CAPTIONS if name != "Persian"])
def test_a_word_that_is_known_is_one_piece(language):
    """Marks were split off, and a Hindi word of six signs was six tokens for ever."""
    text = CAPTIONS[language][0].rstrip(".。")
    tokenizer = train_tokenizer([text] * 2, 5000)
    assert len(tokenizer.encode(text).ids) - 2 == len(text.split())


def test_captions_that_differ_in_marks_alone_are_two():
    assert caption_statistics(["कि", "की", "की।"]).distinct == 2


def test_older_tokenizers_and_no_other_patterns_are_read():
    old = train_tokenizer(["Über der Café", "über"], 300)
    old.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
    )
    read = parse_tokenizer(old.to_str(), "an old checkpoint")
    assert read.decode(read.encode("Über").ids) == "uber"
    new = train_tokenizer(["a"], 300).to_str()
    assert parse_tokenizer(new, "new").to_str() == new
    with pytest.raises(UsageError, match="it matches the pattern"):
        parse_tokenizer(new.replace("p{M}+", "p{M}*"), "changed")


@pytest.mark.skipif(not COCO.is_file(), reason="COCO's captions do not lie in ../shared beside the checkout")
def test_coco_s_captions_are_normalized_as_before():
    texts = [entry["caption"] for entry in json.loads(gzip.decompress(COCO.read_bytes()))["annotations"]][::5]
    tokenizer = train_tokenizer(texts[:100], 300)
    assert normalized(tokenizer, texts) == [" ".join(text.lower().split()) for text in texts]
    assert losing_accents(tokenizer, texts) == []


def test_keep_accents_is_recorded_and_a_change_prepares_anew(make_tiny_coco, capsys):
    paths = make_tiny_coco(train=4, val=2, unlabeled=0)
    for split, texts in (("train", ["Über dem Rasen", "a dog"]), ("val", ["a café", "빨간 공"])):
        content = json.loads(paths[f"{split}_captions"].read_text())
        ids = [image["id"] for image in content["images"]]
        content["annotations"] = [{"image_id": i, "caption": text} for i, text in zip(ids, texts)]
        paths[f"{split}_captions"].write_text(json.dumps(content))
    for file in paths["processed"].iterdir():  # another tokenizer and its lists, of no record
        file.unlink()

    def said(*options: str) -> tuple[str, str]:
        process_coco.main(["--captions-only", "--data", str(paths["data"]), *options])
        tokenizer = parse_tokenizer(paths["tokenizer"].read_text(), "tokenizer")
        return capsys.readouterr().out, tokenizer.decode(tokenizer.encode("Über 빨간").ids)

    printed, read = said()
    assert read == "uber 빨간"
    for split in ("train", "val"):
        assert f"{split}: 1 captions lose their accents; with --keep-accents they keep them\n" in printed
    printed, read = said("--keep-accents")
    assert read == "über 빨간"
    assert "tokenizer:" in printed
    assert "lose" not in printed
    assert "nothing to do" in said("--keep-accents")[0]
    printed, read = said()  # as before, or a later --resize would take them away
    assert "nothing to do" in printed
    assert read == "über 빨간"
    assert said("--no-keep-accents")[1] == "uber 빨간"
