"""The benchmark harness: what it makes of the times it takes."""

import itertools

import pytest
import torch

from benchmarks import measuring
from benchmarks.measuring import Contestant, Setting, compare, table

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


def test_contestants_take_turns_in_an_order_that_turns_around():
    order = []
    contestants = [Contestant(name, lambda name=name: lambda: order.append(name)) for name in "ab"]
    compare(CPU, "", "", "", 1, contestants)
    assert order[2 * measuring.WARM_UP :] == list("abbaab")


def test_peak_memory_is_what_a_contestant_needs_and_not_what_the_one_before_freed():
    def build(size):
        return lambda: lambda: torch.ones(size, dtype=torch.uint8)

    large, small = 200 * 2**20, 20 * 2**20
    rows = compare(CPU, "", "", "", 1, [Contestant("a", build(large)), Contestant("b", build(small))])
    if rows[0].peak_bytes is None:
        pytest.skip("this system does not tell")
    for row, expected in zip(rows, (large, small)):
        assert expected - 2**20 <= row.peak_bytes < expected + 8 * 2**20


def test_the_table_says_everything_once():
    contestants = [
        Contestant("ours", lambda: lambda: None),
        Contestant("peer", lambda: lambda: None, "repaired"),
    ]
    text = table(compare(CPU, "the work", "a lot of it", "pieces/s", 12, contestants))
    for part in ("the work: a lot of it; CPU", "pieces/s", "ours  ", "peer [1]", " ×", "[1] repaired"):
        assert text.count(part) == 1, part
