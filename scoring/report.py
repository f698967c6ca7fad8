"""A run's report: one HTML page that holds all it shows, and opens from the disk.

Plain HTML, CSS and SVG; pictures are data in the page.  It follows the reader's light or dark and the width
of the window.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from scoring.assessment import varied
from scoring.attention_sheet import spotlight
from scoring.charts import line_chart
from scoring.markup import Markup, element, joined

WORD_SIZE = 128  # pixels, side of the picture of a word's attention
EXPLANATION = (
    "The highest CIDEr, the middle and the lowest: chosen by that figure, not by hand.  Of each word: "
    "the fewest patches that hold half of its attention, outlined."
)
STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #1f2328; --soft: #59636e; --edge: #d8dee4; --card: #f6f8fa;
  --first: #2f6fb7; --second: #c2620e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #0f141a; --ink: #e6edf3; --soft: #9aa5b1; --edge: #323a44; --card: #171d25;
    --first: #6cb0f5; --second: #f0a050;
  }
}
* { box-sizing: border-box }
body {
  margin: 0 auto; max-width: 1080px; padding: 24px 20px 60px;
  background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", Arial, sans-serif;
}
h1 { font-size: 28px; margin: 8px 0 4px }
h2 { font-size: 21px; margin: 44px 0 10px }
h3 { margin: 24px 0 8px }
p { margin: 6px 0 12px }
code, pre { font-family: ui-monospace, Menlo, monospace }
pre { background: var(--card); padding: 12px; border-radius: 8px; overflow-x: auto; font-size: 13px }
summary { cursor: pointer }
figure { margin: 0 }
figcaption { font-size: 14px; color: var(--soft) }
img { display: block; border-radius: 4px }
.soft { color: var(--soft) }
.signature { font-size: 13px; overflow-wrap: anywhere }

.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td {
  padding: 5px 16px 5px 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--edge);
}
th:first-child, td:first-child { text-align: left }
th { color: var(--soft); font-weight: 500 }

.charts { display: grid; gap: 20px; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)) }
svg text { fill: var(--soft); font-size: 12px }
svg .title { fill: var(--ink); font-size: 14px; font-weight: 600 }
svg .grid { stroke: var(--edge) }
svg .line { fill: none; stroke-width: 2 }
svg .s0 { stroke: var(--first) }
svg .s1 { stroke: var(--second); stroke-dasharray: 5 4 }
svg .d0 { fill: var(--first) }
svg .d1 { fill: var(--second) }

.views { display: grid; gap: 8px; grid-template-columns: repeat(4, 1fr); max-width: 760px; font-size: 14px }
.views img { width: 100% }

.card {
  display: grid; gap: 18px; grid-template-columns: 260px minmax(0, 1fr);
  margin: 14px 0; padding: 16px;
  background: var(--card); border: 1px solid var(--edge); border-radius: 10px;
}
.card > div > img { width: 100% }
.card ul { margin: 4px 0 12px; padding-left: 20px; font-size: 14px; color: var(--soft) }
.caption { font-size: 18px; font-weight: 600; margin: 0 0 6px }
.words {
  display: grid; gap: 8px; grid-template-columns: repeat(auto-fill, minmax(84px, 1fr));
  font-size: 13px;
}
.words img { width: 100% }

@media (max-width: 640px) {
  body { padding: 14px 14px 40px }
  th, td { padding-right: 7px; font-size: 13px }
  th { white-space: normal; vertical-align: bottom }
  .card { grid-template-columns: minmax(0, 1fr) }
}
"""


