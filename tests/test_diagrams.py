"""The write-up's diagrams: sound SVG, drawn by the scripts beside them, and true of the code."""

import importlib
import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch
import yaml

from image_captioner import random_masking
from paths import locations
from tests.training_cases import ROOT

FOLDER = ROOT / "writeup_diagrams"
DIAGRAMS = {
    "data_directory": "draw_data_directory",
    "image_auto_encoder": "draw_auto_encoder",
    "captioner": "draw_captioner",
}
SVG = "{http://www.w3.org/2000/svg}"


def words(name: str) -> list[str]:
    """The lines of text in a committed diagram."""
    return [text.text or "" for text in ElementTree.parse(FOLDER / f"{name}.svg").iter(f"{SVG}text")]


def test_markup_escapes_text_and_attributes_and_keeps_markup(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    markup = importlib.import_module("markup")
    element = markup.element
    inner = element("b", "<x> & 'y'")
    assert element(
        "a", inner, " ", 3, [inner, None], title='"<&>"', class_="c", stroke_width=1.5, id=None
    ) == (
        '<a title="&quot;&lt;&amp;&gt;&quot;" class="c" stroke-width="1.5">'
        "<b>&lt;x&gt; &amp; 'y'</b> 3<b>&lt;x&gt; &amp; 'y'</b></a>"
    )
    assert isinstance(markup.joined("a<"), markup.Markup)
    assert element("br") == "<br/>"


@pytest.mark.parametrize("name", DIAGRAMS)
def test_a_diagram_is_what_its_script_draws(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    importlib.import_module(DIAGRAMS[name]).main(tmp_path)
    assert (tmp_path / f"{name}.svg").read_text() == (FOLDER / f"{name}.svg").read_text()


@pytest.mark.parametrize("name", DIAGRAMS)
def test_a_diagram_stands_alone_and_serves_light_and_dark(name):
    text = (FOLDER / f"{name}.svg").read_text()
    tree = ElementTree.fromstring(text)
    assert tree.find(f"{SVG}title").text
    assert "prefers-color-scheme: dark" in text
    width, height = float(tree.get("width")), float(tree.get("height"))
    assert 12 * 358 / width >= 7  # its smallest letters on a phone, which shows it 358 pixels wide
    paper = tree.find(f"{SVG}rect")  # its own ground, so that it can be read on any page
    assert paper.get("class") == "paper"
    assert (float(paper.get("width")), float(paper.get("height"))) == (width - 1, height - 1)
    assert set(re.findall(r"https?://[^\"]*", text)) == {"http://www.w3.org/2000/svg"}
    names = {part.get("id") for part in tree.iter() if part.get("id")}
    used = re.findall(r"(?:href=\"|url\()#(\w+)", text)
    assert set(used) <= names
    for style in re.findall(r'class="([^"]+)"', text):
        assert all(f".{part}" in tree.find(f"{SVG}style").text for part in style.split()), style


def test_every_text_lies_within_its_diagram():
    """By the widths of a wide font: what fits so, fits everywhere."""
    for name in DIAGRAMS:
        tree = ElementTree.parse(FOLDER / f"{name}.svg").getroot()
        for text in tree.findall(f"{SVG}text"):
            x, style = float(text.get("x")), text.get("class") or ""
            width = len(text.text or "") * (7.4 if "small" in style else 7.9 if "code" in style else 8.6)
            left = x - width * (0.5 if "middle" in style else 1 if "end" in style else 0)
            assert left >= 0, text.text
            assert left + width <= float(tree.get("width")), text.text


def test_the_auto_encoder_diagram_shows_a_masking_that_the_code_deals():
    kept, masked = random_masking(torch.tensor([8, 9]), 9, 0.75)
    shown = words("image_auto_encoder")
    for k, m in zip(kept.tolist(), masked.tolist()):
        assert f"kept {' '.join(map(str, k))} · masked {' '.join(map(str, m))}" in shown
    config = yaml.safe_load((ROOT / "mae_config.yaml").read_text())
    assert f"TransformerEncoder, {config['encoder']['num_layers']} layers" in shown
    assert f"TransformerEncoder, {config['decoder']['num_layers']} layers" in shown


def test_the_captioner_diagram_has_the_faithful_sizes():
    shown = words("captioner")
    encoder = yaml.safe_load((ROOT / "mae_config.yaml").read_text())["encoder"]
    decoder = yaml.safe_load((ROOT / "captioner_config.yaml").read_text())["decoder"]
    assert f"× {encoder['num_layers']}" in shown
    assert f"× {decoder['num_layers']}" in shown


def test_the_directory_diagram_names_what_paths_names():
    shown = words("data_directory")
    paths = locations("data/coco")
    processed = paths["processed"]
    files = {path.name for path in paths.values() if path.parent == processed}
    files |= {path.name for path in paths.values() if path.parent == paths["annotations"]}
    files |= {
        f"{path.name}/"
        for key, path in paths.items()
        if key.endswith("_images") and path.parent == paths["data"]
    }
    for text in shown:
        splits, end = re.fullmatch(r"\{([a-z,]+)\}(_\w+\.pt)|.*", text).groups()
        files -= {f"{split}{end}" for split in splits.split(",")} if splits else {text}
    assert not files
