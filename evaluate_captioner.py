"""Captions a split by beam search and scores it as the official COCO evaluation does.

    python evaluate_captioner.py -c last                     val2017: all metrics, the last line is BLEU-4
    python evaluate_captioner.py -c last --split train -s 0.01
    python evaluate_captioner.py -c last --out results.json

Writes a COCO results file `[{"image_id": int, "caption": str}, ...]` and, beside it, all metrics as JSON.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from caption import Captioner, captioner_from_state
from coco_loader import get_coco_loader, load_processed
from paths import CAPTIONED_SPLITS, chosen, image_name
from support import checkpoints, command_line, distributed, interrupts
from support.files import require_place, write_json
from support.metrics import score

BATCH_SIZE = 64  # pictures decoded at once
EXAMPLES = 6  # captions printed
NUM_WORKERS = 2


def caption_split(captioner: Captioner, loader: DataLoader) -> tuple[dict[int, list[str]], dict[int, str]]:
    """Captions every picture of an image-first loader.

    Returns:
        The references and the caption of each picture, by image id; of all processes, in every process.
    """
    references: dict[int, list[str]] = {}
    captions: dict[int, str] = {}
    quiet = None if distributed.is_main() else True
    for batch in tqdm(loader, desc="beam search", unit="batch", leave=False, disable=quiet):
        interrupts.check()
        decoded = captioner.decode(batch.images)
        for image_id, texts, (best, *_) in zip(batch.image_ids.tolist(), batch.captions, decoded):
            references[image_id] = texts
            captions[image_id] = captioner.text(best)
    for others, theirs in distributed.gathered((references, captions)):
        references |= others
        captions |= theirs
    return dict(sorted(references.items())), dict(sorted(captions.items()))


def scored(references: dict[int, list[str]], captions: dict[int, str]) -> dict[str, float]:
    """The metrics of the captions whose pictures have references, as fractions."""
    known = {image_id: texts for image_id, texts in references.items() if texts}
    return score(known, {image_id: captions[image_id] for image_id in known})


def constant_caption(train: list[tuple[int, list[str]]]) -> str:
    """The most frequent caption of train: what a model could say of every picture without looking."""
    counts = Counter(" ".join(text.lower().split()) for _, texts in train for text in texts)
    return max(counts, key=lambda text: (counts[text], text))


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.Parser(description="Caption a split by beam search and score the captions.")
    parser.add_argument(
        "-c", dest="checkpoint", metavar="CKPT", required=True, help="a path, a name, or `last`"
    )
    parser.add_argument("--split", choices=CAPTIONED_SPLITS, default="val")
    parser.add_argument("-s", "--subset", metavar="FRACTION", type=command_line.fraction, default=1.0)
    parser.add_argument("--beams", type=command_line.beams, help="1 is greedy; default: the checkpoint's")
    parser.add_argument(
        "--sample", action="store_true", help="the drawn sample data set and its small models"
    )
    parser.add_argument("--data", metavar="DIR", help="root of the data (default: COCO_ROOT or data/coco)")
    parser.add_argument(
        "--out", dest="results", metavar="FILE", type=Path, help="COCO results file; metrics go beside it"
    )
    options = parser.parse_args(arguments)
    with distributed.process_group() as device:
        evaluate(options, device)


def evaluate(options: argparse.Namespace, device: torch.device) -> None:
    """Loads, captions, scores, writes and prints."""
    paths = chosen(options)
    path, state = checkpoints.load_named(paths["captioner_checkpoints"], options.checkpoint, "captioner")
    results = options.results or path.with_name(f"{path.stem}_{options.split}_results.json")
    require_place(results)
    captioner = captioner_from_state(state, device, options.beams)
    loader = get_coco_loader(
        options.split, batch_size=BATCH_SIZE * distributed.world_size(), mode="image_first",
        transform=captioner.transform, num_workers=NUM_WORKERS, paths=paths, subset=options.subset,
        rank=distributed.rank(), world_size=distributed.world_size(),
    )  # fmt: skip
    references, captions = caption_split(captioner, loader)
    if not distributed.is_main():
        return

    constant = constant_caption(load_processed(paths, "train", "im2capts"))
    metrics = scored(references, captions)
    baseline = scored(references, dict.fromkeys(references, constant))
    metrics_path = results.with_name(f"{results.stem}_metrics.json")
    write_json(results, [{"image_id": image_id, "caption": text} for image_id, text in captions.items()])
    write_json(
        metrics_path,
        {
            "checkpoint": str(path), "split": f"{options.split}2017", "images": len(captions),
            "num_beams": captioner.options.num_beams, "length_alpha": captioner.options.length_alpha,
            "metrics": metrics, "constant_caption": constant, "constant_caption_metrics": baseline,
        },
    )  # fmt: skip

    for image_id, text in list(captions.items())[:EXAMPLES]:
        print(f"{image_name(image_id)}: {text}")
    print(
        f"\n{len(captions)} pictures of {options.split}2017, {len(set(captions.values()))} distinct captions"
    )
    print(f"written: {results}, {metrics_path}\n")
    print(f"{'':8} {'captioner':>9}  the constant caption {constant!r}")
    for name, value in metrics.items():
        print(f"{name:8} {100 * value:9.2f}  {100 * baseline[name]:.2f}")
    print(f"BLEU-4 {100 * metrics['BLEU-4']:.2f}")


if __name__ == "__main__":
    command_line.run(main)
