"""Captions your own images with a trained captioner.

    python caption.py my_picture.jpg                      one image, or many, or folders of them
    python caption.py -c last --beams 1 photos/           by a captioner of your own
    python caption.py --n-best 3 - < my_picture.jpg
    python caption.py --explain sheets/ photos/           draws where it looked for each word
    python caption.py --json photos/ > captions.json
    python caption.py --recursive photos/                 the folders in it, too

Without -c it takes the weights that ship, weights/captioner.pt.  A checkpoint alone is enough: model,
tokenizer and image transform are rebuilt from it.  How sure it is of a caption it can say once
evaluate_captioner.py has measured that on val, in a file beside the checkpoint.
"""

import argparse
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from captioner import load_captioner as load_captioner  # found here, too: it is what other programs call
from image_description import STDIN, Picture, describe, explain, load_chosen, read_picture
from image_transforms import EvaluationTransform
from images import image_files, image_folders
from paths import ROOT, default_paths
from support import command_line, interrupts
from support.errors import RunError, UsageError, printable
from support.files import replacing, require_place

BATCH_SIZE = 16  # images captioned at once
SOFTWARE, SHEET = 0x0131, "caption.py --explain"  # the EXIF tag by which a sheet is known, and what it says


def find_pictures(places: Sequence[str], recursive: bool = False) -> list[Path]:
    """The images named, and those lying in the folders named, in order of name.

    One line on stderr says what of the folders was left out, and why.

    Raises:
        UsageError: a place is not there, a folder without pictures, or standard input for the second time.
    """
    if places.count("-") > 1:
        raise UsageError("`-` is there twice, and standard input holds one picture")
    found, left_out = [], Counter()
    for place in places:
        path = STDIN if place == "-" else Path(place)
        if path.is_dir():
            inside, others = image_folders.find_images(path, recursive)
            if not inside:
                said = image_folders.in_words(others)
                raise UsageError(f"{path}: no images in this folder{said and f': {said}'}")
            found += inside
            left_out += others
        elif path == STDIN or path.exists():
            found.append(path)
        else:
            raise UsageError(f"{path}: no such picture or folder")
    if left_out:
        print(f"caption.py: {image_folders.in_words(left_out)}", file=sys.stderr)
    return found


def read_pictures(places: Sequence[Path], transform: EvaluationTransform) -> Iterator[Picture]:
    """Each readable image; an unreadable one is named on stderr and left out."""
    for place in places:
        interrupts.check()
        try:
            yield read_picture(place, transform)
        except RunError as error:
            print(f"caption.py: {error}", file=sys.stderr)


def sheet_paths(out: Path, places: Iterable[Path]) -> dict[Path, Path]:
    """The file for each image's sheet: `out` itself for one, else files in the folder `out`.

    Raises:
        UsageError: many images and one file, or a sheet would take the place of an image that is none.
    """
    places = list(dict.fromkeys(places))
    sheets, names = {}, Counter()
    for place in places:
        names[place.name] += 1  # the same name may lie in two folders
        number = f"-{names[place.name]}" if names[place.name] > 1 else ""
        sheets[place] = out / f"{place.name}{number}.png"
    if out.suffix.lower() in image_files.suffixes() and not out.is_dir():
        if len(places) > 1:
            raise UsageError(f"--explain {out}: one file for {len(places)} pictures; name a folder")
        sheets = {places[0]: out}
    for sheet in sheets.values():
        require_place(sheet)
        if sheet.exists() and not is_sheet(sheet):
            raise UsageError(
                f"--explain: {sheet} is there, and not known for a sheet of before: name another place"
            )
    return sheets


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Writes a sheet in the format that the file's name asks for, marked if that has room for a mark."""
    sheet.getexif()[SOFTWARE] = SHEET
    with replacing(path) as temporary:
        sheet.save(temporary, format=Image.registered_extensions()[path.suffix.lower()], exif=sheet.getexif())


def is_sheet(path: Path) -> bool:
    """Whether a file is what `save_sheet` wrote, as far as its mark says so."""
    try:
        with open(path, "rb") as file, image_files.opened(file) as image:
            return image.getexif().get(SOFTWARE) == SHEET
    except Exception:  # decoders raise all kinds
        return False


