"""The model card of an export: README.md with the front matter that the hub reads.

The texts lie in `model_cards/`; what is filled in comes from the checkpoint and from an evaluation's JSON.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import yaml

from paths import ROOT
from scoring.metrics import METRICS
from support.files import replacing

# Data sets whose terms are known, by the name that `--trained-on` takes.
TERMS = {
    "coco": "COCO 2017 (Lin et al. 2014). Annotations: CC BY 4.0. Images belong to their photographers and "
    "are under Flickr's terms of use.",
    "flickr8k": "Flickr8k (Hodosh et al. 2013), 8,000 photographs with five English captions each. It is for "
    "non-commercial research and education only, and the images belong to their photographers on Flickr. "
    "None of them is part of this folder.",
    "sample": "Images and captions drawn by the project's own sample_coco.py, under its license, MIT.",
}
LICENSES = {  # of the weights: the code's, unless the data's terms allow less; of unknown data none is said
    "coco": {"license": "mit"},
    "flickr8k": {"license": "other", "license_name": "research-and-education-only"},
    "sample": {"license": "mit"},
}
UNKNOWN = "The checkpoint does not name its data: name them here, with their terms, before you publish."
HISTORY = {"train_loss": "train loss", "val_loss": "val loss", "bleu4": "BLEU-4", "cider": "CIDEr"}
SCORES = ("bleu4", "cider")  # fractions, shown times 100


def front_matter(task: str, trained_on: str | None, evaluation: Mapping[str, Any] | None) -> str:
    """YAML for the hub; without what is not known."""
    fields: dict[str, Any] = {"language": "en", **LICENSES[trained_on]} if trained_on else {}
    fields |= {"library_name": "pytorch", "pipeline_tag": task}
    fields["tags"] = ["image-captioning", "vision-transformer", "masked-autoencoder", "trained-from-scratch"]
    fields |= {"datasets": [trained_on]} if trained_on else {}
    if evaluation:
        results = [
            {"type": metric.lower(), "name": metric, "value": round(100 * evaluation["metrics"][metric], 2)}
            for metric in METRICS
        ]
        dataset = {"name": evaluation["split"], "type": trained_on or "unknown"}
        result = {"task": {"type": task}, "dataset": dataset, "metrics": results}
        fields["metrics"] = [metric.lower() for metric in METRICS]
        fields["model-index"] = [{"name": "image-captioner", "results": [result]}]
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True).strip()


def metrics_in_words(evaluation: Mapping[str, Any] | None) -> str:
    """The figures of an evaluation with their intervals and what they compare with."""
    if not evaluation:
        return "Not evaluated."
    human, rows = evaluation["human_metrics"], []
    for metric in METRICS:
        low, high = evaluation["intervals"][metric]
        figures = [evaluation["metrics"][metric], low, high, evaluation["constant_caption_metrics"][metric]]
        own, low, high, constant = (f"{100 * figure:.2f}" for figure in figures)
        person = f"{100 * human[metric]:.2f}" if human else "–"
        rows.append(f"| {metric} | {own} | {low} – {high} | {constant} | {person} |")
    heading = f"| metric | {evaluation['split']} | 95 % interval | constant caption | human |"
    return "\n".join([heading, "|---|---|---|---|---|", *rows, "", f"Signature: `{evaluation['signature']}`"])


def training_in_words(state: Mapping[str, Any]) -> dict[str, str]:
    """The `history` and the `config` of a run, as Markdown."""
    history = state["progress"]["history"]
    columns = [key for key in HISTORY if any(entry.get(key) is not None for entry in history)]
    rows = [["epoch", *(HISTORY[key] for key in columns)], ["---"] * (len(columns) + 1)]
    for entry in history:
        rows.append([str(entry["epoch"]), *(_figure(key, entry.get(key)) for key in columns)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows) if history else "No epoch is on record."
    config = yaml.safe_dump(state["config"], sort_keys=False, allow_unicode=True)
    return {"history": table, "config": f"```yaml\n{config}```"}


def write_card(folder: Path, name: str, **fields: str) -> None:
    """Fills in `model_cards/NAME.md` as a folder's README.md.

    Another one that is there stays: somebody may have named the data in it, or it is no card at all.
    """
    card, path = filled(name, **fields), folder / "README.md"
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != card:
        print(f"note: {path} stays as it was: take it away, and export again, for a new one", file=sys.stderr)
        return
    with replacing(path) as temporary:
        temporary.write_text(card, encoding="utf-8")


def filled(name: str, **fields: str) -> str:
    """The text of `model_cards/NAME.md` with its fields filled in."""
    return Template((ROOT / "model_cards" / f"{name}.md").read_text(encoding="utf-8")).substitute(fields)


def _figure(key: str, value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}" if key in SCORES else f"{value:.4f}"
