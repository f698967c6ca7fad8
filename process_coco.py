"""Prepares the data set, once, before everything else: download, train the tokenizer, tokenize the captions.

    python process_coco.py                       # COCO 2017: pictures and captions
    python process_coco.py --splits train val    # without the unlabeled and the test pictures
    python process_coco.py --source /mnt/coco    # from a folder, or another server, with COCO's archives
    python process_coco.py --captions-only       # sections 2 and 3 alone, on caption files that are there
    python process_coco.py --sample              # the sample data set, drawn on the spot
    python process_coco.py --keep-accents        # captions whose é and ü are to stay: not English
    python process_coco.py --resize 256          # with small copies of the pictures, for training to read
    python process_coco.py --split-file FILE     # with a tokenizer for training with --split-file FILE
    python process_coco.py --check               # then decode every picture once, and list the bad
    python process_coco.py --own DIR             # your own images and captions, into data/<name of DIR>

COCO is 47 GB of pictures; while they come, 20 GB more hold the archive in work (47 with --keep-archives).
The download takes an hour at 100 Mbit/s, unpacking some minutes, the captions a minute and 1.3 GB of memory.
Whatever goes wrong, run it again: it goes on where it stood.  Run when all is there, it takes a second.
Into data of one's own in COCO's layout, known by captions that are not COCO's, nothing is downloaded, unless
--source says from where; and no file is ever replaced that an archive did not bring.

Copies lie beside the originals, in `train2017_256/` and so on; the size is that of the shorter side.  Both
training scripts read them where all are there and the model's pictures are no larger; validation and
evaluation read the originals.
"""

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path

from coco.archives import Source
from coco.caption_files import caption_structures, digest_of_captions, read_captions, require_ours, save
from coco.own_root import (
    images_listed,
    is_own_root,
    require_captions,
    require_images,
    require_no_broken_links,
    require_no_strangers,
)
from coco.tokenizer_choice import (
    COCO_SPLIT,
    is_own_tokenizer,
    keep_own,
    made_from,
    require_split_file,
    tokenized_by_another,
    training_captions,
    training_split,
    write_ours,
)
from images.image_folders import check_pictures, count_and_size, image_name, is_cut, picture_ids
from images.resized_copies import make_copies, with_copies
from own_data.data_root import made_of_folder, make_root, split_of_root
from own_data.options import add_own_options, next_commands, own_data_of, root_of_own
from paths import CAPTIONED_SPLITS, PROCESSED_SPLITS, ROOT, SPLITS, chosen
from support.command_line import Parser, copy_size, run, vocabulary_size
from support.errors import UsageError
from support.files import Record, digest, exclusive

COCO = "https://s3.amazonaws.com/images.cocodataset.org/"  # the well-known host's certificate is not valid
ARCHIVES = {
    "annotations": "annotations/annotations_trainval2017.zip",
    "train": "zips/train2017.zip",
    "val": "zips/val2017.zip",
    "test": "zips/test2017.zip",
    "unlabeled": "zips/unlabeled2017.zip",
}
PINS = {  # bytes and digest of COCO's own archives; another source's may differ
    "annotations": (252907541, "sha256", "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268"),
    "train": (19336861798, "sha256", "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"),
    "val": (815585330, "sha256", "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"),
    "test": (6646970404, "sha256", "c7908c3c9f94ba2f3340ebbeec58c25db6be8774f18d68c2f15d0e369d95baba"),
    "unlabeled": (20126613414, "md5", "7ebc562819fdb32847aab79530457326"),
}
UNLISTED_PICTURES = {"test": 40_670, "unlabeled": 123_403}  # COCO's numbers; no caption file lists these
VOCABULARY_SIZE = 5000

Where = dict[str, Path]
Found = dict[str, list[int]]  # by split, the number of pictures and their bytes, as they are on the disk


