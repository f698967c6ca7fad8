"""Draws the embedded sample data set: small scenes with five captions each, in COCO's own layout.

    python sample_coco.py [--data data/sample] [--seed 0]

Some 7,500 images in about 25 s of one core.  A scene is one to three coloured things on one of four
grounds, captioned as five people would word it.  Everything about an image is a pure function of (seed,
split, index): the same seed gives the same bytes on every run, however many processes draw.  Six of the 48
pairs of colour and thing (`NEW_PAIRS`) occur in val and test only, which so ask for new combinations.
"""

import shutil
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from images.image_folders import image_name
from paths import CAPTIONED_SPLITS, SPLITS, default_paths, locations
from sample_data.illustration import Placed, illustrate
from sample_data.scenes import Scene, Thing, extent, invent
from sample_data.things import THINGS
from support import command_line
from support.errors import RunError, UsageError
from support.files import digest, read_json, write_json
from support.parallel import on_all_cores

SIZES = {"train": 6000, "val": 400, "test": 60, "unlabeled": 1000}  # images
FIRST_ID = {
    "train": 1,
    "val": 100_001,
    "test": 200_001,
    "unlabeled": 300_001,
}  # as in COCO, none in two splits
FORMATS = ((160, 120), (160, 120), (150, 120), (144, 120), (120, 144))  # pixels; like COCO's, most lie flat
JPEG_QUALITY = 90
CAPTIONS_PER_IMAGE = 5
NEW_PAIRS = frozenset(
    [
        ("purple", "cat"),
        ("green", "car"),
        ("blue", "mushroom"),
        ("red", "ball"),
        ("pink", "house"),
        ("yellow", "kite"),
    ]
)

STAMP = "sample.json"  # in the data root: what was drawn, by what, and whether it is complete
DRAWN_BY = ("sample_coco.py", "sample_data/scenes.py", "sample_data/illustration.py", "sample_data/things.py")

# ---------------------------------------------------------------------------------------------------------
# Section 1: captions
#
# Every choice of words lists the most usual first; of n words, each is as likely as its weight in USUAL.

USUAL = (6, 2, 1)
NOUNS = {
    "house": ("house", "cottage"),
    "tree": ("tree", "pine tree", "fir tree"),
    "car": ("car",),
    "cat": ("cat", "kitty"),
    "ball": ("ball", "beach ball"),
    "mushroom": ("mushroom", "toadstool"),
    "balloon": ("hot air balloon", "balloon"),
    "kite": ("kite",),
}
DOING = {
    "house": ("standing",),
    "tree": ("standing", "growing"),
    "car": ("parked",),
    "cat": ("sitting",),
    "ball": ("lying",),
    "mushroom": ("growing", "standing"),
    "balloon": ("floating", "flying"),
    "kite": ("flying",),
}
ADJECTIVES = {"small": ("small", "little", "tiny"), "plain": ("",), "big": ("big", "large")}
ON = {
    "meadow": ("on the grass", "in a green meadow", "in a field"),
    "beach": ("on the beach", "on the sand", "by the sea"),
    "snow": ("in the snow", "on a snowy field"),
    "street": ("on the street at night", "on a dark street", "on the road at night"),
}
OVER = {
    "meadow": ("over a green meadow", "over the grass"),
    "beach": ("over the beach", "over the sea"),
    "snow": ("over the snow", "over a snowy field"),
    "street": ("over the city at night", "over a dark street"),
}
VIEW = {
    "meadow": ("a green meadow", "a grassy field"),
    "beach": ("a sunny beach", "a sandy beach"),
    "snow": ("a snowy field", "a winter scene"),
    "street": ("a city street at night", "a dark street"),
}
RELATIONS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "near": ("next to", "beside"),
    "above": ("above", "over"),
    "below": ("under", "below"),
}

