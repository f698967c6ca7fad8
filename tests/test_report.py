"""The report: one file with all its pictures, which shows the figures that the metrics JSON holds."""

import base64
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

import evaluate_captioner
from evaluation_report import Example
from scoring.assessment import assess, lines
from scoring.report import line_chart, nice_step, page
from tests.training_cases import train_captions, train_mae, write_config


class Page(HTMLParser):
    """Its text, its attributes, and whether every element that opens is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.text, self.attributes, self.tags = [], [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        self.tags.add(tag)
        self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def run(make_tiny_coco, tmp_path):
    """A data set and both stages trained on it for an epoch; evaluates with the report, and returns it."""
    paths = make_tiny_coco()
    out = tmp_path / "out"
    train_mae(paths["data"], out, write_config(tmp_path, "mae_config.yaml"), "--epochs", "1")
    config = write_config(tmp_path, "captioner_config.yaml", eval_freq=1)
    train_captions(paths["data"], out, config, "-p", "last", "--epochs", "1")

    def evaluate(*options: str) -> str:
        report = tmp_path / "report.html"
        checkpoint = str(out / "captioner" / "checkpoint1.pt")
        data, results = str(paths["data"]), str(tmp_path / "results.json")
        evaluate_captioner.main(
            ["-c", checkpoint, "--data", data, "--out", results, "--report", str(report), *options]
        )
        return report.read_text(encoding="utf-8")

    return evaluate


def test_the_report_stands_alone_and_shows_the_figures_of_the_json(run, tmp_path):
    encoder = str(tmp_path / "out" / "encoder" / "checkpoint1.pt")
    text = run("--encoder", encoder)
    shown = Page(text)
    assert not shown.open
    pictures = [value for name, value in shown.attributes if name == "src"]
    for source in pictures:
        kind, data = source.split(",")
        assert kind == "data:image/jpeg;base64"
        Image.open(io.BytesIO(base64.b64decode(data))).load()
    assert len(pictures) > 4 * 4  # the reconstructions, and the examples
    assert not re.findall(r"https?://|<script|<link|url\(|@import", re.sub(r"base64,[^\"]*", "", text))

    words = " ".join(shown.text)
    metrics = json.loads((tmp_path / "results_metrics.json").read_text())
    for metric, value in metrics["metrics"].items():
        low, high = metrics["intervals"][metric]
        row = f"{metric} {100 * value:.2f} {100 * low:.2f} – {100 * high:.2f}"
        row += f" {100 * metrics['constant_caption_metrics'][metric]:.2f}"
        assert row in words
    assert metrics["signature"] in words
    captions = {entry["caption"] for entry in json.loads((tmp_path / "results.json").read_text())}
    assert captions & set(shown.text)
    for heading in ("Reconstructions", "encoder: loss", "captioner: loss", "captioner: BLEU-4 on val"):
        assert heading in shown.text


def test_the_report_shows_the_encoder_beside_the_captioner_or_none(run, tmp_path):
    """It showed that of checkpoints/encoder, whoever trained it."""
    assert "Reconstructions" in run()
    (tmp_path / "out" / "encoder").rename(tmp_path / "elsewhere")
    text = run()
    assert "captioner: loss" in text
    assert "Reconstructions" not in text


def test_a_chart_draws_its_points_where_they_belong():
    chart = line_chart("a & b", {"train": [(1, 4.0), (2, 2.0), (3, math.nan)], "val": [(1, 1.0)]})
    svg = ElementTree.fromstring(chart)[0]
    corners = svg.find("polyline").get("points").split()
    (x1, y1), (x2, y2) = (map(float, corner.split(",")) for corner in corners)  # NaN is left out
    ground = max(float(line.get("y1")) for line in svg.findall("line"))
    assert x1 < x2
    assert (ground - y1) == pytest.approx(2 * (ground - y2), abs=0.2)
    (tick,) = (text for text in svg.findall("text") if text.text == "4")
    assert y1 == pytest.approx(float(tick.get("y")) - 4, abs=0.1)


def test_the_self_critical_stage_is_shown_by_its_reward_and_not_by_its_negative_loss():
    """Two negative losses ended the report with a math domain error."""
    entry = {"epoch": 1, "train_loss": -0.4, "val_loss": -0.25, "train_reward": 0.4, "val_reward": 0.25}
    found = assess({1: ["a dog runs", "a dog"]}, {1: "a dog runs"}, {1: -0.5}, ["a cat"])
    text = page(found | {"split": "val2017", "signature": "s"}, {"captioner": [entry]}, [], {}, {})
    assert "captioner: reward" in text
    assert "captioner: loss" not in text
    assert "val, epoch 1: 0.25" in text
    assert "<svg" in line_chart("loss", {"train": [(1, -0.4)]})


@pytest.mark.parametrize("greatest", [0.0031, 0.2, 1, 1.28, 4.99, 5, 67.9, 5000])
def test_a_chart_has_three_to_six_ticks(greatest):
    assert 2 <= greatest / nice_step(greatest) <= 5.0001


def test_a_collapsed_model_is_called_that_in_the_report_as_on_the_terminal():
    references = {number: ["a dog runs"] for number in range(30)}
    found = assess(references, dict.fromkeys(references, "a man"), dict.fromkeys(references, -1.0), ["a man"])
    text = page(found | {"split": "val2017", "signature": "s"}, {}, [], {}, {})
    (warning,) = (line for line in lines(found) if line.startswith("WARNING"))
    assert warning in " ".join(Page(text).text)


def test_texts_of_the_report_are_never_markup():
    """A caption, a reference or a file's name may hold anything."""
    odd = """<i>1 & 2</i> "$title" 'x' ${signature}"""
    known = {number: [f"{odd} {number}"] for number in range(4)}
    found = assess(known, dict.fromkeys(known, "a"), dict.fromkeys(known, -1.0), ["a"]) | {"notes": [odd]}
    example = Example(
        1, Image.new("RGB", (8, 8)), odd, [odd], {"CIDEr": 0.1, "BLEU-4": 0.2}, ([odd], torch.ones(1, 2, 2))
    )
    history = [{"epoch": 1, "train_loss": 1.0, "val_loss": 1.0}]
    facts = {"split": odd, "signature": odd}
    shown = Page(page(found | facts, {odd: history}, [], {odd: [example]}, {odd: {"key": odd}}))
    assert not shown.open
    assert "i" not in shown.tags
    # Twice the title; signature, note, chart, kind, caption, word, reference and stage once each.
    assert " ".join(shown.text).count(odd) == 10
    alternatives = [value for name, value in shown.attributes if name in ("alt", "aria-label")]
    assert [text.count(odd) for text in alternatives] == [1, 1, 1]
