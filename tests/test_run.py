"""What a run starts with: its first line, and that nothing is touched before all of it fits together."""

import re

import pytest
import torch
from PIL import Image

import caption
import evaluate_captioner
from support.errors import UsageError
from tests.training_cases import state_of, train_captions, train_mae, write_config

THREADS = {1: "1 thread"}.get(torch.get_num_threads(), f"{torch.get_num_threads()} threads")


def millions(state: dict) -> str:
    """Of a checkpoint's weights, each once: a tied one stands there under two names."""
    weights = {value.data_ptr(): value.numel() for value in state["model"].values()}
    return f"{sum(weights.values()) / 1e6:.3g} M parameters"


@pytest.mark.parametrize("tied", [False, True])
def test_the_first_line_of_every_run_says_device_data_and_sizes(make_tiny_coco, tmp_path, capsys, tied):
    paths, out = make_tiny_coco(train=6, val=4, unlabeled=2), tmp_path / "out"
    root, device = paths["data"], f"CPU, {THREADS}, float32"

    def first(stream: str = "out") -> str:
        return getattr(capsys.readouterr(), stream).splitlines()[0]

    train_mae(root, out, write_config(tmp_path, "mae_config.yaml"), "--epochs", "1")
    sizes = f"ViT 2 × 16, 32 px, patches of 8 · {millions(state_of(out, 'encoder'))}"
    data = "train+unlabeled 8 images, originals of full size"
    assert first() == f"encoder · {device} · 1 process · {data} · {sizes}"

    config = write_config(tmp_path, "captioner_config.yaml", tie_embeddings=tied)
    train_captions(root, out, config, "-p", "last", "--epochs", "1")
    parameters = millions(state_of(out, "captioner"))
    data = "train 30 pairs, originals of full size"
    assert first() == (
        f"captioner · {device} · 1 process · {data} · decoder 2 × 16, context 30 · {parameters}"
    )

    checkpoint = str(out / "captioner" / "checkpoint1.pt")
    evaluate_captioner.main(["-c", checkpoint, "--data", str(root), "--out", str(tmp_path / "found.json")])
    used = f"captioner · {device} · 32 px · {parameters} · 2 beams"
    assert first() == f"{used} · val 4 images, originals of full size"

    Image.new("RGB", (40, 30)).save(tmp_path / "picture.png")
    caption.main(["-c", checkpoint, str(tmp_path / "picture.png")])
    output = capsys.readouterr()
    assert output.err.splitlines()[0] == used
    assert re.fullmatch(r"\S*picture\.png: .*", output.out.strip()), "stdout is for captions"


def test_a_run_that_does_not_fit_its_data_touches_no_folder(make_tiny_coco, tmp_path):
    """Neither a lock nor an event file may stand where no run has begun."""
    root, out = make_tiny_coco()["data"], tmp_path / "out"
    (tmp_path / "split.json").write_text("{}")
    config = write_config(tmp_path, "mae_config.yaml")
    for options in (
        ["-c", "last"],
        ["--set", "learning_rate=fast"],
        ["--split-file", str(tmp_path / "split.json")],
    ):
        with pytest.raises(UsageError):
            train_mae(root, out, config, *options, "--tensorboard")
    assert not out.exists()