def page(
    assessment: Mapping[str, Any],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    reconstructions: Sequence[Sequence[Image.Image]],
    examples: Mapping[str, Sequence[Any]],
    configs: Mapping[str, Mapping[str, Any]],
) -> str:
    """The whole page.

    Args:
        assessment: what the metrics JSON holds.
        histories: "encoder", where it is known, and "captioner": one entry an epoch.
        reconstructions: for each picture its original, masked, filled and full view.
        examples: by kind, things with `picture`, `caption`, `references`, `figures` and `attention`.
        configs: by stage, its configuration.
    """
    title = f"Captions of {assessment['split']}"
    body = [
        element("h1", title),
        element("p", element("code", assessment["signature"]), class_="signature soft"),
        _metrics(assessment),
        element("h2", "Training"),
        element("div", _charts(histories), class_="charts"),
        _reconstructions(reconstructions),
        element("h2", "Captions"),
        element("p", EXPLANATION, class_="soft"),
        [_group(kind, group) for kind, group in examples.items()],
        element("h2", "Configuration"),
        [_config(stage, config) for stage, config in configs.items()],
    ]  # fmt: skip
    head = element(
        "head", Markup('<meta charset="utf-8"/>'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1"/>'),
        element("title", title), element("style", Markup(STYLE)),
    )  # fmt: skip
    return "<!DOCTYPE html>\n" + element("html", head, element("body", body), lang="en") + "\n"


def _metrics(assessment: Mapping[str, Any]) -> Markup:
    human = assessment["human_metrics"] or {}
    names = ("", "captioner", "95 % interval", "constant caption", "human")
    rows = [element("tr", [element("th", name) for name in names])]
    for metric, value in assessment["metrics"].items():
        low, high = assessment["intervals"][metric]
        constant = assessment["constant_caption_metrics"][metric]
        cells = [metric, _times_100(value), f"{_times_100(low)} – {_times_100(high)}", _times_100(constant)]
        cells.append(_times_100(human[metric]) if human else "–")
        rows.append(element("tr", [element("td", cell) for cell in cells]))
    statistics = varied(assessment)
    told = (
        f"{assessment['images']:,} pictures, {statistics.distinct:,} distinct captions, {statistics.words:,} "
        f"different words; {statistics.in_train:,} captions stand word for word in train."
    )
    warning = statistics.warning() if statistics.collapsed else None
    return joined(
        element("div", element("table", rows), class_="scroll"),
        element("p", told, class_="soft"),
        [element("p", f"Note: {note}.", class_="soft") for note in assessment["notes"]],
        element("p", element("strong", warning)) if warning else None,
    )


def _charts(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Markup]:
    charts = []
    for stage, history in histories.items():
        losses = {
            name: [(entry["epoch"], entry[f"{name}_loss"]) for entry in history] for name in ("train", "val")
        }
        charts.append(line_chart(f"{stage}: loss", losses))
        scores = [(e["epoch"], 100 * e["bleu4"]) for e in history if e.get("bleu4") is not None]
        if scores:
            charts.append(line_chart(f"{stage}: BLEU-4 on val", {"BLEU-4": scores}))
    return charts


def _reconstructions(reconstructions: Sequence[Sequence[Image.Image]]) -> Markup | None:
    if not reconstructions:
        return None
    names = ("original", "masked", "masked patches filled", "every patch predicted")
    cells = [element("div", name, class_="soft") for name in names]
    cells += [
        element("div", picture(view, name)) for row in reconstructions for view, name in zip(row, names)
    ]
    return joined(element("h2", "Reconstructions"), element("div", cells, class_="views"))


def _group(kind: str, group: Sequence[Any]) -> Markup:
    return joined(element("h3", kind.capitalize()), [_card(example) for example in group])


def _card(example: Any) -> Markup:
    small = example.picture.resize((WORD_SIZE, WORD_SIZE), Image.Resampling.LANCZOS)
    words = [
        element("figure", picture(spotlight(small, weights), word), element("figcaption", word))
        for word, weights in zip(*example.attention)
    ]
    figures = ", ".join(f"{name} {_times_100(example.figures[name])}" for name in ("CIDEr", "BLEU-4"))
    left = element("div", picture(example.picture, example.caption))
    right = element(
        "div", element("p", example.caption, class_="caption"),
        element("div", f"{figures}; people wrote:", class_="soft"),
        element("ul", [element("li", text) for text in example.references]),
        element("div", words, class_="words"),
    )  # fmt: skip
    return element("div", left, right, class_="card")


def _config(stage: str, config: Mapping[str, Any]) -> Markup:
    text = json.dumps(config, indent=1)
    return element("details", element("summary", stage), element("pre", text))


def picture(image: Image.Image, alt: str) -> Markup:
    """The picture itself, in the page."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=88)
    data = base64.b64encode(file.getvalue()).decode()
    return element("img", src=f"data:image/jpeg;base64,{data}", alt=alt)


def _times_100(value: float) -> str:
    return f"{100 * value:.2f}"
