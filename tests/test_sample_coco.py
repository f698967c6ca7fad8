"""The sample data set: COCO's layout, true captions, the same bytes from one seed, nothing half drawn."""

import itertools
import json
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from random import Random

import pytest
from PIL import Image

import sample_coco
from images.image_folders import image_name
from paths import CAPTIONED_SPLITS, SPLITS, locations
from sample_coco import NEW_PAIRS, draw, invent_scene, write_captions
from sample_data.illustration import Placed, illustrate
from sample_data.scenes import FITS, LAYOUTS, MARGIN, Scene, Thing, arrange, inside
from sample_data.things import COLOURS, THINGS
from scoring.metrics import score
from support.errors import RunError, UsageError

TINY = {"train": 6, "val": 4, "test": 2, "unlabeled": 3}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sample") / "deep" / "sample"
    assert draw(root, seed=3, sizes=TINY, progress=False)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def captioned(split: str, count: int, seed: int = 0) -> list[tuple[Scene, list[str]]]:
    scenes = [invent_scene(seed, split, index) for index in range(count)]
    return [(scene, write_captions(Random(f"{split} {index}"), scene)) for index, scene in enumerate(scenes)]


# ---------------------------------------------------------------------------------- layout and files


def test_the_layout_is_cocos(tiny):
    where = locations(tiny)
    for split in SPLITS:
        assert len(list(where[f"{split}_images"].iterdir())) == TINY[split]
    assert (tiny / "train2017" / "000000000001.jpg").is_file()
    assert [path.name for path in sorted(where["annotations"].iterdir())] == [
        "captions_train2017.json",
        "captions_val2017.json",
    ]


@pytest.mark.parametrize("split", CAPTIONED_SPLITS)
def test_the_annotations_have_cocos_keys(tiny, split):
    where = locations(tiny)
    found = json.loads(where[f"{split}_captions"].read_text())
    assert set(found) == {"info", "licenses", "images", "annotations"}
    info = {"description", "url", "version", "year", "contributor", "date_created"}
    assert set(found["info"]) == info
    for entry in found["images"]:
        assert {"license", "file_name", "coco_url", "height", "width", "date_captured", "id"} <= set(entry)
        assert entry["file_name"] == image_name(entry["id"])
        with Image.open(where[f"{split}_images"] / entry["file_name"]) as picture:
            assert (picture.format, picture.mode, picture.size) == (
                "JPEG",
                "RGB",
                (entry["width"], entry["height"]),
            )
    assert all(set(entry) == {"image_id", "id", "caption"} for entry in found["annotations"])
    assert len({entry["id"] for entry in found["annotations"]}) == 5 * TINY[split]
    assert Counter(entry["image_id"] for entry in found["annotations"]) == {
        entry["id"]: 5 for entry in found["images"]
    }


def test_no_id_is_in_two_splits_and_no_two_pictures_are_alike(tiny):
    pictures = list(tiny.rglob("*.jpg"))
    assert len({path.name for path in pictures}) == len({path.read_bytes() for path in pictures}) == 15


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tiny, tmp_path):
    draw(tmp_path / "again", seed=3, sizes=TINY, progress=False)
    draw(tmp_path / "other", seed=4, sizes=TINY, progress=False)
    again, other = contents(tmp_path / "again"), contents(tmp_path / "other")
    assert again == contents(tiny)
    assert set(other) == set(again)
    assert not [name for name in again if other[name] == again[name]]


def test_the_number_of_processes_and_of_pictures_changes_nothing(tiny, tmp_path):
    """A generator shared by all pictures would give each process, and each larger set, other pictures."""
    draw(tmp_path / "many", seed=3, sizes=TINY | {"unlabeled": 200}, progress=False)
    many = contents(tmp_path / "many")
    assert {name: many[name] for name in contents(tiny) if name != sample_coco.STAMP} == {
        name: content for name, content in contents(tiny).items() if name != sample_coco.STAMP
    }


# ---------------------------------------------------------------- finished, killed, foreign, failing


def test_a_second_call_draws_nothing(tiny, monkeypatch):
    monkeypatch.setattr(sample_coco, "draw_picture", lambda *_: pytest.fail("drew again"))
    assert draw(tiny, seed=3, sizes=TINY, progress=False) is False


