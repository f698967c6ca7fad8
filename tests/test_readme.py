"""README is true: its figures are those of records/, its commands and files are there.

`python -m tests.test_readme` writes the figures of records/ into README, with the decimals that stand there.
"""

import json
import re
from collections.abc import Iterator

import pytest

from model_card import metrics_in_words
from tests.test_flags import SCRIPTS, parser_of
from tests.training_cases import ROOT
from training import checkpoints

README = ROOT / "README.md"
RECORDS = ROOT / "records"

# What looks like the figure of a run and is none: a version, a setting, a fact of the data or of a test.
NO_RESULTS = (
    "(95 %)", "Python 3.11", "CC BY 2.0", "between 20 and 100 %", "each 0.7 of",
)  # fmt: skip
RESULT = re.compile(r"\d[\d,]*\.\d+|\d[\d,]*(?=\s(?:images/s|pairs/s|ms|minutes?|hours?|%|×))")


def record(name: str) -> dict:
    return json.loads((RECORDS / f"{name}.json").read_text())


def minutes(run: str, *stages: str) -> float:
    """Of training, without validation, by the log lines of those of the stages that there were."""
    logs = [log for stage in stages if (log := RECORDS / run / f"{stage}.jsonl").exists()]
    return sum(json.loads(line)["seconds"] for log in logs for line in log.read_text().splitlines()) / 60


def scores(run: str) -> list[float]:
    """BLEU-4 with its interval, CIDEr with its, both of a constant and of a human caption; times 100."""
    val = record(f"{run}/val")
    found = []
    for metric in ("BLEU-4", "CIDEr"):
        found += [val["metrics"][metric], *val["intervals"][metric]]
    for others in ("constant_caption_metrics", "human_metrics"):
        found += [val[others][metric] for metric in ("BLEU-4", "CIDEr")]
    return [100 * value for value in found]


def published(name: str) -> list[float]:
    return [record("published")[name][metric] for metric in ("BLEU-4", "CIDEr")]


def rates(machine: str, work: str, precision: str, *contestants: str) -> list[float]:
    """Samples a second; several rows may be of one work: the first of this precision counts."""
    rows = record(f"benchmarks/{machine}")["rows"]
    rows = [row for row in rows if row["what"].startswith(work) and precision in row.get("where", precision)]
    return [next(row["rate"] for row in rows if row["contestant"] == name) for name in contestants]


def share_of_peak(machine: str, work: str) -> float:
    """What ours reached of the device's peak rate."""
    rows = record(f"benchmarks/{machine}")["rows"]
    return next(r["mfu_percent"] / 100 for r in rows if r["what"] == work and r["contestant"] == "ours")


