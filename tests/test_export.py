"""What export.py writes: it captions as the checkpoint does, and its reader trusts it no more than that."""

import pytest
import torch

import evaluate_captioner
import export
import train_captioner
from captioner import load_captioner
from tests.captioner_cases import save_random_captioner
from tests.training_cases import ONE_LAYER, ended, train_captions, train_mae, write_config
from training import checkpoints

HALF_PRECISION = 2**-11  # the largest relative rounding error of float16, where it is normal


@pytest.fixture
def trained(make_tiny_coco, tmp_path):
    """The data root, and a captioner's checkpoint with running means of its weights, tied ones too."""
    data, out = make_tiny_coco(train=6, val=2, unlabeled=0)["data"], tmp_path / "out"
    mae = write_config(tmp_path, "mae_config.yaml", splits=["train"], encoder=ONE_LAYER)
    train_mae(data, out, mae, "--epochs", "1")
    config = write_config(
        tmp_path, "captioner_config.yaml", decoder=ONE_LAYER, tie_embeddings=True, ema_decay=0.9
    )
    train_captions(data, out, config, "-p", "last", "--epochs", "1")
    return data, out / "captioner" / "checkpoint1.pt"


def test_a_checkpoint_that_only_captions_is_small_evaluated_and_not_resumed(trained, tmp_path, capsys):
    data, path = trained
    small = tmp_path / "captioner.pt"
    export.main(["-c", str(path), "--checkpoint", str(small)])
    state = checkpoints.load(small, "captioner")
    weights = {w.data_ptr(): w for w in state["model"].values()}.values()
    assert {w.dtype for w in weights} == {torch.float16}
    values = sum(w.numel() for w in load_captioner(path).model.parameters())  # tied ones once
    assert sum(w.nbytes for w in weights) == 2 * values
    assert state["progress"]["history"] == checkpoints.load(path)["progress"]["history"]

    for ours, theirs in zip(
        load_captioner(small).model.parameters(), load_captioner(path).model.parameters()
    ):
        assert ours.dtype is torch.float32
        torch.testing.assert_close(ours, theirs, rtol=HALF_PRECISION, atol=2**-24)
    evaluate_captioner.main(["-c", str(small), "--data", str(data)])
    assert checkpoints.digest(small)[:12] in capsys.readouterr().out
    for more in ([], ["--self-critical"]):
        resume = ("-c", small, "--data", data, "--out", tmp_path / "new", *more)
        code, message = ended(train_captioner.main, *resume, capsys=capsys)
        assert (code, message.count("\n")) == (2, 1), message
        assert "captioner.pt" in message
        assert "optimizer" in message


def test_the_checkpoint_itself_is_never_overwritten(tmp_path, capsys):
    path = tmp_path / "checkpoint1.pt"
    save_random_captioner(path)
    before = path.read_bytes()
    code, message = ended(export.main, "-c", path, "--checkpoint", path, capsys=capsys)
    assert (code, message.count("\n")) == (2, 1)
    assert "itself" in message
    assert path.read_bytes() == before