@pytest.mark.parametrize(
    "lost", ["val2017/000000100002.jpg", "annotations/captions_val2017.json", "sample.json"]
)
def test_what_is_lost_is_drawn_again(tmp_path, lost):
    draw(tmp_path, sizes=TINY, progress=False)
    whole = contents(tmp_path)
    (tmp_path / lost).unlink()
    if lost == sample_coco.STAMP:  # without it the folder might be anybody's
        (tmp_path / lost).write_text('{"complete": fal')
    assert draw(tmp_path, sizes=TINY, progress=False)
    assert contents(tmp_path) == whole


def test_another_seed_or_size_replaces_the_drawing_and_leaves_other_files_alone(tmp_path):
    draw(tmp_path, sizes=TINY, progress=False)
    (tmp_path / "processed").mkdir()
    assert draw(tmp_path, sizes={"train": 2, "val": 1}, seed=1, progress=False)
    assert len(list(tmp_path.rglob("*.jpg"))) == 3
    assert (tmp_path / "processed").is_dir()


@pytest.mark.parametrize("step", range(1, 7))
def test_wherever_it_is_cut_off_the_next_run_completes_it(tmp_path, monkeypatch, step):
    """The folders move in one by one; dying between two must not leave a "finished" mixture."""
    draw(tmp_path / "whole", sizes=TINY, progress=False)
    draw(tmp_path / "cut", sizes=TINY, seed=1, progress=False)  # an older one, as large, is being replaced
    calls = itertools.count(1)
    rename = Path.rename

    def dies(self, target):
        rename(self, target)
        if next(calls) == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dies)
        cut_off = step <= 5  # the sixth call never comes: five folders
        with pytest.raises(KeyboardInterrupt) if cut_off else nullcontext():
            draw(tmp_path / "cut", sizes=TINY, progress=False)
    assert draw(tmp_path / "cut", sizes=TINY, progress=False) is cut_off
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_killed_process_leaves_nothing_that_looks_finished(tmp_path):
    script = [sys.executable, str(Path(sample_coco.__file__)), "--data", str(tmp_path / "sample")]
    process = subprocess.Popen(script, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.jpg")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert [path.name for path in (tmp_path / "sample").iterdir() if path.is_dir()] == ["drawing"]
    time.sleep(1)  # its workers find nothing more to do
    assert draw(tmp_path / "sample", sizes=TINY, progress=False)
    assert not (tmp_path / "sample" / "drawing").exists()


def test_it_never_draws_over_somebodys_coco(tmp_path):
    (tmp_path / "train2017").mkdir()
    (tmp_path / "train2017" / "000000000001.jpg").write_bytes(b"a photograph")
    with pytest.raises(UsageError, match=r"train2017 was not drawn by sample_coco\.py.*--data"):
        draw(tmp_path, sizes=TINY, progress=False)
    assert contents(tmp_path) == {"train2017/000000000001.jpg": b"a photograph"}


def test_errors_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not a folder"):
        draw(tmp_path / "file", sizes=TINY, progress=False)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample_coco, "draw_picture", full)
    with pytest.raises(RunError, match="No space left on device"):
        draw(tmp_path / "sample", sizes=TINY, progress=False)


# ------------------------------------------------------------------------------- scenes and captions


def test_new_pairs_never_occur_in_train_and_do_in_val():
    def pairs(split, count):
        scenes = [invent_scene(0, split, index) for index in range(count)]
        return Counter((thing.colour, thing.kind) for scene in scenes for thing in scene.things)

    everything = set(itertools.product(COLOURS, THINGS))
    assert everything >= NEW_PAIRS
    assert set(pairs("train", 1000)) == set(pairs("unlabeled", 1000)) == everything - NEW_PAIRS
    val = pairs("val", 400)
    assert set(val) >= NEW_PAIRS
    assert 0.08 < sum(val[pair] for pair in NEW_PAIRS) / val.total() < 0.16