def main(arguments: list[str] | None = None) -> None:
    started = time.monotonic()
    options = parse_options(arguments)
    own = own_data_of(options)
    if own:
        options.data = root_of_own(own.folder, options.data, ROOT)
    where = chosen(options)
    source = Source(options.source or COCO, where["downloads"], keep=options.keep_archives)
    if options.captions_only and not where["annotations"].is_dir():
        raise UsageError(
            f"{where['annotations']} is not there: --captions-only needs the caption files in it"
        )
    if options.captions_only and options.resize:
        raise UsageError("--resize copies pictures, which --captions-only leaves out: take one of the two")
    if options.split_file and str(options.split_file) != COCO_SPLIT:
        require_split_file(options.split_file)
    with exclusive(where["data"] / ".lock"):
        record = Record(where["record"])
        if own:
            make_root(own, where, record)
        found = bring_the_images(options, where, record, source)
        train_the_tokenizer(where, record, options)
        for split in PROCESSED_SPLITS:
            if split in options.splits or tokenized_by_another(split, where, record):
                tokenize_the_captions(split, where, record, found[split])
        if options.resize:
            copied = [split for split in options.splits if found[split][0]]
            make_copies(copied, options.resize, where, with_copies(where, options.resize), record)
    if record.changed:
        print(f"{where['data']} is ready, after {time.monotonic() - started:.1f} s")
    else:
        print(f"{where['data']}: everything is there and unchanged, nothing to do")
    if options.check:
        check_the_images([where[f"{split}_images"] for split in options.splits])
    if own:
        print(next_commands(where["data"], ROOT, has_test=where["split_file"].exists()))


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    summary, _, usage = __doc__.partition("\n\n")
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=summary, epilog=usage, formatter_class=layout)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--sample", action="store_true", help="draw the sample data set")
    what.add_argument("--source", metavar="URL_OR_DIR", help=f"where the archives lie (default: {COCO})")
    what.add_argument("--captions-only", action="store_true", help="no pictures; the caption files are there")
    what.add_argument("--own", metavar="DIR", type=Path, help="a folder of images and captions of your own")
    parser.add_argument(
        "--data", metavar="DIR", help="data root (default: COCO_ROOT, data/coco or data/sample)"
    )
    parser.add_argument(
        "--splits", nargs="+", choices=SPLITS, default=list(SPLITS), help="(default: all four)"
    )
    parser.add_argument(
        "--vocabulary-size",
        metavar="N",
        type=vocabulary_size,
        help=f"most tokens of the tokenizer (default: as before, at first {VOCABULARY_SIZE:,})",
    )
    parser.add_argument(
        "--keep-accents",
        action=argparse.BooleanOptionalAction,
        help="in captions: é is not e, ü is not u (default: as before, at first not)",
    )
    parser.add_argument(
        "--split-file",
        metavar="FILE",
        type=Path,
        help=f"whose training captions the tokenizer learns from; {COCO_SPLIT}: COCO's (default: as before)",
    )
    parser.add_argument("--keep-archives", action="store_true", help="do not remove downloads once unpacked")
    parser.add_argument(
        "--resize", metavar="PIXELS", type=copy_size, help="keep small copies of the pictures"
    )
    parser.add_argument("--check", action="store_true", help="at the end decode every picture, list the bad")
    add_own_options(parser)
    options = parser.parse_args(arguments)
    options.splits = [split for split in SPLITS if split in options.splits]  # each once, in one order
    return options


# ---------------------------------------------------------------------------------------------------------
# Section 1: download
#
# The captions come first, then each split's pictures: fetched, unpacked, proven whole, and noted in the
# record with their number and size, so that the next run need only see whether these are the same.


def bring_the_images(options: argparse.Namespace, where: Where, record: Record, source: Source) -> Found:
    """Draws the images, downloads them, or takes what is there: whichever is right for these data.

    Returns:
        What is there then.  The options' splits are only those that a root made by --own has.
    """
    require_no_broken_links([where[f"{split}_images"] for split in SPLITS])
    found = {split: count_and_size(where[f"{split}_images"]) for split in SPLITS}
    if options.sample:
        draw_sample(where, record, found)
    elif made_of_folder(where, record):
        options.splits = [split for split in options.splits if found[split][0]]
        for split in options.splits:
            if not record.agrees(f"{split}_images", found[split]):
                note_pictures(split, where, record, found)
    elif options.captions_only:
        pass
    elif options.source is None and is_own_root(where, record):
        take_own_images(options.splits, where, record, found)
    else:
        download(options.splits, where, record, found, source)
    return found


