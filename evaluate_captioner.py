"""Captions a split by beam search and scores it as the official COCO evaluation does.

    python evaluate_captioner.py -c last                     val2017: all metrics, the last line is BLEU-4
    python evaluate_captioner.py -c last --split train -s 0.01
    python evaluate_captioner.py -c weights/captioner.pt --data DIR  the weights that ship
    python evaluate_captioner.py -c last --report report.html  one page to look at: curves, images, captions
    python evaluate_captioner.py -c last --out results.json
    python evaluate_captioner.py -c last --split-file dataset_coco.json --split test
    python evaluate_captioner.py -c last --unit character      for languages without blanks between words
    torchrun --nproc_per_node=8 evaluate_captioner.py -c last

Writes a COCO results file `[{"image_id": int, "caption": str}, ...]` and all metrics as JSON next to it;
options other than the defaults are part of their names, and so is another data root than the captioner was
trained on, or any where it does not say on which.  On the full val split of its own, scored as by default, it
also saves a confidence calibration next to the checkpoint; caption.py uses it.
No image is left out: one that cannot be read ends the evaluation, by name.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from captioner import Captioner, captioner_from_state
from coco.data import CocoData, load_processed
from coco.split_file import SPLITS, SplitFile, same_split, split_name, trained_on
from coco_loader import ImgFirstDataset, LoaderOptions, get_coco_loader
from evaluation_report import write_report
from images.image_folders import image_name
from paths import paths_from_options
from reconstruction import encoder_of
from scoring import calibration
from scoring.assessment import assess, lines, with_references
from scoring.calibration import Calibration, calibrated_for, calibration_path, other_search, sureness
from scoring.comparison import Scoring, choose_scoring
from scoring.metrics import score
from support import command_line, distributed, interrupts
from support.configuration import bounded, config_part
from support.errors import UsageError
from support.files import require_place, write_json
from support.progress_bars import progress_bar
from training import checkpoints
from transformer_components.beam_search import BeamSearchOptions

EXAMPLES = 6  # captions printed
NUM_WORKERS = 2  # of each process: beam search takes longer than reading, and shared memory may be small


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The key of `captioner_config.yaml` with which a split is scored, in training and here."""

    # Images that each process decodes at once for BLEU-4: a share of the GPU's memory, not of `batch_size`.
    eval_batch_size: int = bounded(at_least=1, at_most=1_000_000)


class CaptionedSplit(NamedTuple):
    """What `caption_split` found, by image id, ascending."""

    references: dict[int, list[str]]  # what people wrote
    captions: dict[int, str]  # what the captioner wrote
    scores: dict[int, float]  # how sure the captioner was of it


def caption_split(captioner: Captioner, loader: DataLoader) -> CaptionedSplit:
    """Captions every image of an image-first loader; of all processes, in every process."""
    mine = CaptionedSplit({}, {}, {})
    options = {"log": False, "hidden": not distributed.is_main(), "leave": False}
    for batch in progress_bar(loader, what="beam search", unit="batch", **options):
        interrupts.check()
        decoded = captioner.decode(batch.images)
        for image_id, texts, (best, *_) in zip(batch.image_ids.tolist(), batch.captions, decoded):
            mine.references[image_id] = texts
            mine.captions[image_id] = captioner.text(best)
            mine.scores[image_id] = sureness(best, captioner.options)
    parts = distributed.gathered(mine)
    return CaptionedSplit(*(dict(sorted(merge(column).items())) for column in zip(*parts)))


def merge(dicts: tuple[dict, ...]) -> dict:
    """One dict of all."""
    return {key: value for part in dicts for key, value in part.items()}


def scoring_of(captioner: Captioner, dataset: ImgFirstDataset, **asked_for: str | None) -> Scoring:
    """How captions of a data set are compared: by the rules of comparison.py, or as is asked for.

    The captions of its whole split decide, so that a share of it is scored as all of it.
    """
    return choose_scoring(captioner.tokenizer, dataset.captions_of_split(), **asked_for)


