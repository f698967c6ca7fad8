"""The benchmark harness: what it makes of the times it takes."""

import dataclasses
import itertools
import json
import sys
import zipfile
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import coco_samples
from benchmarks import decoding, floor, loading, measuring, ranks, run, sizes, training
from benchmarks.measuring import Contestant, Setting, compare, table
from benchmarks.peers import original
from image_transforms import load_image
from paths import locations
from support.errors import RunError

CPU = Setting(torch.device("cpu"), torch.float32, repeats=3)


def test_a_rows_figures_are_medians_over_rounds_and_its_ratio_is_taken_round_by_round(monkeypatch):
    """A machine that slows down from round to round must not show in the ratio."""
    clock = {"ours": itertools.cycle([1.0, 2.0, 4.0]), "peer": itertools.cycle([3.0, 6.0, 8.0])}
    monkeypatch.setattr(measuring, "timed", lambda run, device: next(clock[run()]))
    monkeypatch.setattr(measuring, "peak_flops", lambda setting: 100.0)
    contestants = [Contestant(name, lambda name=name: lambda: name) for name in clock]
    ours, peer = compare(CPU, "the work", "a lot", "pieces/s", 12, contestants, flop=50)
    assert (ours.rate, ours.spread, ours.rounds, ours.ratio) == (6, (3, 12), 3, None)
    assert (peer.rate, peer.spread, peer.ratio) == (2, (1.5, 4), 3)
    assert (ours.mfu, peer.mfu) == (pytest.approx(0.25), pytest.approx(50 / 6 / 100))


def test_peers_alone_are_without_ours_and_without_a_ratio():
    contestants = [Contestant(name, lambda: lambda: None) for name in ("ours", "peer", "another")]
    rows = compare(dataclasses.replace(CPU, peers_alone=True), "", "", "", 1, contestants)
    assert [(row.contestant, row.ratio) for row in rows] == [("peer", None), ("another", None)]


def test_contestants_take_turns_in_an_order_that_turns_around():
    order = []
    contestants = [Contestant(name, lambda name=name: lambda: order.append(name)) for name in "ab"]
    compare(CPU, "", "", "", 1, contestants)
    assert order[2 * measuring.WARM_UP :] == list("abbaab")


def test_peak_memory_is_what_a_contestant_needs_and_not_what_the_one_before_freed():
    def build(size):
        return lambda: lambda: torch.ones(size, dtype=torch.uint8)

    # Above 32 MiB malloc asks the system each time; less may come out of what earlier tests left to it.
    large, small = 200 * 2**20, 64 * 2**20
    rows = compare(CPU, "", "", "", 1, [Contestant("a", build(large)), Contestant("b", build(small))])
    if rows[0].peak_bytes is None:
        pytest.skip("this system does not tell")
    for row, expected in zip(rows, (large, small)):
        assert expected - 2**20 <= row.peak_bytes < expected + 8 * 2**20


def test_one_that_cannot_run_costs_the_others_nothing_and_is_told_in_the_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measuring, "failures", [])
    contestants = [Contestant("ours", lambda: lambda: None), Contestant("peer", lambda: lambda: 1 / 0)]
    subject = SimpleNamespace(rows=lambda setting: compare(setting, "the work", "", "", 1, contestants))
    monkeypatch.setitem(run.SUBJECTS, "decoding", subject)
    out = tmp_path / "x.json"
    with pytest.raises(RunError, match=r"1 could not run, the first: the work, : peer: ZeroDivisionError"):
        run.main(["--only", "decoding", "--device", "cpu", "--out", str(out)])
    assert [row["contestant"] for row in json.loads(out.read_text())["rows"]] == ["ours"]


def test_the_table_says_everything_once():
    contestants = [
        Contestant("ours", lambda: lambda: None),
        Contestant("peer", lambda: lambda: None, "repaired"),
    ]
    text = table(compare(CPU, "the work", "a lot of it", "pieces/s", 12, contestants))
    for part in ("the work: a lot of it; CPU", "pieces/s", "ours  ", "peer [1]", " ×", "[1] repaired"):
        assert text.count(part) == 1, part


# --- the subjects, on toys ---

QUICK = Setting(torch.device("cpu"), torch.float32, repeats=1, quick=True)


