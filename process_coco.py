"""Prepares the data set, once, before everything else: download, train the tokenizer, tokenize the captions.

    python process_coco.py                       # COCO 2017: images and captions
    python process_coco.py --splits train val    # without the unlabeled and the test images
    python process_coco.py --source /mnt/coco    # from a folder, or another server, with COCO's archives
    python process_coco.py --captions-only       # sections 2 and 3 alone, on caption files that are there
    python process_coco.py --sample              # the sample data set, drawn on the spot
    python process_coco.py --keep-accents        # captions whose é and ü are to stay: not English
    python process_coco.py --resize 256          # with small copies of the images, for training to read
    python process_coco.py --split-file FILE     # with a tokenizer for training with --split-file FILE
    python process_coco.py --check               # then decode every image once, and list the bad
    python process_coco.py --own DIR             # your own images and captions, into data/<name of DIR>

COCO is 47 GB of images; while they come, 20 GB more hold the archive in work (47 with --keep-archives).
The download takes an hour at 100 Mbit/s, unpacking some minutes, the captions a minute and 1.3 GB of memory.
Whatever goes wrong, run it again: it goes on where it stood.  Run when all is there, it takes a second.
Into data of one's own in COCO's layout, known by captions that are not COCO's, nothing is downloaded, unless
--source says from where; and no file is ever replaced that an archive did not bring.

Copies lie beside the originals, in `train2017_256/` and so on; the size is that of the shorter side.  Both
training scripts read them where all are there and the model's images are no larger; validation and
evaluation read the originals.
"""

import argparse
import time
from pathlib import Path

from coco import inventory
from coco.archives import Source
from coco.caption_files import caption_structures, digest_of_captions, require_ours, save
from coco.inventory import Inventory
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
from images.image_folders import count_and_size, decoding_error, is_cut, picture_files, picture_ids
from images.resized_copies import make_copies, with_resized
from own_data.data_root import made_of_folder, make_root, split_of_root
from own_data.options import add_own_options, next_commands, own_data_of, root_of_own
from paths import CAPTIONED_SPLITS, PROCESSED_SPLITS, ROOT, SPLITS, paths_from_options
from support.command_line import Parser, copy_size, run, vocabulary_size
from support.errors import RunError, UsageError
from support.files import Record, digest, exclusive
from support.parallel import on_all_cores

VOCABULARY_SIZE = 5000

Where = dict[str, Path]


def main(arguments: list[str] | None = None) -> None:
    started = time.monotonic()
    options = parse_options(arguments)
    own = own_data_of(options)
    if own:
        options.data = root_of_own(own.folder, options.data, ROOT)
    where = paths_from_options(options)
    source = Source(options.source or inventory.COCO, where["downloads"], keep=options.keep_archives)
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
        images = bring_the_images(options, where, record, source)
        train_the_tokenizer(where, record, options)
        for split in PROCESSED_SPLITS:
            if split in options.splits or tokenized_by_another(split, where, record):
                tokenize_the_captions(split, where, record, images.found[split])
        if options.resize:
            copied = [split for split in options.splits if images.found[split][0]]
            make_copies(copied, options.resize, where, with_resized(where, options.resize), record)
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
    default = f"(default: {inventory.COCO})"
    what.add_argument("--source", metavar="URL_OR_DIR", help=f"where the archives lie {default}")
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


def bring_the_images(options: argparse.Namespace, where: Where, record: Record, source: Source) -> Inventory:
    """Draws the images, downloads them, or takes what is there: whichever is right for these data.

    Returns:
        What is there then.  The options' splits are only those that a root made by --own has.
    """
    images = Inventory(where, record, SPLITS)
    if options.sample:
        draw_sample(images)
    elif made_of_folder(where, record):
        options.splits = [split for split in options.splits if images.found[split][0]]
        for split in images.changed(options.splits):
            images.note(split)
    elif options.captions_only:
        pass
    elif options.source is None and images.is_own():
        images.take_own(options.splits)
    else:
        images.download(options.splits, source)
    return images


def draw_sample(images: Inventory) -> None:
    """Draws the sample data set, unless it is there and unchanged."""
    from sample_coco import STAMP, draw

    root, changed = images.where["data"], images.changed(SPLITS)
    for split in changed if (root / STAMP).exists() else []:
        for picture in filter(is_cut, picture_files(images.where[f"{split}_images"])):
            picture.unlink()  # ours; a drawing that lacks an image is not complete, and drawn again
    if draw(root) or changed:
        for split in SPLITS:
            images.note(split)


def check_the_images(folders: list[Path]) -> None:
    """Decodes every image in the folders, and lists those that cannot be read.

    Raises:
        RunError: there are such.
        UsageError: there is no image.
    """
    if not any(count_and_size(folder)[0] for folder in folders):
        raise UsageError(f"--check: there is no image in {', '.join(map(str, folders))}")
    paths = [path for folder in folders for path in picture_files(folder)]
    bad = 0
    for path, reason in on_all_cores(decoding_error, paths, "checking", "picture"):
        if reason:
            bad += 1
            print(f"{path}: {reason}")
    if bad:
        raise RunError(f"{bad:,} of {len(paths):,} pictures cannot be read: remove them, and run this again")
    print(f"all {len(paths):,} pictures can be read")


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

    train_captions = training_captions(where, facts.get("split_file"))
    trained = train_tokenizer(train_captions, facts["vocabulary_size"], facts["keep_accents"])
    write_ours(trained.to_str(), tokenizer, facts, record)
    print(f"tokenizer: {trained.get_vocab_size():,} pieces from {len(train_captions):,} captions")
    return None


# ---------------------------------------------------------------------------------------------------------
# Section 3: tokenize the captions


def tokenize_the_captions(split: str, where: Where, record: Record, found: list[int]) -> None:
    """Writes a split's structures, unless they are there and made from the same images and captions."""
    made_from = {"pictures": found}
    files = [where[f"{split}_image_ids"]]
    if split in CAPTIONED_SPLITS:
        made_from["captions"] = digest_of_captions(where[f"{split}_captions"])
        made_from["tokenizer"] = digest(where["tokenizer"])
        files += [where[f"{split}_im2capts"], where[f"{split}_tokenized"]]
    elif not found[0]:
        return  # --captions-only: there may be no images to list

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