def test_things_stay_within_the_square_that_evaluation_sees():
    for index in range(300):
        for thing in invent_scene(0, "val", index).things:
            left, top, right, bottom = thing.box
            assert min(left, top, 1 - right, 1 - bottom) >= MARGIN - 1e-9


def test_every_choice_of_kinds_can_be_arranged():
    """House, car and tree side by side once needed more than the picture's width: the drawing never ended."""
    standing = [kind for kind, shape in THINGS.items() if not shape.flies]
    flying = [kind for kind, shape in THINGS.items() if shape.flies]
    pairs, triples = list(itertools.permutations(standing, 2)), list(itertools.permutations(standing, 3))
    choices = {
        "alone": [(kind,) for kind in THINGS],
        "beside": pairs,
        "behind": pairs,
        "above": list(itertools.product(flying, standing)),
        "row": triples,
        "beside_and_sky": [(*pair, upper) for pair in pairs for upper in flying],
    }
    assert set(choices) == set(LAYOUTS)
    random = Random(0)

    def arranged(layout, kinds):
        for _ in range(5000):
            things = arrange(random, layout, [(kind, "red") for kind in kinds], random.uniform(0.48, 0.56))
            if things and all(inside(thing) for thing in things) and FITS[layout](*things):
                return True
        return False

    assert not [
        (layout, kinds) for layout in LAYOUTS for kinds in choices[layout] if not arranged(layout, kinds)
    ]


def test_five_captions_worded_differently():
    for _, captions in captioned("train", 300):
        assert len({" ".join(re.findall(r"\w+", caption.lower())) for caption in captions}) == 5


MENTION = re.compile(r"\ba (?:(small|little|tiny|big|large) )?(\w+) (hot air |beach |pine |fir )?(\w+)")
SYNONYM = {"cottage": "house", "kitty": "cat", "toadstool": "mushroom"}
PHRASES = [
    phrase
    for words in (sample_coco.ON, sample_coco.OVER, sample_coco.VIEW)
    for wordings in words.values()
    for phrase in wordings
]
DOING = [word for words in sample_coco.DOING.values() for word in words]
NOISE = re.compile(r"\b(" + "|".join([*PHRASES, *DOING, "there is", "is"]) + r")\b|[.,]")
RELATION_WORDS = re.compile(r"\b(left|right|next|beside|above|over|under|below|behind|front|between)\b")


def mentions(scene: Scene, caption: str) -> tuple[str, list[Thing]]:
    """The caption with `0`, `1`, ... for its things and no place or doing, and the things in that order."""
    by_name = {(thing.colour, thing.kind): thing for thing in scene.things}
    found: list[Thing] = []

    def replace(match):
        size, colour, _, noun = match.groups()
        thing = by_name.get((colour, SYNONYM.get(noun, noun)))
        assert thing, f"{match[0]!r} of {caption!r} is not in the picture"
        claimed = {None: thing.size, "little": "small", "tiny": "small", "large": "big"}.get(size, size)
        assert thing.size == claimed, f"{match[0]!r} is {thing.size}"
        found.append(thing)
        return str(len(found) - 1)

    bare = " ".join(NOISE.sub(" ", caption.lower()).split())
    return MENTION.sub(replace, bare), found


def box(thing: Thing) -> tuple[float, float, float, float]:
    """Recomputed from the drawing's own figures."""
    height = THINGS[thing.kind].height * {"small": 0.7, "plain": 1.0, "big": 1.4}[thing.size]
    half = THINGS[thing.kind].width * height / 2
    return thing.x - half, thing.base - height, thing.x + half, thing.base


def left_of(a, b):
    return box(a)[2] < box(b)[0]


def higher(a, b):
    return box(a)[3] < box(b)[1]


def hidden_by(a, b):
    (left, _, right, _), (other_left, top, other_right, _) = box(a), box(b)
    return left < other_right and other_left < right and box(a)[3] > top and a.base < b.base