def score_captions(captioned: CaptionedSplit, scoring: Scoring) -> dict[str, float]:
    """The metrics of the captions whose images have references, as fractions."""
    known = with_references(captioned.references)
    return score(known, {image_id: captioned.captions[image_id] for image_id in known}, scoring.tokenize)


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.Parser(description="Caption a split by beam search and score the captions.")
    parser.add_argument(
        "-c", dest="checkpoint", metavar="CKPT", required=True, help="a path, a name, or `last`"
    )
    parser.add_argument("--split", choices=SPLITS, default="val", help="test: of a --split-file")
    command_line.add_split_file_option(parser)
    parser.add_argument("-s", "--subset", metavar="FRACTION", type=command_line.fraction, default=1.0)
    command_line.add_search_options(parser)
    parser.add_argument(
        "--references", choices=("official", "normalized"),
        help="as people wrote them, or as the tokenizer reads them (default: normalized if it changes many)",
    )  # fmt: skip
    parser.add_argument(
        "--unit", choices=("word", "character"),
        help="what is compared (default: word, unless the script puts no blanks between words)",
    )  # fmt: skip
    parser.add_argument(
        "--sample", action="store_true", help="the drawn sample data set and its small models"
    )
    parser.add_argument("--data", metavar="DIR", help="root of the data (default: COCO_ROOT or data/coco)")
    parser.add_argument(
        "--out", dest="results", metavar="FILE", type=Path, help="COCO results file; metrics go beside it"
    )
    parser.add_argument("--report", metavar="FILE", type=Path, help="one HTML page that shows the run")
    parser.add_argument(
        "--encoder",
        metavar="CKPT",
        help="whose curves and reconstructions the report shows (default: the newest beside the captioner)",
    )
    options = parser.parse_args(arguments)
    with distributed.process_group() as device:
        evaluate(options, device)


def evaluate(options: argparse.Namespace, device: torch.device) -> None:
    """Loads, captions, scores, writes and prints."""
    paths = paths_from_options(options)
    if options.encoder and not options.report:
        raise UsageError(f"--encoder {options.encoder}: only a --report shows it: name one, too")
    data = CocoData.open(paths, options.split_file)
    if options.split == "test" and data.split_file is None:
        raise UsageError("--split test: COCO keeps its test captions: take train or val, or a --split-file")
    path, state = checkpoints.load_named(paths["captioner_checkpoints"], options.checkpoint, "captioner")
    encoders = path.absolute().parent.parent / "encoder"
    encoder = encoder_of(encoders, options.encoder) if options.report else None
    captioner = captioner_from_state(state, device, path, **command_line.search_asked_for(options))
    search = other_search(options, state)
    other = other_root(state, data)
    changes = [*other, *differences(options, search)]
    split_facts = data.split_file and data.split_file.facts()
    default_name = results_name(checkpoints.stem(path), options.split, split_facts, changes)
    results = options.results or path.with_name(default_name)
    for file in filter(None, (results, options.report)):
        require_place(file)  # now, not after an hour of beam search
    config = config_part(state["config"], EvaluationConfig, f"{path}: config")
    loader = get_coco_loader(
        options.split, config.eval_batch_size * distributed.world_size(), captioner.transform, NUM_WORKERS,
        mode="image_first", data=data, options=LoaderOptions(subset=options.subset),
    )  # fmt: skip
    require_references(loader.dataset)
    if options.split != "train":
        require_unseen(loader.dataset, state, other)
    scoring = scoring_of(captioner, loader.dataset, references=options.references, unit=options.unit)
    if distributed.is_main():
        print(f"{captioner.describe()} · {loader.dataset.describe()}", flush=True)
    with loader:
        captioned = caption_split(captioner, loader)
    if not distributed.is_main():
        return

    references, captions, _ = captioned
    train = [text for _, texts in data.captions("train") for text in texts]
    assessment = assess(*captioned, train, scoring)
    which = " of ".join([pictures_in_words(options, data.split_file), *other])
    sources = provenance(path, which, captioner.options, assessment["scored_images"], scoring)
    assessment = sources | assessment

    written = [results, metrics_file(results)]
    write_json(results, [{"image_id": image_id, "caption": text} for image_id, text in captions.items()])
    write_json(written[-1], assessment)
    scored_by_default = (options.subset, options.references, options.unit) == (1, None, None)
    if options.split == "val" and scored_by_default and same_split(state, data.split_file):
        file, holds_for = calibration_path(path, search), calibrated_for(path, captioner.options)
        # An older checkpoint does not say which its data are: what was measured first stays.
        first = "root" not in state and calibration.load(file, holds_for) is None
        if first or not other:
            written += save_calibration(file, assessment["calibration"], holds_for)
    if options.report:
        place = partial(data.image_file, options.split)
        write_report(
            options.report, captioner, state, encoder, place, references, captions, assessment, scoring
        )
        written.append(options.report)

    for image_id, text in list(captions.items())[:EXAMPLES]:
        print(f"{image_name(image_id)}: {text}")
    print(f"\nwritten: {', '.join(map(str, written))}\n\n{assessment['signature']}\n")
    print("\n".join(lines(assessment)))
    sys.stdout.flush()
    print(f"\nBLEU-4 {100 * assessment['metrics']['BLEU-4']:.2f}")


