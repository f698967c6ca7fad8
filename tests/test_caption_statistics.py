"""What is counted over captions, by hand-made examples."""

import pytest
import torch

from scoring.assessment import assess, caption_statistics, constant_caption, human_captions, lines
from scoring.comparison import Scoring
from scoring.metrics import METRICS, score


def test_captions_are_counted_as_one_would_by_hand():
    captions = ["A dog runs.", "a dog runs", "A cat!", "a red cat", "two dogs, two cats"]
    counts = caption_statistics(captions, ["a DOG runs...", "A cat", "something else", "a red"])
    assert (counts.captions, counts.distinct) == (5, 4)
    assert counts.words == 8  # a dog runs cat red two dogs cats
    assert counts.in_train == 3  # the dog twice, the cat once; "a red cat" is no "a red"
    assert (counts.most_frequent, counts.most_frequent_count) == ("A dog runs.", 2)


@pytest.mark.parametrize(
    ("captions", "collapsed"),
    [
        (["a"] * 51 + [f"b {number}" for number in range(49)], True),  # one is more than half
        (["a"] * 50 + [f"b {number}" for number in range(50)], False),
        ([f"a {number % 4}" for number in range(100)], True),  # 4 % distinct
        ([f"a {number % 5}" for number in range(100)], False),
        (["a"] * 19, False),  # too few to tell
        (["a"] * 20, True),
    ],
)
def test_a_model_that_says_the_same_of_most_pictures_is_called_collapsed(captions, collapsed):
    assert caption_statistics(captions).collapsed is collapsed


def test_the_warning_of_a_collapse_names_the_caption_and_the_counts():
    warning = caption_statistics(["a man on a street"] * 30 + ["a dog"]).warning()
    assert all(
        part in warning for part in ("collapsed", "2 distinct", "31 pictures", "30", "a man on a street")
    )


def test_different_words_are_counted_by_what_is_compared():
    captions = ["一只狗在草地上跑", "一只猫在草地上跑"]
    assert caption_statistics(captions).words == 2
    assert caption_statistics(captions, (), Scoring(unit="character").tokenize).words == 9


def test_the_constant_caption_is_the_most_frequent_one_whatever_its_punctuation():
    train = ["A cat sits.", "a dog runs", "A dog  runs.", "a cat sits there on the mat"]
    assert constant_caption(train) == "a dog runs"


def test_where_no_caption_occurs_twice_the_constant_one_has_the_most_usual_runs_of_words():
    subjects = (
        "a man is standing on a street",
        "a dog is standing on a street",
        "a cat is standing on a mat",
    )
    train = ["zebras graze on a wide green plain", *subjects, "two zebras"]
    # Runs of four in the second: "a man is standing" 1, "man is standing on" 1, "is standing on a" 3,
    # "standing on a street" 2: 7 / 4.  The third has the same sum and is before it in the alphabet.
    assert constant_caption(train) == "a man is standing on a street"
    assert constant_caption([]) == ""


def test_a_person_s_caption_is_the_first_of_each_picture_that_has_others():
    references = {1: ["a", "b", "c"], 2: ["d"], 3: [], 4: ["e", "f"]}
    assert human_captions(references) == ({1: ["b", "c"], 4: ["f"]}, {1: "a", 4: "e"})


def test_the_assessment_holds_what_each_part_gives_and_leaves_no_picture_unmentioned():
    references = {1: ["a dog runs on a road", "a dog on the road"], 2: ["a cat sits here"], 3: []}
    captions = {1: "a dog runs on the road", 2: "a cat sits on a mat", 3: "nothing known of this"}
    train = ["a cat sits on a mat", "a cat sits on a mat", "a dog"]
    found = assess(references, captions, dict.fromkeys(captions, -1.0), train)
    known = {1: references[1], 2: references[2]}
    assert found["metrics"] == score(known, {1: captions[1], 2: captions[2]})
    assert found["constant_caption_metrics"] == score(known, dict.fromkeys(known, "a cat sits on a mat"))
    assert found["human_metrics"] == score({1: references[1][1:]}, {1: references[1][0]})
    assert (found["images"], found["scored_images"], found["human_images"]) == (3, 2, 1)
    assert found["calibration"] is None  # too few
    for metric in METRICS:
        low, high = found["intervals"][metric]
        assert low <= high

    page = "\n".join(lines(found))
    assert "1 images have no reference captions" in page
    assert "collapsed" not in page
    for row, metric in zip(page.splitlines()[1:], METRICS):
        figures = [row.split()[1], *row.split()[-2:]]
        columns = ("metrics", "constant_caption_metrics", "human_metrics")
        assert [float(figure) for figure in figures] == pytest.approx(
            [100 * found[column][metric] for column in columns], abs=0.005
        )


def test_without_a_second_reference_there_is_no_human_score():
    found = assess({1: ["a dog"]}, {1: "a dog"}, {1: -1.0}, ["a dog"])
    assert found["human_metrics"] is None
    assert "no image has two captions" in "\n".join(lines(found))


def test_a_collapsed_model_is_called_that_on_the_page():
    references = {number: ["a dog runs on a road"] for number in range(30)}
    found = assess(references, dict.fromkeys(references, "a man"), dict.fromkeys(references, -1.0), ["a man"])
    assert found["captions"]["collapsed"] is True
    assert "WARNING: the model has collapsed" in "\n".join(lines(found))


def test_the_confidence_foretells_the_share_of_words_that_references_have():
    """Half of the captions are right and likely, half share one word of two and are unlikely."""
    torch.manual_seed(0)
    right = (torch.rand(400) < 0.5).tolist()
    dogs = ("dog", "hound")  # were all references the same, CIDEr would be 0
    references = {number: [f"{dogs[number % 2]} runs"] for number in range(400)}
    captions = {n: references[n][0] if right[n] else f"{dogs[n % 2]} sits" for n in range(400)}
    scores = {number: -0.1 - number / 4000 - (0 if right[number] else 1) for number in range(400)}
    found = assess(references, captions, scores, ["a"])["calibration"]
    # A bin in the middle may hold some of both; those beside it are pure.
    assert (found["confidences"][0], found["confidences"][-1]) == pytest.approx((0.5, 1.0))
    assert sum(row["captions"] for row in found["reliability"]) == 400
    assert found["error"] < 0.05
    assert found["rank_correlation"] == pytest.approx(0.866, abs=0.01)  # √¾: CIDEr has two values, half each