def draw_sample(where: Where, record: Record, found: Found) -> None:
    """Draws the sample data set, unless it is there and unchanged."""
    from sample_coco import STAMP, draw

    changed = [split for split in SPLITS if not record.agrees(f"{split}_images", found[split])]
    for split in changed if (where["data"] / STAMP).exists() else []:
        pictures = [where[f"{split}_images"] / image_name(i) for i in picture_ids(where[f"{split}_images"])]
        for picture in filter(is_cut, pictures):
            picture.unlink()  # ours; a drawing that lacks a picture is not complete, and drawn again
    if draw(where["data"]) or changed:
        for split in SPLITS:
            note_pictures(split, where, record, found)


def download(splits: list[str], where: Where, record: Record, found: Found, source: Source) -> None:
    """Brings the caption files and the splits' pictures, as far as they are not there."""
    pins = PINS if source.address == COCO else {}
    if not captions_are_there(splits, where, record):
        # Pictures that the user unpacked himself can be judged once the captions, which list them, are there.
        empty = [split for split in splits if not found[split][0]]
        require_archives(["annotations", *empty], splits, where, source)
        name = ARCHIVES["annotations"]  # it stays, and so do in it the annotations that are no captions
        wanted = re.compile(r"annotations/captions_(train|val)2017\.json")
        source.unpack(name, wanted, where["annotations"], pins.get("annotations"))
        if not captions_are_there(splits, where, record):
            raise UsageError(f"{source.address}{name} lacks a whole caption file: name another --source")
    lacking = [s for s in splits if not pictures_are_there(s, where, record, found, official=bool(pins))]
    for split in lacking:
        if pins and split in CAPTIONED_SPLITS:
            require_no_strangers(split, where)
    require_archives(lacking, splits, where, source)
    for split in lacking:
        wanted = re.compile(rf"{split}2017/[0-9]{{12,18}}\.jpg")
        source.unpack(ARCHIVES[split], wanted, where[f"{split}_images"], pins.get(split))
        note_pictures(split, where, record, found)
        source.discard(ARCHIVES[split])


def take_own_images(splits: list[str], where: Where, record: Record, found: Found) -> None:
    """Takes what is there of a data set of one's own; nothing is downloaded into it."""
    require_captions(splits, where)
    changed = [split for split in splits if not record.agrees(f"{split}_images", found[split])]
    for split in changed:
        if split in CAPTIONED_SPLITS:
            require_images(split, where)
    there = [split for split in changed if found[split][0]]
    if there:
        print(
            f"{where['annotations']}: not COCO's captions: what is there is taken, and nothing is downloaded"
        )
    for split in there:
        note_pictures(split, where, record, found)


def captions_are_there(splits: Sequence[str], where: Where, record: Record) -> bool:
    """Whether the caption files are there and whole; train's always, the tokenizer learns from it."""
    files = [where[f"{split}_captions"] for split in CAPTIONED_SPLITS if split in {"train", *splits}]
    if not all(file.is_file() for file in files):
        return False
    try:
        return all(images_listed(file, record) >= 0 for file in files)
    except UsageError:
        return False


def pictures_are_there(split: str, where: Where, record: Record, found: Found, official: bool) -> bool:
    """Whether a split's pictures are there and whole, unpacked by us or by the user.

    That there is a folder says nothing: an interrupted unzip leaves some of the files, the last one cut.
    """
    folder = where[f"{split}_images"]
    if not found[split][0] or record.agrees(f"{split}_images", found[split]):
        return found[split][0] > 0
    ids = picture_ids(folder)
    if split in CAPTIONED_SPLITS:
        listed = read_captions(where[f"{split}_captions"]).image_ids
        complete = bool(listed) and set(listed) <= set(ids)
    else:
        complete = official and len(ids) >= UNLISTED_PICTURES[split]
    if not complete or any(is_cut(folder / image_name(image_id)) for image_id in ids):
        return False
    note_pictures(split, where, record, found)
    return True