def quotes() -> list[tuple[str, list[float]]]:
    """README's words around its figures, and these: `#` is a figure, `…` anything within a table's cell."""
    before, val = record("photographs/captioner_val"), record("photographs/val")
    two_cores, ablations = record("photographs/two_cores/val"), record("photographs/ablations")
    names = "two cores, Muon, from scratch", "two cores alone, Muon"
    mae = [run for name in names for run in ablations if (run["name"], run["epochs"]) == (name, 16)]
    (images,) = rates("h100", "MAE loop", "bfloat16", "from files")
    mae_hours = 90 * 241_690 / images / 3600
    flops = 989e12 * share_of_peak("h100", "captioner step, encoder frozen")  # a second, of an H100
    captioner_hours = 1.83e18 / flops / 3600  # captioner_config.yaml
    machines = ("xeon_amx", "epyc_zen5", "h100")
    three = ("ours", "original", "transformers")
    return [
        (
            "photographs**: …| **#** (# – #) | **#** (# – #) | #, # | #, # "
            "| encoder: # minutes of an H100, captioner: # of two CPU cores |",
            [
                *scores("photographs"),
                minutes("photographs", "encoder"),
                minutes("photographs", "captioner", "self_critical"),
            ],
        ),
        (
            "of the sample | **#** (# – #) | **#** (# – #) | #, # | #, # | # + # minutes of two CPU cores |",
            [*scores("sample"), minutes("sample", "encoder"), minutes("sample", "captioner")],
        ),
        (
            "**not run here** | – | #, # | #, # | an estimated # hours of an H100, # dollars at 3 an hour |",
            [*published("constant_caption"), *published("human"), h := mae_hours + captioner_hours, 3 * h],
        ),
        (
            "CIDEr is # instead of # after # epochs. The self-critical stage and consensus are worth # "
            "BLEU-4 and # CIDEr, and cost words: # different ones instead of #.",
            [
                *(100 * run["cider"] for run in mae),
                mae[0]["epochs"],
                *(100 * (val["metrics"][key] - before["metrics"][key]) for key in ("BLEU-4", "CIDEr")),
                val["captions"]["words"],
                before["captions"]["words"],
            ],
        ),
        (
            "Two CPU cores alone, in # minutes of training, come to BLEU-4 # and CIDEr #, "
            "with # different captions.",
            [
                minutes("photographs/two_cores", "encoder", "captioner", "self_critical"),
                *(100 * two_cores["metrics"][key] for key in ("BLEU-4", "CIDEr")),
                two_cores["captions"]["distinct"],
            ],
        ),
        ("The original, on COCO, has BLEU-4 # and CIDEr #;", published("original")),
        ("(https://github.com/Bukunmi2108/capit)) has # and #.", published("capit")),
        ("scores, captions: # minutes on two CPU cores", [record("commands")["minutes"]["make sample"]]),
        ("the tests: # minutes on two CPU cores", [record("commands")["minutes"]["make test"]]),
        ("by themselves, in # minutes more", [record("commands")["minutes"]["setting up .venv"]]),
        ("the first stage takes # hours", [mae_hours]),
        ("the second takes # hours", [captioner_hours]),
        (
            "| MAE step, ViT-B/16 | **#** / # / # | **#** / # / # | **#** / # / # |",
            [rate for machine in machines for rate in rates(machine, "MAE step", "bfloat16", *three)],
        ),
        (
            "| captioner step, all layers learn | **#** / # / – | **#** / # / – |",
            [
                rate
                for machine in machines[:2]
                for rate in rates(machine, "captioner step, all layers learn", "bfloat16", *three[:2])
            ],
        ),
        (
            "| beam search, 6 beams, 60 tokens | **#** / # / # | **#** / # / # | **#** / not measured / # |",
            [
                *rates("xeon_amx", "beam search", "bfloat16", *three),
                *rates("epyc_zen5", "beam search", "bfloat16", *three),
                *rates("h100", "beam search", "bfloat16", "ours", "transformers"),
            ],
        ),
    ]


def found(pattern: str, text: str) -> re.Match:
    """Where README has these words."""
    signs = {"#": r"(\d[\d,]*(?:\.\d+)?)", "…": r"[^|\n]*"}
    parts = [signs.get(part) or (r"\s+" if part.isspace() else re.escape(part))
             for part in re.split(r"(#|…|\s+)", pattern) if part]  # fmt: skip
    matches = list(re.finditer("".join(parts), text))
    assert len(matches) == 1, f"README should say once, and says {len(matches)} times: {pattern}"
    return matches[0]


def figures(text: str) -> Iterator[tuple[tuple[int, int], str, str]]:
    """Of every figure that is quoted: its place in README, how it stands there, and how it should."""
    for pattern, values in quotes():
        match = found(pattern, text)
        assert len(match.groups()) == len(values), pattern
        for group, (said, value) in enumerate(zip(match.groups(), values), 1):
            decimals = len(said.partition(".")[2])
            yield match.span(group), said, f"{value:,.{decimals}f}"