def counted(work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_the_floor_of_a_training_step_is_what_torch_counts():
    """Torch counts no operations of the CPU's fused attention, so the written-out one takes its place."""
    mae, config = sizes.mae_config(QUICK), sizes.captioner_config(QUICK)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        step = training.mae_step(QUICK, mae, sizes.image_batch(QUICK, 3))
        assert counted(step) == floor.mae_step(mae, 3)
        for all_learn in (False, True):
            batch = sizes.caption_batch(QUICK, 2, 5, tokens=9)
            step = training.captioner_step(QUICK, config, mae, batch, all_learn)
            assert counted(step) == floor.captioner_step(config, mae, 2, 5, 9, all_learn)


def test_the_floor_of_a_search_is_what_torch_counts_for_one_beam():
    mae, config = sizes.mae_config(QUICK), sizes.captioner_config(QUICK)
    search = decoding.beam_search(QUICK, config, mae, sizes.random_images(QUICK, 2), length=7, beams=1)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert counted(search) == floor.beam_search(config, mae, 2, 7, 1)


def test_the_command_prints_a_table_and_writes_every_promised_field(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run.huggingface, "is_installed", lambda: False)
    out = tmp_path / "results" / "benchmarks.json"
    for subject in ("training", "decoding"):
        run.main(["--quick", "--device", "cpu", "--repeats", "1", "--only", subject, "--out", str(out)])
    printed = capsys.readouterr().out
    written = json.loads(out.read_text())
    assert "name a checkout of it with --original" in printed
    assert "transformers is left out" in printed
    assert torch.__version__.startswith(written["machine"]["packages"]["torch"])
    ours = [row for row in written["rows"] if row["contestant"] == "ours"]
    assert [row["what"].split(",")[0] for row in ours] == [
        "MAE step", "captioner step", "captioner step", "beam search",
    ]  # fmt: skip
    for row in ours:
        assert min(row["rate"], row["mfu"]) > 0
        assert row["spread"] == [row["rate"], row["rate"]]
        assert (row["rounds"], row["ratio"]) == (1, None)
        assert f"{row['what']}: {row['size']}; {row['where']}" in printed
        assert "peak_bytes" in row


def test_two_processes_take_a_step_together():
    step = ranks.group(2, QUICK)
    assert step() == step() == ["done", "done"]


def test_the_ratio_of_ranks_says_how_much_faster_two_are(monkeypatch):
    seconds = {1: 2.0, 2: 2.5}
    monkeypatch.setattr(ranks, "group", lambda world_size, setting: lambda: seconds[world_size])
    monkeypatch.setattr(measuring, "timed", lambda run, device: run())
    monkeypatch.setattr(measuring, "peak_flops", lambda setting: 1e9)
    two, one = ranks.rows(QUICK)
    assert (two.rate, one.rate, one.ratio) == (ranks.IMAGES / 2.5, ranks.IMAGES / 2.0, pytest.approx(0.8))


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(3):
        Image.effect_noise((400, 300), 50).save(folder / f"{number}.jpg")
    return folder


def test_loading_is_measured_from_originals_and_from_copies(tmp_path, photographs, monkeypatch, capsys):
    """Two untimed epochs and a timed one of three pictures, of each kind."""
    read = []
    monkeypatch.setattr(coco_samples, "load_image", lambda path: read.append(size(path)) or load_image(path))
    monkeypatch.setattr(loading, "numbers_of_workers", lambda: [0])
    options = ["--quick", "--device", "cpu", "--repeats", "1", "--only", "loading"]
    options += ["--pictures", str(photographs), "--out", str(tmp_path / "x.json")]
    for curves in ([], ["--curves"]):
        read.clear()
        run.main([*options, *curves])
        assert read == [(400, 300)] * 9 + [(341, 256)] * 9
    assert capsys.readouterr().out.count("ours  ") == 4


def size(path):
    with Image.open(path) as image:
        return image.size


def test_without_photographs_loading_is_left_out_and_a_folder_without_is_refused(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(run, "paths", locations(tmp_path / "nowhere"))
    with pytest.raises(run.UsageError, match=r"no \.jpg files"):
        run.main(["--pictures", str(tmp_path), "--out", str(tmp_path / "x.json")])
    run.main(["--quick", "--device", "cpu", "--only", "loading", "--out", str(tmp_path / "x.json")])
    assert "name a folder of photographs with --pictures" in capsys.readouterr().out


def test_a_folder_that_is_no_checkout_of_the_original_is_refused(tmp_path):
    with pytest.raises(run.UsageError, match="no image_captioner"):
        run.main(["--original", str(tmp_path), "--out", str(tmp_path / "x.json")])


WHEEL = """
from torch import nn
class TransformerEncoderDecoder(nn.Module):
    def __init__(self, encoder, decoder):
        super().__init__()
        self.decoder = decoder
"""
MODELS = """
from torch import nn
def ImageEncoder(*_): return nn.Module()
class CaptionDecoder(nn.Module):
    def __init__(self, vocabulary, *_):
        super().__init__()
        self.project = nn.Linear(1, vocabulary)
"""


def test_the_package_of_the_original_is_found_in_its_wheel_whatever_is_measured_first(tmp_path, monkeypatch):
    package = "transformer_components_michaelkosmider"
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, package, raising=False)
    with zipfile.ZipFile(tmp_path / "one-0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{package}/__init__.py", WHEEL)
    (tmp_path / "image_captioner.py").write_text(MODELS)
    setting = dataclasses.replace(CPU, quick=True, original=tmp_path)
    config, mae = sizes.captioner_config(setting), sizes.mae_config(setting)
    search = original.beam_search(setting, config, mae, sizes.random_images(setting, 1), 3, 1)
    assert callable(search.build())
    monkeypatch.delitem(sys.modules, package)
