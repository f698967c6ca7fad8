"""TensorBoard's files, read back by its own reader; and a run without the flag that knows nothing of it."""

import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from support.errors import UsageError
from tests.training_cases import ROOT, state_of, train_captions, train_mae, write_config
from training.progress import TensorBoardLog


@pytest.fixture
def run(make_tiny_coco, tmp_path):
    """Trains a stage for some epochs: run(stage, out, *options)."""
    paths = make_tiny_coco()
    configs = {stage: write_config(tmp_path, f"{stage}_config.yaml") for stage in ("mae", "captioner")}

    def start(stage: str, out: str, *options: str) -> None:
        train = {"mae": train_mae, "captioner": train_captions}[stage]
        train(paths["data"], tmp_path / out, configs[stage], *options)

    return start


def read(folder) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "tensors": 0}).Reload()


def history(out, stage) -> list[dict]:
    return state_of(out, stage)["progress"]["history"]


def test_the_encoders_figures_and_reconstructions_are_on_the_board(run, tmp_path):
    run("mae", "out", "--tensorboard", "--epochs", "2")
    events = read(tmp_path / "out" / "encoder")
    entries = history(tmp_path / "out", "encoder")
    for key, tag in (
        ("train_loss", "loss/train"),
        ("val_loss", "loss/val"),
        ("gradient_norm", "steps/gradient norm"),
        ("learning_rate", "rate/base"),
    ):
        written = [(event.step, event.value) for event in events.Scalars(tag)]
        assert written == [(entry["epoch"], pytest.approx(entry[key], rel=1e-6)) for entry in entries]
    assert len(events.Scalars("speed/images per second")) == 2
    pictures = events.Images("reconstructions")
    assert [event.step for event in pictures] == [1, 2]
    assert (pictures[0].width, pictures[0].height) == (4 * 32, 4 * 32)  # four views of four pictures
    assert pictures[0].encoded_image_string != pictures[1].encoded_image_string


def test_the_captioners_rates_and_captions_are_on_the_board(run, tmp_path, capsys):
    run("mae", "out", "--epochs", "1")
    run("captioner", "out", "-p", "last", "--epochs", "1", "--tensorboard")
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    events = read(tmp_path / "out" / "captioner")
    assert events.Scalars("speed/pairs per second"), "of images it is another number"
    assert "speed/images per second" not in events.Tags()["scalars"]
    (event,) = events.Tensors("captions/text_summary")
    table = event.tensor_proto.string_val[0].decode().splitlines()[2:]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table]
    assert rows == [[part.strip() for part in line.split(":")] for line in printed]
    assert events.Scalars("rate/group 0")
    assert "rate/group 1" not in events.Tags()["scalars"], "the encoder is frozen in the first epoch"


def test_a_run_that_goes_on_from_an_earlier_epoch_takes_back_the_later_curves(run, tmp_path):
    run("mae", "out", "--tensorboard", "--epochs", "3")
    run("mae", "out", "-c", "checkpoint1.pt", "--tensorboard", "--epochs", "2")
    assert [event.step for event in read(tmp_path / "out" / "encoder").Scalars("loss/val")] == [1, 2]


def test_the_flag_changes_nothing_about_the_run(run, tmp_path):
    run("mae", "with", "--tensorboard", "--epochs", "2")
    run("mae", "without", "--epochs", "2")
    assert history(tmp_path / "with", "encoder") == history(tmp_path / "without", "encoder")
    assert not (tmp_path / "without" / "encoder" / "tensorboard").exists()


def test_without_the_flag_nothing_of_it_is_imported():
    code = "import sys, train_encoder, train_captioner; print('tensorboard' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_without_tensorboard_the_flag_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match="--tensorboard: TensorBoard is not installed"):
        TensorBoardLog(tmp_path)
    assert not list(tmp_path.iterdir())