def require_archives(parts: list[str], splits: list[str], where: Where, source: Source) -> None:
    """Looks, before the first byte, whether the archives are there, and room for them and what they hold."""
    folders = {part: where["annotations" if part == "annotations" else f"{part}_images"] for part in parts}
    try:
        source.require_room({ARCHIVES[part]: folder for part, folder in folders.items()})
    except UsageError as error:
        others = [split for split in splits if ARCHIVES[split] not in str(error)]
        dispensable = any(ARCHIVES[split] in str(error) for split in UNLISTED_PICTURES)
        way_out = f"leave it out with --splits {' '.join(others)}" if dispensable else "name another --source"
        raise UsageError(f"{error}: {way_out}") from None


def check_the_images(folders: list[Path]) -> None:
    """Decodes every image in the folders; to find none there is an error, too."""
    if not any(count_and_size(folder)[0] for folder in folders):
        raise UsageError(f"--check: there is no image in {', '.join(map(str, folders))}")
    check_pictures(folders)


def note_pictures(split: str, where: Where, record: Record, found: Found) -> None:
    number, size = found[split] = count_and_size(where[f"{split}_images"])
    record.note(f"{split}_images", [number, size])
    print(f"{split}: {number:,} pictures, {size / 1e6:,.0f} MB")


# ---------------------------------------------------------------------------------------------------------
# Section 2: train the tokenizer


def train_the_tokenizer(where: Where, record: Record, options: argparse.Namespace) -> None:
    """Trains byte pair encoding on the training captions, unless a tokenizer of these captions is there.

    What the options leave open is as it was for the tokenizer before.
    """
    tokenizer, before = where["tokenizer"], made_from(record)
    if is_own_tokenizer(tokenizer, record):
        asked_for = (options.vocabulary_size, options.split_file, options.keep_accents)
        return keep_own(tokenizer, record, asked_for != (None, None, None))
    keep_accents = options.keep_accents
    facts = {
        "vocabulary_size": options.vocabulary_size or before.get("vocabulary_size", VOCABULARY_SIZE),
        "keep_accents": before.get("keep_accents", False) if keep_accents is None else keep_accents,
    }
    facts |= training_split(where, record, options.split_file or split_of_root(where, record))
    if tokenizer.is_file() and record.agrees("tokenizer", facts | {"file": digest(tokenizer)}):
        return None
    from coco.tokenizer import train_tokenizer

    captions = training_captions(where, facts.get("split_file"))
    trained = train_tokenizer(captions, facts["vocabulary_size"], facts["keep_accents"])
    write_ours(trained.to_str(), tokenizer, facts, record)
    print(f"tokenizer: {trained.get_vocab_size():,} pieces from {len(captions):,} captions")
    return None


# ---------------------------------------------------------------------------------------------------------
# Section 3: tokenize the captions


def tokenize_the_captions(split: str, where: Where, record: Record, found: list[int]) -> None:
    """Writes a split's structures, unless they are there and made from the same pictures and captions."""
    made_from = {"pictures": found}
    files = [where[f"{split}_image_ids"]]
    if split in CAPTIONED_SPLITS:
        made_from["captions"] = digest_of_captions(where[f"{split}_captions"])
        made_from["tokenizer"] = digest(where["tokenizer"])
        files += [where[f"{split}_im2capts"], where[f"{split}_tokenized"]]
    elif not found[0]:
        return  # --captions-only: there may be no pictures to list

    def done() -> dict:
        return made_from | {"bytes": [file.stat().st_size if file.exists() else 0 for file in files]}

    if record.agrees(split, done()):
        return
    pictures = picture_ids(where[f"{split}_images"])
    structures = caption_structures(split, where, pictures) if split in CAPTIONED_SPLITS else [pictures]
    lengths = record.facts(split).get("bytes", [0] * len(files))
    require_ours(structures, files, lengths)
    record.note(split, {"bytes": None})  # from now on the files are ours
    for structure, file in zip(structures, files):
        save(structure, file)
    record.note(split, done())


if __name__ == "__main__":
    run(main)
