"""The scripts as a user calls them: exit codes, one line for each mistake, and what comes out at the end."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import caption
import evaluate_captioner
import train_captioner
import train_encoder
from captioner import Captioner, captioner_from_state
from scoring.attention_sheet import attention_sheet
from scoring.calibration import Calibration, sureness
from scoring.metrics import score
from support import interrupts
from tests.captioner_cases import random_captioner
from tests.process_cases import alive, start, stderr_of, stop, wait_for_checkpoint
from tests.training_cases import (
    ONE_LAYER,
    ROOT,
    ended,
    state_of,
    train_captions,
    train_mae,
    write_config,
)  # fmt: skip
from training import checkpoints
from transformer_components.beam_search import Hypothesis


@pytest.fixture(scope="module")
def quick_config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    return {name: write_config(folder, f"{name}_config.yaml") for name in ("mae", "captioner")}


@pytest.fixture
def trained(make_tiny_coco, tmp_path, quick_config):
    """A data set and the checkpoints of one epoch of each stage on it."""
    paths = make_tiny_coco(train=6, val=4, unlabeled=2)
    train_mae(paths["data"], tmp_path / "out", quick_config["mae"], "--epochs", "1")
    train_captions(paths["data"], tmp_path / "out", quick_config["captioner"], "-p", "last", "--epochs", "1")
    return paths, tmp_path / "out" / "captioner" / "checkpoint1.pt"


def assert_one_clear_line(result: tuple[int, str], *words: str) -> None:
    code, message = result
    assert code == 2
    assert message.count("\n") == 1, message
    assert all(word in message for word in words), message


def test_the_captioner_needs_to_be_told_where_to_start(capsys):
    """The public original ran into a NameError when neither -c nor -p was given."""
    assert_one_clear_line(
        ended(train_captioner.main, capsys=capsys), "-p", "-c", "--from-scratch", "required"
    )
    both = ended(train_captioner.main, "-c", "last", "-p", "last", capsys=capsys)
    assert_one_clear_line(both, "not allowed with")


@pytest.mark.parametrize(
    ("main", "arguments", "words"),
    [
        (train_encoder.main, ["--epochs", "0"], ["--epochs", "'0'", "from 1 to"]),
        (train_encoder.main, ["-s", "1.5"], ["-s", "'1.5'", "fraction"]),
        (train_encoder.main, ["--config", "no.yaml"], ["no.yaml"]),
        (train_encoder.main, ["--data", "nowhere"], ["nowhere", "process_coco.py"]),
        (train_encoder.main, ["-c", "checkpoint7.pt", "--out", "nowhere"], ["checkpoint7.pt", "nowhere"]),
        (train_captioner.main, ["-p", "last", "--out", "nowhere"], ["nowhere", "last"]),
        (evaluate_captioner.main, ["-c", "last", "--split", "test"], ["--split", "train", "val"]),
        (caption.main, ["-c", "last"], ["PICTURE_OR_FOLDER", "required"]),
        (caption.main, ["-c", "last", "no_such.jpg"], ["no_such.jpg"]),
        (caption.main, ["-c", "last", "x.jpg", "--beams", "-1"], ["--beams"]),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(main, arguments, words, capsys):
    assert_one_clear_line(ended(main, *arguments, capsys=capsys), *words)
    assert not Path("nowhere").exists()  # nor is a folder made for a run that cannot be


def test_from_scratch_takes_the_encoder_from_the_file_beside_the_one_named(make_tiny_coco, tmp_path):
    """Else a small recipe's captioner was compared with one on the write-up's ViT-B."""
    config = write_config(tmp_path, "captioner_config.yaml", decoder={**ONE_LAYER})
    other = write_config(tmp_path, "mae_config.yaml", image_size=48, patch_size=24, encoder={**ONE_LAYER})
    other.rename(tmp_path / "mae_config.yaml")
    train_captions(make_tiny_coco()["data"], tmp_path / "out", config, "--from-scratch", "--epochs", "1")
    shape = state_of(tmp_path / "out", "captioner")["encoder"]
    assert (shape["image_size"], shape["patch_size"]) == (48, 24)
    assert shape["encoder"]["num_layers"] == 1


def test_from_scratch_needs_no_encoder_checkpoint_and_trains_every_group(
    make_tiny_coco, tmp_path, quick_config, monkeypatch
):
    monkeypatch.setattr("paths.ROOT", tmp_path)  # where the encoder's shape is read then
    (tmp_path / "mae_config.yaml").write_text(quick_config["mae"].read_text())
    config = write_config(tmp_path, "captioner_config.yaml", unfreeze_start_epoch=99)
    train_captions(make_tiny_coco()["data"], tmp_path / "out", config, "--from-scratch", "--epochs", "1")
    state = torch.load(tmp_path / "out" / "captioner" / "checkpoint1.pt", weights_only=True)
    assert len(state["optimizer"]["state"]) == len(state["model"]), "some parameters never learned"


def test_evaluation_ends_with_bleu4_and_writes_what_it_measured(trained, tmp_path, capsys):
    paths, checkpoint = trained
    results = tmp_path / "results.json"
    evaluate_captioner.main(["-c", str(checkpoint), "--data", str(paths["data"]), "--out", str(results)])
    last = capsys.readouterr().out.strip().splitlines()[-1]
    captions = json.loads(results.read_text())
    references = dict(torch.load(paths["val_im2capts"], weights_only=True))
    assert [set(entry) for entry in captions] == [{"image_id", "caption"}] * 4
    assert {entry["image_id"] for entry in captions} == set(references)
    expected = score(references, {entry["image_id"]: entry["caption"] for entry in captions})
    metrics = json.loads((tmp_path / "results_metrics.json").read_text())
    assert metrics["metrics"] == pytest.approx(expected)
    assert last == f"BLEU-4 {100 * expected['BLEU-4']:.2f}"


def test_evaluation_counts_every_picture_of_the_split_once_whatever_the_batch(trained, monkeypatch):
    paths, checkpoint = trained
    captioned, decoded, decode = [], [], Captioner.decode
    monkeypatch.setattr(Captioner, "decode", lambda self, x: decoded.append(len(x)) or decode(self, x))
    for size in (1, 3, 64):
        state = checkpoints.load(checkpoint, "captioner")
        state["config"]["eval_batch_size"] = size
        resized, results = (checkpoint.with_name(f"batch{size}.{suffix}") for suffix in ("pt", "json"))
        checkpoints.save(resized, state)
        evaluate_captioner.main(["-c", str(resized), "--data", str(paths["data"]), "--out", str(results)])
        captioned.append(json.loads(results.read_text()))
    assert captioned[0] == captioned[1] == captioned[2]
    assert decoded == [1, 1, 1, 1, 3, 1, 4]


def test_a_checkpoint_alone_is_enough_to_caption(trained, tmp_path):
    """No YAML, no tokenizer file, no data set: only the file, moved elsewhere."""
    paths, checkpoint = trained
    moved = tmp_path / "elsewhere" / "model.pt"
    moved.parent.mkdir()
    moved.write_bytes(checkpoint.read_bytes())
    expected = caption.load_captioner(checkpoint).caption([Image.new("RGB", (70, 50), "red")])
    for file in (paths["tokenizer"], checkpoint):
        file.unlink()
    captioner = caption.load_captioner(str(moved), "cpu")
    assert captioner.caption([Image.new("RGB", (70, 50), "red")]) == expected
    assert not any(module.training for module in captioner.model.modules())


def test_no_pictures_are_no_captions():
    assert random_captioner().caption([]) == []


def test_a_checkpoints_tokenizer_cannot_steer_the_terminal():
    tokenizer = SimpleNamespace(decode=lambda tokens: "a\x1b[2J dog\r")
    captioner = replace(random_captioner(), tokenizer=tokenizer)
    assert captioner.text(Hypothesis([4], -1.0, -1.0, [-1.0])) == "a [2J dog "


def test_captions_of_pictures_and_folders_in_order_and_the_unreadable_named(trained, tmp_path, capsys):
    _, checkpoint = trained
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, mode in (("b.png", "RGBA"), ("a.jpg", "L"), ("c.tif", "I;16")):
        Image.new(mode, (40, 30)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    caption.main(["-c", str(checkpoint), "--json", str(folder), str(folder / "a.jpg")])
    found = json.loads(capsys.readouterr().out)
    assert [Path(entry["picture"]).name for entry in found] == ["a.jpg", "b.png", "c.tif", "a.jpg"]
    assert found[0]["caption"] == found[3]["caption"]
    assert all(entry["score"] <= 0 for entry in found)

    (folder / "b.png").write_bytes(b"<html>not found</html>")
    code, message = ended(caption.main, "-c", checkpoint, folder, capsys=capsys)
    assert code == 1
    assert "b.png" in message
    assert "1 of 3 pictures" in message


def test_one_beam_and_many_are_the_users_choice(trained, tmp_path, capsys):
    _, checkpoint = trained
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "blue.png")
    captioner = captioner_from_state(
        torch.load(checkpoint, weights_only=True), torch.device("cpu"), num_beams=1
    )
    caption.main(["-c", str(checkpoint), "--beams", "1", str(tmp_path / "blue.png")])
    expected = captioner.caption([Image.new("RGB", (40, 30), "blue")])[0]
    assert capsys.readouterr().out == f"{tmp_path / 'blue.png'}: {expected}\n"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_exit_code_says_so(signum, make_tiny_coco, tmp_path, quick_config):
    """A real process with a loader worker, stopped in the middle of its training."""
    paths = make_tiny_coco(train=200, val=4, unlabeled=200)
    config = write_config(tmp_path, "mae_config.yaml", batch_size=1, num_workers=1, checkpoint_minutes=1e-4)
    folder = tmp_path / "out" / "encoder"
    run = start("train_encoder.py", "--data", paths["data"], "--out", tmp_path / "out", "--config", config)
    wait_for_checkpoint(run, folder)
    time.sleep(0.3)
    code, _ = stop(run, signum)
    message = stderr_of(run)
    assert code == 128 + signum, message
    assert signum.name in message
    (saved,) = folder.glob("checkpoint*.pt")
    state = torch.load(saved, weights_only=True)
    assert state["progress"]["step"] > 0
    assert not alive(run), "a process was left behind"


def test_a_signal_stops_a_beam_search_at_the_next_token(trained, monkeypatch):
    _, checkpoint = trained
    captioner = caption.load_captioner(checkpoint)
    steps = []
    captioner.model.decoder.register_forward_pre_hook(lambda *_: steps.append(1))
    monkeypatch.setattr(interrupts, "_received", signal.SIGTERM)
    with pytest.raises(interrupts.Interrupted):
        captioner.caption([Image.new("RGB", (40, 30))])
    assert len(steps) == 1
    monkeypatch.setattr(interrupts, "_received", None)
    assert isinstance(captioner.caption([Image.new("RGB", (40, 30))])[0], str)


def evaluated(paths, checkpoint, *more: str) -> None:
    evaluate_captioner.main(["-c", str(checkpoint), "--data", str(paths["data"]), *more])


def test_evaluation_names_a_picture_that_it_cannot_read_and_writes_nothing(trained, tmp_path, capsys):
    """A score over fewer pictures would look like any other."""
    paths, checkpoint = trained
    (damaged, *_) = sorted(paths["val_images"].iterdir())
    damaged.write_bytes(damaged.read_bytes()[:300])
    results = tmp_path / "results.json"
    options = ["-c", checkpoint, "--data", paths["data"], "--out", results]
    code, message = ended(evaluate_captioner.main, *options, capsys=capsys)
    assert code == 1
    assert damaged.name in message
    assert not results.exists()


def test_the_signature_says_what_the_figures_are_of(trained, tmp_path, capsys):
    paths, checkpoint = trained
    evaluated(paths, checkpoint, "--beams", "1", "--out", str(tmp_path / "r.json"))
    digest = checkpoint.read_bytes()[-64:].decode()
    signature = json.loads((tmp_path / "r_metrics.json").read_text())["signature"]
    expected = (
        f"coco-ptb | n=4 | val2017 | beams=1 alpha=0.8 | checkpoint checkpoint1.pt sha256 {digest[:12]}"
    )
    assert signature == expected
    assert signature in capsys.readouterr().out.splitlines()


def test_confidence_is_measured_by_evaluation_and_shown_for_the_same_search_only(
    trained, monkeypatch, tmp_path, capsys
):
    paths, checkpoint = trained
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "blue.png")
    shown = [
        ["-c", str(checkpoint), "--json", "--beams", beams, str(tmp_path / "blue.png")] for beams in "21"
    ]
    caption.main(shown[0])
    output = capsys.readouterr()
    assert json.loads(output.out)[0]["confidence"] is None
    assert "evaluate_captioner.py" in output.err

    monkeypatch.setattr("scoring.calibration.FEWEST_IN_BIN", 2)  # val has four pictures
    evaluated(paths, checkpoint)
    points = json.loads(checkpoint.with_name("checkpoint1_calibration.json").read_text())
    capsys.readouterr()
    caption.main(shown[0])
    output = capsys.readouterr()
    (result,) = json.loads(output.out)
    captioner = caption.load_captioner(checkpoint)
    [[best, *_]] = captioner.decode(captioner.transform(Image.new("RGB", (40, 30), "blue"))[None])
    expected = Calibration(points["scores"], points["confidences"])(sureness(best, captioner.options))
    assert result["confidence"] == expected
    assert output.err.count("\n") == 1, "only the first line, which names device and sizes"
    caption.main(shown[0][:2] + shown[0][3:])
    assert capsys.readouterr().out.endswith(f"  (confidence {expected:.2f})\n")
    caption.main(shown[1])
    assert json.loads(capsys.readouterr().out)[0]["confidence"] is None

    monkeypatch.setattr("evaluate_captioner.sureness", lambda *_: -0.5)
    evaluated(paths, checkpoint)
    assert json.loads(checkpoint.with_name("checkpoint1_calibration.json").read_text())["scores"] == [-0.5]


def test_a_consensus_is_the_users_choice_and_has_a_confidence_of_its_own(
    trained, monkeypatch, tmp_path, capsys
):
    paths, checkpoint = trained
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "blue.png")
    monkeypatch.setattr("scoring.calibration.FEWEST_IN_BIN", 2)  # val has four pictures
    evaluated(paths, checkpoint, "--consensus", "16")
    signature = json.loads(
        checkpoint.with_name("checkpoint1_val_consensus16_results_metrics.json").read_text()
    )["signature"]
    assert " | beams=2 alpha=0.8 consensus=16 | " in signature
    assert "agreement of 16 samples with it; " in capsys.readouterr().out
    shown = ["-c", str(checkpoint), "--json", "--n-best", "2", str(tmp_path / "blue.png"), "--consensus"]
    caption.main([*shown, "8"])
    output = capsys.readouterr()
    assert json.loads(output.out)[0]["confidence"] is None, "it was measured for 16"
    assert "--consensus 8" in output.err
    caption.main([*shown, "16"])
    output = capsys.readouterr()
    (result,) = json.loads(output.out)
    captioner = caption.load_captioner(checkpoint)
    captioner.options = replace(captioner.options, n_best=2, consensus_samples=16)
    (ranked,) = captioner.decode(captioner.transform(Image.new("RGB", (40, 30), "blue"))[None])
    assert [entry["score"] for entry in result["n_best"]] == pytest.approx([h.score for h in ranked])
    assert 1 >= ranked[0].score >= ranked[1].score >= 0
    points = json.loads(checkpoint.with_name("checkpoint1_consensus16_calibration.json").read_text())
    assert result["confidence"] == Calibration(points["scores"], points["confidences"])(result["score"])
    assert "consensus of 16 samples" in output.err


def test_the_best_captions_come_with_their_scores_best_first(trained, tmp_path, capsys):
    _, checkpoint = trained
    picture = Image.new("RGB", (40, 30), "blue")
    picture.save(tmp_path / "blue.png")
    options = ["-c", str(checkpoint), "--beams", "3", "--n-best", "3", str(tmp_path / "blue.png")]
    caption.main([*options, "--json"])
    (result,) = json.loads(capsys.readouterr().out)
    scores = [entry["score"] for entry in result["n_best"]]
    assert len(set(scores)) == 3
    assert scores == sorted(scores, reverse=True)
    assert result["n_best"][0] == {"caption": result["caption"], "score": result["score"]}
    caption.main(options)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path / 'blue.png'}:"
    assert [line.split(maxsplit=1) for line in lines[1:]] == [
        [f"{entry['score']:.4f}", entry["caption"]] for entry in result["n_best"]
    ]
    too_many = ended(caption.main, *options[:4], "--n-best", "4", options[-1], capsys=capsys)
    assert_one_clear_line(too_many, "--n-best 4", "3 beams")


def test_a_picture_may_come_from_standard_input(trained, tmp_path):
    _, checkpoint = trained
    picture = tmp_path / "blue.png"
    Image.new("RGB", (40, 30), "blue").save(picture)
    command = [sys.executable, "caption.py", "-c", str(checkpoint), "--json", "-", str(picture)]
    done = subprocess.run(command, cwd=ROOT, input=picture.read_bytes(), capture_output=True, check=True)
    piped, named = json.loads(done.stdout)
    assert piped["picture"] == "-"
    assert piped | {"picture": named["picture"]} == named


def test_standard_input_may_be_a_socket_holds_one_picture_and_may_be_waited_for(trained, tmp_path, capsys):
    """A socket cannot be opened by name; and a wait for a silent pipe did not heed SIGTERM."""
    _, checkpoint = trained
    picture = tmp_path / "blue.png"
    Image.new("RGB", (40, 30), "blue").save(picture)
    command = [sys.executable, "caption.py", "-c", str(checkpoint), "-"]
    ours, theirs = socket.socketpair()
    with subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=subprocess.PIPE, text=True) as process:
        theirs.close()
        ours.sendall(picture.read_bytes())
        ours.close()
        assert process.stdout.read().startswith("-:")
    twice = ended(caption.main, "-c", checkpoint, "-", "-", capsys=capsys)
    assert_one_clear_line(twice, "`-` is there twice", "one picture")
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stderr.readline()  # what it captions with: next it reads
        time.sleep(0.5)
        process.terminate()
        assert process.wait(timeout=30) == -signal.SIGTERM


SPEAKING = """
import sys, time
from support import command_line
from support.errors import RunError