CLAIMS = [  # a wording, and what it says of the things it names
    (r"(\d) (?:to the )?left of (\d)(?: and (\d))?", lambda a, *others: all(left_of(a, b) for b in others)),
    (r"(\d) (?:to the )?right of (\d)(?: and (\d))?", lambda a, *others: all(left_of(b, a) for b in others)),
    (r"(\d) (?:above|over) (\d)(?: and (\d))?", lambda a, *others: all(higher(a, b) for b in others)),
    (r"(\d) (?:under|below) (\d)", lambda a, b: higher(b, a)),
    (r"(\d) behind (\d)", hidden_by),
    (r"(\d) in front of (\d)", lambda a, b: hidden_by(b, a)),
    (r"(\d) with (\d) behind it", lambda a, b: hidden_by(b, a)),
    (r"(\d) between (\d) and (\d)", lambda a, b, c: left_of(b, a) and left_of(a, c)),
    (r"(\d) (?:next to|beside) (\d)", lambda a, b: left_of(a, b) and box(b)[0] - box(a)[2] < 0.21),
]


def test_every_word_of_a_caption_is_true_of_the_scene():
    claimed = Counter()
    for scene, captions in captioned("val", 400):
        for caption in captions:
            text, things = mentions(scene, caption)
            words = len(RELATION_WORDS.findall(text))
            for pattern, holds in CLAIMS:
                for match in re.finditer(pattern, text):
                    named = [things[int(digit)] for digit in match.groups() if digit]
                    assert holds(*named), f"{caption!r} of {scene}"
                    claimed[pattern] += 1
                    words -= 1
            assert words == 0, f"{caption!r} ({text!r}) relates things in a way this test cannot judge"
    assert min(claimed[pattern] for pattern, _ in CLAIMS) >= 10


def test_the_ground_named_is_the_ground_drawn():
    grounds = {ground: set() for ground in sample_coco.ON}
    for words in (sample_coco.ON, sample_coco.OVER, sample_coco.VIEW):
        for ground, wordings in words.items():
            grounds[ground].update(wordings)
    for scene, captions in captioned("val", 200):
        for caption in captions:
            named = {g for g, phrases in grounds.items() if any(p in caption.lower() for p in phrases)}
            assert named <= {scene.ground}


def test_every_thing_shows_the_colour_it_is_called():
    for kind, colour in itertools.product(THINGS, COLOURS):
        shape = THINGS[kind]
        placed = Placed(kind, colour, 0.5, 0.9, shape.height)
        picture = illustrate((100, 100), "snow", 0.5, [placed], Random(1))
        half = round(50 * shape.width * shape.height)
        crop = picture.crop((50 - half, round(90 - 100 * shape.height), 50 + half, 90))
        pixels = [crop.getpixel((x, y)) for x in range(crop.width) for y in range(crop.height)]

        def distance(pixel, name):
            return sum((a - b) ** 2 for a, b in zip(pixel, COLOURS[name])) ** 0.5

        near = Counter(
            name for pixel in pixels for name in COLOURS if distance(pixel, name) < 45
        )  # a shaded pixel is near none
        assert near.most_common(1)[0][0] == colour, (kind, colour)
        assert near[colour] > 0.12 * len(pixels), (kind, colour)


def test_the_nearer_thing_hides_the_other():
    house, ball = Placed("house", "red", 0.5, 0.7, 0.5), Placed("ball", "blue", 0.5, 0.8, 0.3)
    picture = illustrate((80, 80), "meadow", 0.5, [house, ball], Random(0))
    red, _, blue = picture.getpixel((40, 47))  # in the ball's upper half, and in the middle of the house
    assert blue > red


def test_bleu_rewards_who_sees_and_not_who_guesses():
    """A describer with one stock phrase and true contents scores far above one who saw another picture."""
    scenes = captioned("val", 200)
    references = dict(enumerate(captions for _, captions in scenes))

    class Usual(Random):
        def choices(self, population, *_args, **_kwargs):
            return [population[0]]

    told = [sample_coco.word(Usual(0), sample_coco.VOICES[scene.layout][0], scene) for scene, _ in scenes]
    assert score(references, dict(enumerate(told)))["BLEU-4"] > 0.8
    others = told[1:] + told[:1]  # fluent, but of another picture
    assert score(references, dict(enumerate(others)))["BLEU-4"] < 0.3
    assert score(references, dict.fromkeys(references, "a small blue car on the grass"))["BLEU-4"] < 0.3
