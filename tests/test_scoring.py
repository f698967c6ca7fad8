"""A right caption scores as right in every script, and COCO's are scored as the official evaluation does."""

from dataclasses import replace

import pytest
from PIL import Image

from coco.tokenizer import normalized, parse_tokenizer, train_tokenizer
from evaluation_report import examples
from scoring.assessment import assess, lines
from scoring.comparison import OFFICIAL, characters, choose_scoring, mostly_unspaced
from scoring.metrics import METRICS, image_statistics, score
from scoring.ptb_tokenizer import ptb_tokenize
from scoring.report import page
from tests.captioner_cases import random_captioner
from tests.language_cases import CAPTIONS, STRIPPED, UNSPACED
from transformer_components.beam_search import Hypothesis


@pytest.fixture(scope="module")
def captioner():
    return random_captioner()


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("language", CAPTIONS)
def test_a_right_caption_is_perfect(language, keep, captioner):
    """Korean came back in pieces, Hindi and Thai without vowels; German was compared with its own accents.

    From the caption to tokens, to what the captioner says, to the score that it gets unless asked otherwise.
    """
    text = CAPTIONS[language][0]
    tokenizer = train_tokenizer([text] * 2, 400, keep)
    captioner = replace(captioner, tokenizer=parse_tokenizer(tokenizer.to_str(), "a checkpoint's"))
    said = captioner.text(Hypothesis(tokenizer.encode(text).ids, 0.0, 0.0, []))
    assert said == normalized(tokenizer, [text])[0]
    scoring = choose_scoring(captioner.tokenizer, [text])
    assert scoring.unit == ("character" if language in UNSPACED else "word")
    if language in STRIPPED and not keep:
        assert scoring.references == "normalized"
    assert score({1: [text]}, {1: said}, scoring.tokenize)["BLEU-4"] == pytest.approx(1)


def test_the_rule_for_references_is_one_in_a_hundred():
    tokenizer = train_tokenizer(["a dog", "a dog"], 300)
    few, many = ["a Dog  runs"] * 99 + ["a café"], ["a dog"] * 97 + ["a café"] * 2
    assert choose_scoring(tokenizer, few).references == "official"
    scoring = choose_scoring(tokenizer, many)
    assert (scoring.references, scoring.signature) == ("normalized", "coco-ptb normalized")
    assert "changes 2 of 99 references" in scoring.notes[0]
    official = choose_scoring(tokenizer, many, references="official")
    assert official.tokenize(["a Café."]) == ptb_tokenize(["a Café."]) == ["a café"]
    assert "--references normalized" in official.notes[0]
    assert scoring.tokenize(["a Café."]) == ["a cafe"]
    kept = train_tokenizer(["a dog", "a dog"], 300, keep_accents=True)
    assert choose_scoring(kept, many).references == "official"


def test_the_rule_for_characters_is_half_of_the_letters():
    tokenizer = train_tokenizer(["a dog", "a dog"], 300)
    assert not mostly_unspaced([])
    assert not mostly_unspaced(["abc 红色的", "123 。。。", "abcd ที่ที่"]), "marks are no letters"
    scoring = choose_scoring(tokenizer, ["abc 红色的狗"])
    assert (scoring.unit, scoring.signature) == ("character", "characters")
    assert "does not compare with words" in scoring.notes[0]
    words = choose_scoring(tokenizer, ["abc 红色的狗"], unit="word")
    assert words.unit == "word"
    assert "--unit character" in words.notes[0]
    assert choose_scoring(tokenizer, ["a dog"], unit="character").notes == ()


def test_characters_are_letters_with_their_marks():
    assert characters(["ที่นี่ ๑2", "A red-Dog, 。", "कि!", "", "☀️ \u0301a"]) == [
        "ที่ นี่ ๑ 2",
        "a r e d d o g",
        "कि",
        "",
        "a",
    ]


def test_character_scores_are_word_scores_of_letters_with_blanks_between():
    """An oracle that knows no characters: the same letters, written as words."""
    references = {1: ["红色的狗在跑", "一只狗"], 2: ["两辆红色的车在路上"]}
    hypotheses = {1: "红的狗跑", 2: "红色的车在路上"}
    spaced = {i: [" ".join(text) for text in texts] for i, texts in references.items()}
    expected = score(spaced, {i: " ".join(text) for i, text in hypotheses.items()})
    assert score(references, hypotheses, characters) == pytest.approx(expected)
    assert score(references, hypotheses)["BLEU-4"] < 1e-3 < expected["BLEU-4"]


def test_all_figures_of_an_assessment_are_of_one_scoring():
    """The model's, the constant caption's and people's, and the share of captions known from train."""
    text = CAPTIONS["German"][0]
    tokenizer = train_tokenizer([text] * 2, 400)
    scoring = choose_scoring(tokenizer, [text])
    references = {i: [text, CAPTIONS["German"][1]] for i in range(3)}  # people differ in accents alone
    said, sure = dict.fromkeys(references, CAPTIONS["German"][1]), dict.fromkeys(references, -1.0)
    found = assess(references, said, sure, [text], scoring)
    for key in ("metrics", "constant_caption_metrics", "human_metrics"):
        assert found[key]["BLEU-4"] == pytest.approx(1), key
    assert (found["references"], found["unit"]) == ("normalized", "word")
    assert (found["captions"]["in_train"], found["captions"]["share_in_train"]) == (3, 1.0)
    note = "the tokenizer changes 1 of 1 references beyond case"
    assert f"note: {note}" in "\n".join(lines(found))
    assert f"Note: {note}" in page(found | {"split": "val2017", "signature": ""}, {}, [], {}, {})
    official = assess({i: [text] for i in references}, said, sure, [text])
    assert (official["references"], official["unit"], official["notes"]) == ("official", "word", [])
    assert official["metrics"]["BLEU-4"] < 0.1
    assert list(official["metrics"]) == list(METRICS)


def test_the_captions_of_a_report_are_scored_as_all_are(captioner, tmp_path):
    text, said = "Öl an der Tür", "ol an der tur"  # short enough for the little decoder
    Image.new("RGB", (40, 30)).save(tmp_path / "1.png")
    scoring = choose_scoring(train_tokenizer([text] * 2, 400), [text])
    chosen = examples(captioner, lambda _: tmp_path / "1.png", {1: [text]}, {1: said}, scoring=scoring)
    assert chosen["best"][0].figures["BLEU-4"] == pytest.approx(1)
    assert chosen["best"][0].references == [text], "shown as people wrote it"


def test_scoring_as_by_default_is_the_official_one():
    references, hypotheses = {1: ["A café's dog."], 2: ["Two red cars"]}, {1: "a cafe's dog", 2: "red cars"}
    ours = image_statistics(references, hypotheses, OFFICIAL.tokenize)
    official = image_statistics(references, hypotheses)
    assert ours.matches.tolist() == official.matches.tolist()
    assert ours.cider.tolist() == official.cider.tolist()


def test_captions_in_english_are_scored_officially():
    texts = ["A dog runs on the  grass.", "TWO DOGS\n", ""]
    scoring = choose_scoring(train_tokenizer(texts, 300), texts)
    assert (scoring.signature, scoring.notes) == ("coco-ptb", ())
    assert scoring.tokenize(texts) == ptb_tokenize(texts)
