"""A run's report: one HTML page that holds all it shows, and opens from the disk.

Plain HTML, CSS and SVG; images are data in the page.  It follows the reader's light or dark and the width of
the window.  The page's frame and style are in `scoring/report.html`; here is what fills it.
"""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from scoring.assessment import statistics_of
from scoring.attention_sheet import spotlight

FRAME = Path(__file__).with_suffix(".html")
WORD_SIZE = 128  # pixels, side of the image of a word's attention

# Of a chart, in its own units; it is as wide as the page lets it be.
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 48, 28  # room for ticks and titles

Points = Sequence[tuple[int, float]]  # epoch, value


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
        reconstructions: for each image its original, masked, filled and full view.
        examples: by kind, things with `picture`, `caption`, `references`, `figures` and `attention`.
        configs: by stage, its configuration.
    """
    return Template(FRAME.read_text(encoding="utf-8")).substitute(
        title=escape(f"Captions of {assessment['split']}"),
        signature=escape(assessment["signature"]),
        metrics=_metrics(assessment),
        charts=_charts(histories),
        reconstructions=_reconstructions(reconstructions),
        captions="\n".join(_group(kind, group) for kind, group in examples.items()),
        configuration="\n".join(_config(stage, config) for stage, config in configs.items()),
    )


def _metrics(assessment: Mapping[str, Any]) -> str:
    human = assessment["human_metrics"] or {}
    names = ("", "captioner", "95 % interval", "constant caption", "human")
    rows = [_row("th", names)]
    for metric, value in assessment["metrics"].items():
        low, high = assessment["intervals"][metric]
        constant = assessment["constant_caption_metrics"][metric]
        cells = [metric, _times_100(value), f"{_times_100(low)} – {_times_100(high)}", _times_100(constant)]
        cells.append(_times_100(human[metric]) if human else "–")
        rows.append(_row("td", cells))
    statistics = statistics_of(assessment)
    counts = (
        f"{assessment['images']:,} images, {statistics.distinct:,} distinct captions, {statistics.words:,} "
        f"different {assessment['unit']}s; {statistics.in_train:,} captions "
        f"({statistics.share_in_train:.1%}) are copied word for word from train."
    )
    parts = [f'<div class="scroll"><table>{"".join(rows)}</table></div>', f'<p class="soft">{counts}</p>']
    parts += [f'<p class="soft">Note: {escape(note)}.</p>' for note in assessment["notes"]]
    if statistics.collapsed:
        parts.append(f"<p><strong>{escape(statistics.warning())}</strong></p>")
    return "\n".join(parts)


def _row(cell: str, texts: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{cell}>{escape(text)}</{cell}>" for text in texts) + "</tr>"


def _charts(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    charts = []
    for stage, history in histories.items():
        # The self-critical stage's loss is the reward with its sign turned.
        what = "reward" if any("val_reward" in entry for entry in history) else "loss"
        figures = {
            name: [(entry["epoch"], entry.get(f"{name}_{what}")) for entry in history]
            for name in ("train", "val")
        }
        charts.append(line_chart(f"{stage}: {what}", figures))
        scores = [(e["epoch"], 100 * e["bleu4"]) for e in history if e.get("bleu4") is not None]
        if scores:
            charts.append(line_chart(f"{stage}: BLEU-4 on val", {"BLEU-4": scores}))
    return "\n".join(charts)


def line_chart(title: str, series: Mapping[str, Points]) -> str:
    """One or two lines over epochs, from zero up.

    Args:
        title: what the values are.
        series: by the line's name its points, (epoch, value); a value that is not finite is left out.

    Returns:
        A `figure` with inline SVG, as wide as the page lets it be; its colours are the page's, by the classes
        `s0`, `d0`, ...
    """
    lines = {name: [(x, y) for x, y in points if _drawable(y)] for name, points in series.items()}
    values = [y for points in lines.values() for _, y in points]
    epochs = [x for points in lines.values() for x, _ in points] or [1]
    greatest = max([0.0, *values]) or 1.0  # an axis there is, also without values above zero
    step = nice_step(greatest)
    top = step * math.ceil(greatest / step)
    first, last = min(epochs), max(epochs)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first) if last > first else 0.5
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    shapes = [_text(0, 16, title, 'class="title"')]
    for tick in range(round(top / step) + 1):
        _, y = place(first, tick * step)
        shapes.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.6g}" y2="{y:.6g}" class="grid"/>')
        shapes.append(_text(LEFT - 6, y + 4, f"{tick * step:g}", 'text-anchor="end"'))
    for epoch in sorted({first, (first + last) // 2, last}):
        x, _ = place(epoch, 0)
        shapes.append(_text(x, HEIGHT - 8, str(epoch), 'text-anchor="middle"'))
    for number, (name, points) in enumerate(lines.items()):
        placed = [place(*point) for point in points]
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        shapes.append(f'<polyline points="{corners}" class="line s{number}"/>')
        for (x, y), (epoch, value) in zip(placed, points):
            tip = f"<title>{escape(name)}, epoch {epoch}: {value:.4g}</title>"
            shapes.append(f'<circle cx="{x:.6g}" cy="{y:.6g}" r="3" class="d{number}">{tip}</circle>')
        shapes.append(f'<circle cx="{LEFT + 4 + 80 * number}" cy="32" r="4" class="d{number}"/>')
        shapes.append(_text(LEFT + 14 + 80 * number, 36, name))
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    return f"<figure>{svg}{''.join(shapes)}</svg></figure>"


def nice_step(greatest: float) -> float:
    """The distance of ticks: 1, 2 or 5 times a power of ten, for three to six of them."""
    power = 10.0 ** math.floor(math.log10(greatest))
    return next(power * factor for factor in (0.2, 0.5, 1.0, 2.0) if greatest / (power * factor) <= 5)


def _drawable(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.6g}" y="{y:.6g}" {attributes}>{escape(text)}</text>'


def _reconstructions(reconstructions: Sequence[Sequence[Image.Image]]) -> str:
    if not reconstructions:
        return ""
    names = ("original", "masked", "masked patches filled", "every patch predicted")
    cells = [f'<div class="soft">{name}</div>' for name in names]
    cells += [
        f"<div>{picture(view, name)}</div>" for row in reconstructions for view, name in zip(row, names)
    ]
    return f'<h2>Reconstructions</h2>\n<div class="views">{"".join(cells)}</div>'


def _group(kind: str, group: Sequence[Any]) -> str:
    return "\n".join([f"<h3>{escape(kind.capitalize())}</h3>", *(_card(example) for example in group)])


def _card(example: Any) -> str:
    small = example.picture.resize((WORD_SIZE, WORD_SIZE), Image.Resampling.LANCZOS)
    words = "".join(
        f"<figure>{picture(spotlight(small, weights), word)}<figcaption>{escape(word)}</figcaption></figure>"
        for word, weights in zip(*example.attention)
    )
    figures = ", ".join(f"{name} {_times_100(example.figures[name])}" for name in ("CIDEr", "BLEU-4"))
    references = "".join(f"<li>{escape(text)}</li>" for text in example.references)
    return f"""<div class="card">
<div>{picture(example.picture, example.caption)}</div>
<div>
<p class="caption">{escape(example.caption)}</p>
<div class="soft">{figures}; people wrote:</div>
<ul>{references}</ul>
<div class="words">{words}</div>
</div>
</div>"""


def _config(stage: str, config: Mapping[str, Any]) -> str:
    text = json.dumps(config, indent=1)
    return f"<details><summary>{escape(stage)}</summary><pre>{escape(text)}</pre></details>"


def picture(image: Image.Image, alt: str) -> str:
    """The image itself, in the page."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=88)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(alt)}"/>'


def _times_100(value: float) -> str:
    return f"{100 * value:.2f}"