def main():
    time.sleep(0.3)  # until the reader has gone
    print("a caption")
    if len(sys.argv) > 1:
        raise RunError("two pictures could not be read")

command_line.run(main)
"""


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("output", ["a reader that is gone", "a full disk", "closed"])
def test_an_output_that_takes_nothing_hides_no_error(fails, output):
    """Printing the error wrote out the rest of the output first, which failed: tracebacks, and no error."""
    command = [sys.executable, "-c", SPEAKING, *["fails"] * fails]
    shell = {"a reader that is gone": "exec 3>&1; ({}; echo $? >&3) | true", "a full disk": "{} > /dev/full",
             "closed": "{} >&-"}[output]  # fmt: skip
    line = shell.format(shlex.join(command))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert ("failed: two pictures could not be read" in done.stderr) == fails
    code = int(done.stdout) if output == "a reader that is gone" else done.returncode
    assert code == (0 if output == "closed" and not fails else 1)
    if output == "a full disk" and not fails:
        assert "failed: a file: No space left on device" in done.stderr


def test_explanations_go_to_a_file_or_into_a_folder_one_for_each_picture(trained, tmp_path, capsys):
    _, checkpoint = trained
    for place in ("one/a.png", "two/a.png", "two/b.jpg"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.new("RGB", (900, 600), "blue").save(tmp_path / place)
    folders = [str(tmp_path / "one"), str(tmp_path / "two")]
    caption.main(["-c", str(checkpoint), "--explain", str(tmp_path / "sheets" / "here"), *folders])
    sheets = sorted((tmp_path / "sheets" / "here").iterdir())
    assert [sheet.name for sheet in sheets] == ["a.png-2.png", "a.png.png", "b.jpg.png"]
    capsys.readouterr()
    caption.main(
        ["-c", str(checkpoint), "--explain", str(tmp_path / "sheet.jpg"), str(tmp_path / "one/a.png")]
    )
    words = capsys.readouterr().out.partition(": ")[2].split()
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.format == "JPEG"
        blank = attention_sheet(Image.new("RGB", (9, 9)), words, torch.ones(len(words), 1, 1))
        assert sheet.size == blank.size
    many = ended(caption.main, "-c", checkpoint, "--explain", tmp_path / "s.png", *folders, capsys=capsys)
    assert_one_clear_line(many, "--explain", "3 pictures", "folder")


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp"])
def test_a_sheet_takes_no_image_s_place_but_that_of_an_older_sheet(trained, tmp_path, ending, capsys):
    """`--explain a.jpg b.jpg`, by somebody who took it for a switch, replaced a.jpg."""
    _, checkpoint = trained
    first, second, sheet = (tmp_path / f"{name}.{ending}" for name in ("first", "second", "sheet"))
    for place in (first, second):
        Image.new("RGB", (40, 30), "blue").save(place)
    before = first.read_bytes()
    for taken in ((first, second), (first, first)):
        end = ended(caption.main, "-c", checkpoint, "--explain", *taken, capsys=capsys)
        assert_one_clear_line(end, "--explain", str(first), "name another place")
        assert first.read_bytes() == before
    caption.main(["-c", str(checkpoint), "--explain", str(sheet), str(first)])
    if ending != "bmp":  # it has no room for a mark
        caption.main(["-c", str(checkpoint), "--explain", str(sheet), str(second)])
    with Image.open(sheet) as drawn:
        assert drawn.width > 40


def test_training_calls_a_collapsed_model_that(make_tiny_coco, tmp_path, quick_config, capsys):
    """After one epoch of a few steps the tiny model says the same of all pictures."""
    paths = make_tiny_coco(train=6, val=30, unlabeled=2)
    train_mae(paths["data"], tmp_path / "out", quick_config["mae"], "--epochs", "1")
    config = write_config(tmp_path, "captioner_config.yaml", eval_freq=1)
    train_captions(paths["data"], tmp_path / "out", config, "-p", "last", "--epochs", "1")
    log = json.loads((tmp_path / "out" / "captioner" / "log.jsonl").read_text())
    warning = (
        f"WARNING: the model has collapsed: {log['distinct_captions']} distinct captions for 30 pictures"
    )
    assert warning in capsys.readouterr().err


def test_figures_stand_also_where_the_confidence_cannot_be_written(trained, monkeypatch, tmp_path, capsys):
    paths, checkpoint = trained
    monkeypatch.setattr("scoring.calibration.FEWEST_IN_BIN", 2)
    checkpoint.with_name("checkpoint1_calibration.json").mkdir()
    evaluated(paths, checkpoint, "--out", str(tmp_path / "r.json"))
    output = capsys.readouterr()
    assert output.out.splitlines()[-1].startswith("BLEU-4 ")
    assert "no confidence" in output.err
    assert "checkpoint1_calibration.json" in output.err