# One voice a line.  {a}, {b}, {c} are the things in the layout's order, {on}, {over} and {view} the ground.
VOICES = {
    "alone": (
        "{a} {on}",
        "there is {a} {on}",
        "{a} {doing_a} {on}",
        "{view} with {a}",
        "{a} is {doing_a} {on}",
        "{on} there is {a}",
    ),
    "beside": (
        "{a} {left} {b} {on}",
        "there is {a} {left} {b}",
        "{b} {right} {a} {on}",
        "{view} with {a} {left} {b}",
        "{a} and {b} {on}",
        "{a} {doing_a} {left} {b}",
        "{on} {b} is {right} {a}",
        "{a} {near} {b} {on}",
    ),
    "behind": (
        "{a} behind {b} {on}",
        "there is {a} behind {b}",
        "{b} in front of {a} {on}",
        "{view} with {a} behind {b}",
        "{b} with {a} behind it",
        "{a} {doing_a} behind {b} {on}",
        "{on} {b} is in front of {a}",
    ),
    "above": (
        "{a} {above} {b} {on}",
        "there is {a} {above} {b}",
        "{b} {on} {below} {a}",
        "{view} with {a} {above} {b}",
        "{a} {doing_a} {above} {b} {on}",
        "{b} {on} and {a} in the sky",
        "{b} {doing_b} {below} {a}",
    ),
    "row": (
        "{b} between {a} and {c} {on}",
        "there is {b} between {a} and {c}",
        "{a}, {b} and {c} {on}",
        "{view} with {a}, {b} and {c}",
        "{b} {doing_b} between {a} and {c}",
        "{on} {b} is between {a} and {c}",
        "{a} {left} {b} and {c}",
    ),
    "beside_and_sky": (
        "{c} {above} {a} and {b} {on}",
        "there is {a} {left} {b} {below} {c}",
        "{a} {left} {b} {on} with {c} in the sky",
        "{view} with {a}, {b} and {c} in the sky",
        "{c} {doing_c} {above} {a} and {b}",
        "{on} {a} is {left} {b} {below} {c}",
        "{c} in the sky, {b} {right} {a} {on}",
    ),
}


def usual(random: Random, wordings: tuple[str, ...]) -> str:
    return random.choices(wordings, USUAL[: len(wordings)])[0]


def noun_phrase(random: Random, thing: Thing, says_size: bool) -> str:
    size = usual(random, ADJECTIVES[thing.size]) if says_size else ""
    return " ".join(f"a {size} {thing.colour} {usual(random, NOUNS[thing.kind])}".split())


def word(random: Random, voice: str, scene: Scene) -> str:
    """One person's caption of a scene."""
    says_size = random.random() < 0.75
    words = {relation: usual(random, wordings) for relation, wordings in RELATIONS.items()}
    for name, thing in zip("abc", scene.things):
        words[name] = noun_phrase(random, thing, says_size)
        words[f"doing_{name}"] = usual(random, DOING[thing.kind])
    flying = scene.layout == "alone" and THINGS[scene.things[0].kind].flies
    words["on"] = usual(random, (OVER if flying else ON)[scene.ground])
    words["view"] = usual(random, VIEW[scene.ground])
    caption = voice.format_map(words)
    if random.random() < 0.7:
        caption = caption[0].upper() + caption[1:]
    return caption + "." * (random.random() < 0.6)


def write_captions(random: Random, scene: Scene) -> list[str]:
    """Five captions in five voices, so that no two are worded alike."""
    voices = list(VOICES[scene.layout])
    if scene.layout == "beside" and scene.things[1].box[0] - scene.things[0].box[2] > 0.2:
        voices = [voice for voice in voices if "{near}" not in voice]  # nobody says so of things far apart
    return [word(random, voice, scene) for voice in random.sample(voices, CAPTIONS_PER_IMAGE)]


# ---------------------------------------------------------------------------------------------------------
# Section 2: images


def draw_picture(
    where: dict[str, Path], seed: int, task: tuple[str, int]
) -> tuple[dict[str, Any], list[str]]:
    """Draws and saves the image of (split, index); returns its COCO entry and its captions."""
    split, index = task
    scene = invent_scene(seed, split, index)
    random = Random(f"picture {seed} {split} {index}")
    width, height = random.choice(FORMATS)
    side = min(width, height)
    left, top = (width - side) / 2 / side, (height - side) / 2 / side  # the central square's corner
    nearest_last = sorted(scene.things, key=lambda thing: thing.base)
    placed = [
        Placed(thing.kind, thing.colour, left + thing.x, top + thing.base, extent(thing.kind, thing.size)[1])
        for thing in nearest_last
    ]
    picture = illustrate((width, height), scene.ground, top + scene.horizon, placed, random)
    image_id = FIRST_ID[split] + index
    picture.save(where[f"{split}_images"] / image_name(image_id), quality=JPEG_QUALITY)
    entry = {
        "license": 1,
        "file_name": image_name(image_id),
        "coco_url": "",
        "height": height,
        "width": width,
        "date_captured": "2017-01-01 00:00:00",
        "flickr_url": "",
        "id": image_id,
    }
    return entry, write_captions(Random(f"captions {seed} {split} {index}"), scene)


def invent_scene(seed: int, split: str, index: int) -> Scene:
    """The scene of one image; only val and test show the new pairs."""
    banned = NEW_PAIRS if split in ("train", "unlabeled") else frozenset()
    return invent(Random(f"scene {seed} {split} {index}"), banned)


# ---------------------------------------------------------------------------------------------------------
# Section 3: files


