"""`caption.py` without -c: the weights that ship, which are of half precision, with their confidence."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import caption
import paths
from captioner import load_captioner
from scoring import calibration
from scoring.calibration import Calibration, calibrated_for, calibration_path
from tests.captioner_cases import save_random_captioner, save_shipped
from tests.training_cases import ended
from training import checkpoints


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A repository without weights, and `COCO_ROOT` elsewhere; it holds an image."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setenv("COCO_ROOT", str(tmp_path / "elsewhere"))
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "blue.png")
    return tmp_path


def test_without_c_the_shipped_weights_caption_with_the_confidence_beside_them(root, capsys):
    path = save_shipped(root)
    captioner = load_captioner(path)
    sure = Calibration((-9.0, -1.0), (0.25, 0.25))
    calibration.save(calibration_path(path), sure, calibrated_for(path, captioner.options))
    caption.main([str(root / "blue.png"), "--json"])
    output = capsys.readouterr()
    (result,) = json.loads(output.out)
    assert [result["caption"]] == captioner.caption([Image.open(root / "blue.png")])
    assert result["confidence"] == 0.25
    assert "no confidence" not in output.err


@pytest.mark.parametrize("options", [["--sample"], ["--out", "runs"]])
def test_a_folder_of_captioners_without_c_is_asked_which(root, options, capsys):
    save_shipped(root)
    code, message = ended(caption.main, *options, root / "blue.png", capsys=capsys)
    assert (code, message.count("\n")) == (2, 1)
    assert " ".join(options) in message
    assert "-c last" in message


def test_where_no_weights_ship_one_line_asks_for_a_captioner(root, capsys):
    code, message = ended(caption.main, root / "blue.png", capsys=capsys)
    assert (code, message.count("\n")) == (2, 1)
    assert str(root / "weights" / "captioner.pt") in message
    assert "-c" in message


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_make_a_float32_model(root, precision):
    path = save_shipped(root, precision)
    assert {weight.dtype for weight in checkpoints.load(path)["model"].values()} == {precision}
    model = load_captioner(path).model
    save_random_captioner(root / "whole.pt")
    whole = load_captioner(root / "whole.pt").model.state_dict()
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, whole[name].to(precision).float()), name