def test_every_figure_is_that_of_a_record():
    text = README.read_text()
    wrong = [
        f"{text[at - 40 : end]!r}: {should}" for (at, end), said, should in figures(text) if said != should
    ]
    assert wrong == [], "`python -m tests.test_readme` writes them"


def test_no_figure_stands_there_without_a_record():
    text = README.read_text()
    for place, _, _ in figures(text):
        text = text[: place[0]] + " " * (place[1] - place[0]) + text[place[1] :]
    for phrase in NO_RESULTS:
        assert phrase in text, f"no longer in README: {phrase}"
        text = text.replace(phrase, "")
    text = re.sub(r"\]\([^)]*\)", "]", text[: text.index("## What is promised")])
    assert RESULT.findall(text) == []


def test_the_card_of_the_weights_says_what_their_evaluation_found():
    card, val = (ROOT / "weights" / "README.md").read_text(), record("photographs/val")
    assert metrics_in_words(val) in card
    assert checkpoints.digest(ROOT / "weights" / "captioner.pt")[:12] in val["signature"]
    statistics = val["captions"]
    assert f"{statistics['distinct']} different sentences, of {statistics['words']} different words" in card
    assert f"rank correlation of {val['calibration']['rank_correlation']:.2f}" in card


def test_the_promises_figures_are_those_of_the_long_table():
    text = README.read_text()
    short = text[text.index("## What is promised") : text.index("## Differences")]
    long = (ROOT / "docs" / "reliability.md").read_text()
    numbers = set(re.findall(r"\d[\d,.]*\d|\d(?=\s)", short))
    assert len(numbers) > 8
    assert numbers <= set(re.findall(r"\d[\d,.]*\d|\d(?=\s)", long))


@pytest.mark.parametrize("machine", ["xeon_amx", "epyc_zen5", "epyc", "h100"])
def test_the_records_of_the_benchmarks_are_what_their_page_says(machine):
    page = (ROOT / "benchmarks" / "README.md").read_text()
    for row in record(f"benchmarks/{machine}")["rows"]:
        if "spread" in row:
            low, high = (f"{value:g}" for value in row["spread"])
            line = rf"{re.escape(row['contestant'])}( \[\d\])?  +{row['rate']:g}  +{low} – {high}\b"
            assert re.search(line, page), row
        else:
            for figure in ("milliseconds", "rate"):
                assert figure not in row or re.search(rf"\b{row[figure]:,}\b|\b{row[figure]}\b", page), row


def test_every_command_and_option_is_there(monkeypatch):
    pages = [README, *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text() for page in pages)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:`|^ {4})make ([a-z-]+)", text, flags=re.MULTILINE)) <= targets
    (extras,) = re.findall(r"pip install -e \.\[([\w,]+)\]", text)
    assert all((ROOT / f"requirements-{extra}.txt").exists() for extra in extras.split(","))
    commands = re.findall(r"python (\w+)\.py([^`#\n]*)", text)
    assert len(commands) > 15
    for script, arguments in commands:
        known = parser_of(SCRIPTS[script], monkeypatch)._option_string_actions
        assert set(re.findall(r"(?<!\S)--?[a-z][\w-]*", arguments)) <= known.keys(), (
            script,
            arguments,
        )


def test_the_list_of_files_holds_all_scripts_and_folders():
    text = README.read_text()
    listed = text[text.index("Read the code in the order") : text.index("**The data.**")]
    parts = [path.name for path in ROOT.glob("*.py") if path.name != "setup.py"]
    parts += [f"{path.name}/" for path in ROOT.iterdir() if any(path.glob("*.py"))]
    assert [part for part in sorted(parts) if part not in listed] == []


def test_three_minutes_suffice():
    assert len(README.read_text().splitlines()) <= 220


def write() -> None:
    """Puts the figures of records/ into README."""
    text = README.read_text()
    for (start, end), _, should in sorted(figures(text), reverse=True):
        text = text[:start] + should + text[end:]
    README.write_text(text)


if __name__ == "__main__":
    write()
