"""The plan: which folder may import which, no circles, and no script loads what it does not use."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import scoring.metrics
import support.metrics
from tests.training_cases import PACKAGES, ROOT

MAY_IMPORT = {  # besides itself; nothing in a folder imports a file of the top level
    "support": set(),
    "transformer_components": set(),
    "sample_data": set(),
    "images": {"support"},
    "coco": {"images", "support"},
    "own_data": {"coco", "images", "support"},
    "training": {"coco", "support"},
    "scoring": {"training", "coco", "support", "transformer_components"},
}
DOOR = "support.metrics"  # for other programs: it hands out names of scoring/, and nothing here enters by it
FILES = [file for folder in (".", *PACKAGES) for file in (ROOT / folder).glob("*.py")]
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES
}


def imported(file: Path) -> set[str]:
    """The modules of ours that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names & MODULES.keys()


IMPORTS = {module: imported(file) for module, file in MODULES.items() if module != DOOR}


def test_the_plan_names_every_folder():
    assert sorted(MAY_IMPORT) == PACKAGES


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_lies_below_it(folder):
    allowed = MAY_IMPORT[folder] | {folder}
    of_folder = {module: names for module, names in IMPORTS.items() if module.split(".")[0] == folder}
    assert len(of_folder) > 3
    upward = [(m, n) for m, names in of_folder.items() for n in names if n.split(".")[0] not in allowed]
    assert not upward


def test_no_modules_import_each_other_in_a_circle_and_none_the_door():
    assert DOOR not in list(TopologicalSorter(IMPORTS).static_order())


def test_other_programs_find_the_metrics_behind_the_door():
    assert support.metrics.score is scoring.metrics.score
    assert support.metrics.ptb_tokenize is scoring.metrics.ptb_tokenize


@pytest.mark.parametrize(
    ("script", "unused"),
    [
        ("train_encoder", ("nltk", "scoring", "captioner", "evaluation_report")),
        (
            "train_encoder",
            ("tokenizers", "transformer_components.beam_search", "image_cache", "support.parallel"),
        ),
        ("caption", ("nltk", "coco_loader", "scoring.report", "scoring.metrics", "support.parallel")),
    ],
)
def test_a_script_loads_nothing_that_it_does_not_use(script, unused):
    code = f"import sys, {script}; print(*(name for name in {unused} if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
