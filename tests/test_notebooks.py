"""The notebooks as a newcomer runs them: unchanged, from top to bottom, whatever the working directory.

`python -m tests.test_notebooks` runs both anew in the checkout and keeps what they show: after `make sample`,
and after new weights or records.
"""

import json
import os
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from captioner import load_captioner
from scoring import calibration
from tests.captioner_cases import save_shipped
from tests.training_cases import PACKAGES, ROOT, train_captions, train_mae, write_config

NOTEBOOKS = ("code_snippets", "results")
FOR_COCO = {  # the one line that changes
    "code_snippets": ("default_paths(sample=True)", "default_paths()"),
    "results": ("sample = True", "sample = False"),
}


@pytest.fixture
def checkout(make_tiny_coco, tmp_path, monkeypatch) -> Path:
    """A copy of the repository with a tiny data set and a tiny run where `make sample` leaves its own."""
    root = tmp_path / "checkout"
    for folder in (*PACKAGES, "records", "weights/examples"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*ROOT.glob("*.py"), *ROOT.glob("*.ipynb")):
        shutil.copy(file, root)
    paths = make_tiny_coco()
    configs = {name: write_config(tmp_path, f"{name}_config.yaml") for name in ("mae", "captioner")}
    for recipe in (root, root / "recipes" / "sample"):
        recipe.mkdir(parents=True, exist_ok=True)
        for name, config in configs.items():
            shutil.copy(config, recipe / f"{name}_config.yaml")
    train_mae(paths["data"], root / "checkpoints" / "sample", configs["mae"], "--epochs", "1")
    train_captions(
        paths["data"], root / "checkpoints" / "sample", configs["captioner"], "-p", "last", "--epochs", "1"
    )
    (root / "data").mkdir()
    paths["data"].rename(root / "data" / "sample")
    monkeypatch.delenv("COCO_ROOT", raising=False)
    return root


def run(notebook: nbformat.NotebookNode, directory: Path, timeout: int = 100) -> None:
    """Runs a notebook in a working directory; Jupyter takes the folder where the notebook lies."""
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", record_timing=False)
    client.execute(cwd=str(directory))


def executed(
    root: Path, name: str, change: tuple[str, str] | None = None, directory: Path | None = None
) -> str:
    """Runs a notebook of the checkout, in its folder or elsewhere; returns all that it printed.

    An error in a cell is raised.
    """
    notebook = nbformat.read(root / f"{name}.ipynb", as_version=4)
    if change:
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        assert first.source.count(change[0]) == 1
        first.source = first.source.replace(*change)
    run(notebook, directory or root)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(
        output.get("text", "") or data.get("text/markdown", "") or data.get("text/plain", "")
        for output in outputs
        for data in [output.get("data", {})]
    )


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_top_to_bottom_on_the_sample(name, checkout):
    printed = executed(checkout, name)
    expected = {
        "code_snippets": ["30 pairs; images (4, 3, 64, 64)", "4 images;", "9 images; ", "output (2, 5, "],
        "results": ["BLEU-4 ", "weights that ship are not here, so nothing is captioned"],
    }
    assert all(text in printed for text in expected[name]), printed


def test_the_second_part_of_the_results_shows_the_weights_and_records_that_ship(checkout):
    records = checkout / "records" / "photographs"
    weights = save_shipped(checkout)
    shipped = load_captioner(weights)
    measured_for = calibration.calibrated_for(weights, shipped.options)
    sure = calibration.Calibration((-9.0, -1.0), (0.25, 0.25))
    calibration.save(calibration.calibration_path(weights), sure, measured_for)
    printed = executed(checkout, "results")

    val = json.loads((records / "val.json").read_text())
    for metric, (low, high) in val["intervals"].items():
        ours = f"| {metric} | **{100 * val['metrics'][metric]:.2f}** ({100 * low:.2f} – {100 * high:.2f}) |"
        assert ours in printed
    folder = checkout / "weights" / "examples"
    credits = json.loads((folder / "credits.json").read_text())
    shown = [line for line in printed.splitlines() if "Flickr" in line]
    assert len(shown) == len(credits)
    for line, credit in zip(shown, credits):
        assert "Confidence 0.25." in line
        for part in (credit["captions"][0], f"({credit['page']})", f"[{credit['license']}]"):
            assert part in line


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_one_line_turns_a_notebook_to_coco_and_it_runs_anywhere(name, checkout, tmp_path, monkeypatch):
    """In another working directory, as after an editable install."""
    for folder in ("data", "checkpoints"):
        (checkout / folder / "sample").rename(checkout / f"{folder}_coco")
        shutil.rmtree(checkout / folder)
        (checkout / f"{folder}_coco").rename(checkout / folder)
    coco = checkout / "data"
    coco.rename(checkout / "data_coco")
    coco.mkdir()
    (checkout / "data_coco").rename(coco / "coco")
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    assert executed(checkout, name, FOR_COCO[name], directory=tmp_path)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_committed_notebook_was_run_from_top_to_bottom_without_an_error(name):
    path = ROOT / f"{name}.ipynb"
    assert os.path.getsize(path) < 1.5e6
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    assert "/tmp" not in path.read_text()


@pytest.mark.parametrize("data", ["sample", "photographs"])
def test_the_committed_results_are_those_on_record(data):
    signature = json.loads((ROOT / "records" / data / "val.json").read_text())["signature"]
    assert signature in (ROOT / "results.ipynb").read_text(), "`python -m tests.test_notebooks` runs it anew"


def test_the_snippets_are_the_eight_examples_each_with_one_sentence():
    cells = nbformat.read(ROOT / "code_snippets.ipynb", as_version=4).cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"][1:]
    assert [text.splitlines()[0] for text in texts] == [f"## Example {number}" for number in range(1, 9)]
    for text in texts:
        sentence = " ".join(text.splitlines()[1:]).strip()
        assert sentence.endswith(".")
        assert ". " not in sentence


def write() -> None:
    """Runs the notebooks of the checkout anew, in place."""
    for name in NOTEBOOKS:
        notebook = nbformat.read(ROOT / f"{name}.ipynb", as_version=4)
        run(notebook, ROOT, timeout=1800)
        nbformat.write(notebook, ROOT / f"{name}.ipynb")


if __name__ == "__main__":
    write()