def other_root(state: dict[str, Any], data: CocoData) -> list[str]:
    """Unless the captioner is known to be trained on these data: a word for them, for file names."""
    now = data.identity()["root"]["sha256"]
    return [] if state.get("root", {}).get("sha256") == now else [f"root-{now[:8]}"]


def pictures_in_words(options: argparse.Namespace, split_file: SplitFile | None) -> str:
    """Which images are scored, in words that leave no doubt."""
    which = f"{options.split}2017"
    if split_file:
        which = f"{options.split} of {split_file.name} sha256 {split_file.sha256[:12]}"
    return which if options.subset == 1 else f"{which} -s {options.subset:g}"


def differences(options: argparse.Namespace, search: list[str]) -> list[str]:
    """What an evaluation does otherwise than by default, each in a word for the name of a file.

    Args:
        options: of the command line.
        search: what `other_search` gives.
    """
    parts = [f"s{options.subset:g}"] if options.subset != 1 else []
    return parts + search + [choice for choice in (options.references, options.unit) if choice]


def results_name(
    stem: str, split: str, split_file: Mapping[str, Any] | None, changes: Sequence[str] = ()
) -> str:
    """The name of a results file, so that no evaluation replaces the results of another.

    Args:
        stem: the checkpoint's name without its ending.
        split: the split.
        split_file: `SplitFile.facts`, of what says which images are in it.
        changes: what `differences` gives.
    """
    source = [f"{Path(split_file['name']).stem}-{split_file['sha256'][:8]}"] if split_file else []
    return "_".join([stem, split, *source, *changes, "results.json"])


def metrics_file(results: Path) -> Path:
    """Where the metrics of a results file lie."""
    return results.with_name(f"{results.stem}_metrics.json")


def provenance(
    checkpoint: Path, which: str, search: BeamSearchOptions, scored_images: int, scoring: Scoring
) -> dict[str, Any]:
    """What figures are of: without it nobody can compare them.

    Args:
        checkpoint: the captioner's.
        which: the images, in words.
        search: how captions were searched for.
        scored_images: number of images that have references.
        scoring: how captions were compared.
    """
    how = f"beams={search.num_beams} alpha={search.length_alpha:g}"
    how += f" consensus={search.consensus_samples}" if search.consensus_samples else ""
    model = f"checkpoint {checkpoint.name} sha256 {checkpoints.digest(checkpoint)[:12]}"
    return {
        "signature": f"{scoring.signature} | n={scored_images} | {which} | {how} | {model}",
        "checkpoint": str(checkpoint),
        "split": which,
        "num_beams": search.num_beams,
        "length_alpha": search.length_alpha,
        "consensus_samples": search.consensus_samples,
    }


def save_calibration(path: Path, measured: dict[str, Any] | None, holds_for: dict[str, Any]) -> list[Path]:
    """Writes for caption.py how sure the captioner may be; the file written, if there is one.

    Args:
        path: where it goes, beside the checkpoint.
        measured: of the assessment; None where there were too few images.
        holds_for: the model and the search; for others the calibration does not hold.
    """
    if measured is None:
        return []
    points = Calibration(measured["scores"], measured["confidences"])
    try:
        calibration.save(path, points, holds_for)
    except OSError as error:  # a folder of somebody else's, say: the figures stand all the same
        print(f"note: caption.py will show no confidence: {error}", file=sys.stderr)
        return []
    return [path]


def require_references(dataset: ImgFirstDataset) -> None:
    """Raises UsageError, before hours of decoding, if there is no caption by a person to compare with."""
    if not dataset.captioned:
        raise UsageError(
            f"none of the {len(dataset):,} pictures of {dataset.split} that were chosen has a caption, so "
            "nothing can be scored: see to the caption file, or choose more with -s"
        )


def require_unseen(dataset: ImgFirstDataset, state: dict[str, Any], other: list[str]) -> None:
    """Raises UsageError if, by another split, the captioner was trained on images that are to be scored.

    Of another data root, `other_root`, the ids say nothing: there, the same ones are other images.
    """
    facts = state.get("split_file")
    if same_split(state, dataset.data.split_file):
        return
    if other and (facts is None or "root" in state):
        if distributed.is_main():
            print(
                "note: the captioner was trained on another data root, or does not say on which: whether it "
                "saw some of these pictures is not known",
                file=sys.stderr,
                flush=True,
            )
        return
    train2017 = load_processed(dataset.data.paths, "train", "image_ids")
    seen = trained_on(dataset.image_ids, facts, train2017)
    if len(seen):
        raise UsageError(
            f"{len(seen):,} of the {len(dataset):,} pictures, such as {int(seen[0])}, are among those that "
            f"this captioner was trained on with {split_name(facts)}: evaluate it with that, or train anew"
        )


if __name__ == "__main__":
    command_line.run(main)
