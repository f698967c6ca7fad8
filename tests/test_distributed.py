"""Two processes under torchrun train and evaluate as one does."""

import json
import os
import subprocess
import sys

import pytest
import torch

import evaluate_captioner
from tests.training_cases import ROOT, STACK, state_of, train_captions, train_mae, write_config


def torchrun(script: str, *options: object) -> None:
    """Runs a script in two processes, on the CPU and over gloo."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, *map(str, options)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(300)
def test_two_ranks_train_as_one_process_does(make_tiny_coco, tmp_path):
    """Captions of uneven length, a last batch of one sample, and a validation split that does not divide."""
    paths = make_tiny_coco(
        train=5, val=3, unlabeled=2
    )  # 25 pairs: the last batch of 6 leaves a rank without one
    mae = write_config(tmp_path, "mae_config.yaml", total_epochs=2)
    train_mae(paths["data"], tmp_path / "one", mae, "--epochs", "1")
    encoder = tmp_path / "one" / "encoder" / "checkpoint1.pt"
    config = write_config(
        tmp_path, "captioner_config.yaml", decoder=STACK, eval_freq=1, unfreeze_start_epoch=1, total_epochs=2
    )
    options = ("-p", str(encoder), "--epochs", "2")
    train_captions(paths["data"], tmp_path / "one", config, *options)
    torchrun(
        "train_captioner.py", "--data", paths["data"], "--out", tmp_path / "two", "--config", config, *options
    )
    one, two = state_of(tmp_path / "one", "captioner"), state_of(tmp_path / "two", "captioner")
    assert one["progress"]["updates"] == two["progress"]["updates"] == 10
    for first, second in zip(one["progress"]["history"], two["progress"]["history"], strict=True):
        assert first == pytest.approx(second, rel=1e-5)
    for name, weight in one["model"].items():
        if name.endswith("key_projection.bias"):
            continue  # softmax does not see it: its gradient is rounding noise, which Adam blows up
        assert torch.allclose(weight, two["model"][name], rtol=1e-3, atol=1e-5), name


@pytest.mark.timeout(300)
def test_two_ranks_caption_and_score_as_one_process_does(make_tiny_coco, tmp_path):
    """45 pictures: the ranks have 23 and 22, and enough are captioned to measure a confidence."""
    paths = make_tiny_coco(train=5, val=45, unlabeled=2)
    train_mae(paths["data"], tmp_path, write_config(tmp_path, "mae_config.yaml"), "--epochs", "1")
    config = write_config(tmp_path, "captioner_config.yaml", decoder=STACK)
    train_captions(paths["data"], tmp_path, config, "-p", "last", "--epochs", "1")
    checkpoint = tmp_path / "captioner" / "checkpoint1.pt"
    options = ("-c", str(checkpoint), "--data", str(paths["data"]), "--out")
    evaluate_captioner.main([*options, str(tmp_path / "one.json")])
    calibration = checkpoint.with_name("checkpoint1_calibration.json").read_bytes()
    torchrun("evaluate_captioner.py", *options, tmp_path / "two.json")
    assert len(json.loads((tmp_path / "one.json").read_text())) == 45
    for name in ("{}.json", "{}_metrics.json"):
        one, two = ((tmp_path / name.format(who)).read_text() for who in ("one", "two"))
        assert one == two
    assert checkpoint.with_name("checkpoint1_calibration.json").read_bytes() == calibration