def as_text(result: dict[str, Any]) -> str:
    """What is printed of an image: its caption, or its best ones with their scores."""
    name = printable(result["picture"])
    sure = "" if result["confidence"] is None else f"  (confidence {result['confidence']:.2f})"
    if "n_best" not in result:
        return f"{name}: {result['caption']}{sure}"
    ranked = [f"  {entry['score']:8.4f}  {entry['caption']}" for entry in result["n_best"]]
    return "\n".join([f"{name}:{sure}", *ranked])


def measuring(checkpoint: Path, options: argparse.Namespace) -> str:
    """The command that measures how sure this captioner may be, when it searches like this."""
    words: list[object] = ["python", ROOT / "evaluate_captioner.py", "-c", checkpoint]
    folder = checkpoint.resolve().parent
    stages = ("captioner_checkpoints", "self_critical_checkpoints")
    usual = [default_paths()[name].resolve() for name in stages]
    of_sample = [default_paths(sample=True)[name].resolve() for name in stages]
    if options.sample or folder in of_sample:
        words.append("--sample")
    elif folder not in usual and not os.environ.get("COCO_ROOT", "").strip():
        # So `process_coco.py --own` and `make photographs` name them.
        own = ROOT / "data" / folder.parent.name.removesuffix("-h100")
        words += ["--data", own if own.is_dir() else "DATA"]
    words += ["--beams", options.beams] if options.beams else []
    words += ["--consensus", options.consensus] if options.consensus is not None else []
    return shlex.join(map(str, words))


def as_json(results: list[dict[str, Any]]) -> str:
    """All results as JSON, in plain letters where the output can show them, else in escapes.

    A name that is not UTF-8 needs escapes, too: `os.fsencode` of the string that a program reads gives its
    bytes back.
    """
    text = json.dumps(results, indent=1, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
        return text
    except UnicodeEncodeError:
        return json.dumps(results, indent=1)


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.Parser(description="Caption pictures.")
    parser.add_argument(
        "-c",
        dest="checkpoint",
        metavar="CKPT",
        help="a path, a name, or `last` (default: the weights that ship)",
    )
    parser.add_argument(
        "pictures", nargs="+", metavar="PICTURE_OR_FOLDER", help="`-` reads a picture from standard input"
    )
    command_line.add_search_options(parser)
    parser.add_argument(
        "--n-best", metavar="K", type=command_line.beams, default=1, help="the K best captions, with scores"
    )
    parser.add_argument(
        "--explain",
        metavar="OUT",
        type=Path,
        help="draw where it looked: a folder, or a file for one picture",
    )
    parser.add_argument("--json", action="store_true", help="one JSON list of {picture, caption, score, ...}")
    parser.add_argument("--recursive", action="store_true", help="look into the folders in a folder, too")
    command_line.add_place_options(parser)
    options = parser.parse_args(arguments)

    places = find_pictures(options.pictures, options.recursive)
    sheets = sheet_paths(options.explain, places) if options.explain else {}
    path, captioner, calibration = load_chosen(options)
    if options.n_best > captioner.options.num_beams:
        beams = captioner.options.num_beams
        raise UsageError(f"--n-best {options.n_best} is more than the {beams} beams searched; raise --beams")
    captioner.options = replace(captioner.options, n_best=options.n_best)

    print(captioner.describe(), file=sys.stderr, flush=True)  # stdout is for captions
    if calibration is None:
        print(
            f"caption.py: no confidence yet: `{measuring(path, options)}` measures it on val of its data",
            file=sys.stderr,
        )

    results = []
    pictures = read_pictures(places, captioner.transform)
    while batch := list(islice(pictures, BATCH_SIZE)):
        interrupts.check()
        decoded = captioner.decode(torch.stack([picture.image for picture in batch]))
        for picture, hypotheses in zip(batch, decoded):
            name = "-" if picture.place == STDIN else str(picture.place)
            result = {"picture": name} | describe(captioner, hypotheses, calibration)
            results.append(result)
            if not options.json:
                print(as_text(result), flush=True)
            if sheets:
                save_sheet(explain(captioner, picture, hypotheses[0]), sheets[picture.place])
    if options.json:
        print(as_json(results))
    if len(results) < len(places):
        raise RunError(f"{len(places) - len(results)} of {len(places)} pictures could not be read")


if __name__ == "__main__":
    command_line.run(main)
