"""`make verify`: right where nothing changed, and in words what did."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

import paths
import verify
from captioner import load_captioner
from image_transforms import load_image
from tests.captioner_cases import save_shipped
from tests.training_cases import ended
from training import checkpoints


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A repository with two example images and a small captioner, in whose place stand no figures yet."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    examples = tmp_path / "weights" / "examples"
    examples.mkdir(parents=True)
    credits = [{"file": f"{n:012d}.jpg", "captions": ["a dog runs on a road", "a cat"]} for n in (7, 8)]
    (examples / "credits.json").write_text(json.dumps(credits))
    for entry, color in zip(credits, ("blue", "red")):
        Image.new("RGB", (60, 40), color).save(examples / entry["file"])
    save_shipped(tmp_path)
    return tmp_path


def test_the_figures_are_those_of_the_captioner_and_hold_where_nothing_changed(root, capsys):
    verify.main(["--write"])
    figures = json.loads((root / "weights" / "verify.json").read_text())
    assert len(figures["images"]) == 2 + verify.DRAWN
    entry = figures["images"]["000000000007.jpg"]
    picture = Image.open(root / "weights" / "examples" / "000000000007.jpg")
    assert [entry["caption"]] == load_captioner(root / "weights" / "captioner.pt").caption([picture])
    verify.main([])
    assert capsys.readouterr().out.splitlines()[-1].startswith("the environment is right: 10 images")


def test_one_changed_weight_fails_and_what_came_of_it_is_named(root, capsys):
    verify.main(["--write"])
    path = root / "weights" / "captioner.pt"
    state = checkpoints.load(path, "captioner")
    name = "decoder.to_vocabulary.bias"
    changed = state["model"][name].clone()
    changed[40] += 2
    checkpoints.save(path, {**state, "model": {**state["model"], name: changed}})
    with pytest.raises(verify.RunError, match="differences; here torch"):
        verify.main([])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"sha256 {checkpoints.digest(path)}, on file ") for line in lines)
    assert sum("log-probability off by" in line for line in lines) == 2 + verify.DRAWN
    code, message = ended(verify.main, capsys=capsys)
    assert (code, message.count("\n")) == (1, 1)


def test_what_differs_is_named(root, monkeypatch, capsys):
    """The same weights, with images read a little darker and figures on file that were never measured."""
    verify.main(["--write"])
    file = root / "weights" / "verify.json"
    figures = json.loads(file.read_text())
    figures["images"]["000000100001.jpg"]["caption"] = "something else"
    figures["metrics"]["CIDEr"] = 9.0
    file.write_text(json.dumps(figures))
    monkeypatch.setattr(verify, "load_image", lambda path: load_image(path).mul(0.9).byte())
    with pytest.raises(verify.RunError):
        verify.main([])
    lines = capsys.readouterr().out.splitlines()
    for start, end in (
        ("000000100001.jpg: '", "on file 'something else'"),
        ("000000000007.jpg: read with the mean color", "254.0]"),
        ("metrics {", "'CIDEr': 9.0}"),
    ):
        assert any(line.startswith(start) and line.endswith(end) for line in lines), lines
    assert not any("sha256" in line for line in lines)


@pytest.mark.parametrize(("off", "allowed"), [(0.0, True), (0.02, True), (0.04, False), (math.nan, False)])
def test_half_precision_may_differ_in_words_and_little_in_log_probability(off, allowed):
    then = {"x.jpg": {"color": [1, 2, 3], "caption": "a dog", "mean_log_probability": -1.0}}
    now = {"x.jpg": {"color": [1, 2, 3], "caption": "a cat", "mean_log_probability": -1.0 - off}}
    found = list(verify.differences(now, then, torch.bfloat16))
    assert (found == []) == allowed
    in_float32 = list(verify.differences(now, then, torch.float32))
    assert in_float32[0] == "x.jpg: 'a cat', on file 'a dog'"
    assert (len(in_float32) == 1) == (off == 0)


def test_a_captioner_of_bfloat16_is_checked_in_float32_and_in_bfloat16(root, monkeypatch, capsys):
    save_shipped(root, precision="bfloat16")
    verify.main(["--write"])
    checked, differences = [], verify.differences
    monkeypatch.setattr(verify, "differences", lambda *a: checked.append(a[2]) or differences(*a))
    verify.main([])
    assert checked == [torch.float32, torch.bfloat16]


def test_without_figures_or_weights_one_line_says_what_would_do(root, capsys):
    code, message = ended(verify.main, capsys=capsys)
    assert (code, message.count("\n")) == (2, 1)
    assert "--write" in message
    (root / "weights" / "captioner.pt").unlink()
    code, message = ended(verify.main, capsys=capsys)
    assert (code, message.count("\n")) == (2, 1)
    assert "captioner.pt" in message