def draw(
    destination: str | Path, seed: int = 0, sizes: dict[str, int] | None = None, progress: bool = True
) -> bool:
    """Draws the data set into `destination`, unless it is there already.

    All is drawn into a folder aside and moved in when whole, and last of all the stamp `sample.json` calls it
    complete: a killed drawing is never taken for a finished one, and the next call draws it anew.

    Args:
        destination: the data root, e.g. `data/sample`.
        seed: of everything.
        sizes: images per split; a split left out has none.  Default: `SIZES`.
        progress: show a bar.

    Returns:
        True when it drew, False when this very drawing was there already.

    Raises:
        UsageError: the folder holds images or captions that were not drawn here.
        RunError: the disk is full or the folder cannot be written.
    """
    destination = Path(destination)
    sizes = {split: (SIZES if sizes is None else sizes).get(split, 0) for split in SPLITS}
    here = Path(__file__).parent
    stamp = {"seed": seed, "sizes": sizes, "drawn_by": {name: digest(here / name) for name in DRAWN_BY}}
    if is_complete(destination, stamp):
        return False
    refuse_foreign(destination)
    try:
        write_json(destination / STAMP, stamp | {"complete": False})
        aside = destination / "drawing"
        shutil.rmtree(aside, ignore_errors=True)
        draw_aside(aside, seed, sizes, progress)
        for folder in sorted(aside.iterdir(), reverse=True):  # `annotations` comes last
            shutil.rmtree(destination / folder.name, ignore_errors=True)
            folder.rename(destination / folder.name)
        aside.rmdir()
        write_json(destination / STAMP, stamp | {"complete": True})
    except OSError as error:
        raise RunError(f"cannot draw the sample data set into {destination}: {error}") from error
    return True


def is_complete(destination: Path, stamp: dict[str, Any]) -> bool:
    """Whether just this was drawn to its end, and no file of it has been lost since."""
    if read_json(destination / STAMP, {}) != stamp | {"complete": True}:
        return False
    where = locations(destination)
    counts = {split: len(list(where[f"{split}_images"].glob("*.jpg"))) for split in SPLITS}
    captioned = all(where[f"{split}_captions"].is_file() for split in CAPTIONED_SPLITS)
    return captioned and counts == stamp["sizes"]


def refuse_foreign(destination: Path) -> None:
    """Never replaces somebody's COCO: only a folder that holds our stamp is drawn over."""
    where = locations(destination)
    folders = [where["annotations"], *(where[f"{split}_images"] for split in SPLITS)]
    found = [folder for folder in folders if folder.exists()]
    if found and not (destination / STAMP).exists():
        raise UsageError(f"{found[0]} was not drawn by sample_coco.py: name another folder with --data")
    if destination.exists() and not destination.is_dir():
        raise UsageError(f"{destination} is not a folder: name another with --data")


def draw_aside(root: Path, seed: int, sizes: dict[str, int], progress: bool) -> None:
    """Pictures and caption files of all splits below `root`."""
    where = locations(root)
    for split in SPLITS:
        where[f"{split}_images"].mkdir(parents=True)
    tasks = [(split, index) for split in SPLITS for index in range(sizes[split])]
    drawn: dict[str, list] = {split: [] for split in SPLITS}
    work = partial(draw_picture, where, seed)
    for (split, _), result in on_all_cores(work, tasks, "drawing", "picture", few=200, hidden=not progress):
        drawn[split].append(result)
    for split in CAPTIONED_SPLITS:
        write_json(where[f"{split}_captions"], annotations(split, drawn[split]))


def annotations(split: str, drawn: list[tuple[dict[str, Any], list[str]]]) -> dict[str, Any]:
    """What COCO's `captions_{split}2017.json` holds."""
    pairs = [(entry["id"], caption) for entry, captions in drawn for caption in captions]
    return {
        "info": {
            "description": "Sample data set in the layout of COCO 2017",
            "url": "",
            "version": "1.0",
            "year": 2017,
            "contributor": "sample_coco.py",
            "date_created": "2017/01/01",
        },
        "licenses": [{"url": "https://opensource.org/license/mit", "id": 1, "name": "MIT License"}],
        "images": [entry for entry, _ in drawn],
        "annotations": [
            {"image_id": image_id, "id": number, "caption": caption}
            for number, (image_id, caption) in enumerate(pairs, start=FIRST_ID[split])
        ],
    }


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.Parser(description=__doc__.partition("\n")[0])
    place = default_paths(sample=True)["data"]
    parser.add_argument("--data", default=place, metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default: %(default)s)")
    options = parser.parse_args(arguments)
    drew = draw(options.data, options.seed)
    pictures = ", ".join(f"{count} {split}" for split, count in SIZES.items())
    print(f"{options.data}: {pictures} pictures {'drawn' if drew else 'were there already'}")


if __name__ == "__main__":
    command_line.run(main)
