"""The notebooks as a newcomer runs them: unchanged, from top to bottom, in the folder where they lie."""

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

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
    for folder in PACKAGES:
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


def executed(root: Path, name: str, change: tuple[str, str] | None = None) -> str:
    """Runs a notebook of the checkout; returns all that it printed.  An error in a cell is raised."""
    notebook = nbformat.read(root / f"{name}.ipynb", as_version=4)
    if change:
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        assert first.source.count(change[0]) == 1
        first.source = first.source.replace(*change)
    NotebookClient(notebook, timeout=100, kernel_name="python3").execute(cwd=str(root))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(
        output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs
    )


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_top_to_bottom_on_the_sample(name, checkout):
    printed = executed(checkout, name)
    expected = {
        "code_snippets": ["30 pairs; images (4, 3, 64, 64)", "4 images;", "9 images; ", "output (2, 5, "],
        "results": ["BLEU-4 "],
    }
    assert all(text in printed for text in expected[name]), printed


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_one_line_turns_a_notebook_to_coco(name, checkout):
    for folder in ("data", "checkpoints"):
        (checkout / folder / "sample").rename(checkout / f"{folder}_coco")
        shutil.rmtree(checkout / folder)
        (checkout / f"{folder}_coco").rename(checkout / folder)
    coco = checkout / "data"
    coco.rename(checkout / "data_coco")
    coco.mkdir()
    (checkout / "data_coco").rename(coco / "coco")
    assert executed(checkout, name, FOR_COCO[name])


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


def test_the_snippets_are_the_eight_examples_each_with_one_sentence():
    cells = nbformat.read(ROOT / "code_snippets.ipynb", as_version=4).cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"][1:]
    assert [text.splitlines()[0] for text in texts] == [f"## Example {number}" for number in range(1, 9)]
    for text in texts:
        sentence = " ".join(text.splitlines()[1:]).strip()
        assert sentence.endswith(".")
        assert ". " not in sentence
