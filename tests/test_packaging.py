"""An editable install: it brings what the requirements files say, and every module, into any directory."""

import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from support import __version__
from tests.training_cases import ROOT

MODULES = sorted({path.stem for path in ROOT.glob("*.py")} - {"setup"})
PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what an install reads: the backend writes beside it."""
    folder = tmp_path_factory.mktemp("checkout")
    for pattern in ("*.py", "*.toml", "*.txt", "README.md", "LICENSE"):
        for path in ROOT.glob(pattern):
            shutil.copy(path, folder)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def site(checkout, tmp_path_factory) -> Path:
    """The packages' folder of an environment into which pip has installed the copy, editable."""
    pytest.importorskip("setuptools", "77.0.3", reason="older ones cannot read pyproject.toml's license")
    folder = tmp_path_factory.mktemp("site")
    code = f"from setuptools import build_meta; build_meta.build_editable({str(folder)!r})"
    run = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def metadata(site) -> Message:
    (file,) = site.glob("*.dist-info/METADATA")
    return Parser().parsestr(file.read_text())


def pins(name: str) -> set[str]:
    """What pip reads in a requirements file, which must hold nothing but comments, `-r` and NAME==VERSION."""
    lines = [re.sub(r"(^| +)#.*", "", line) for line in (ROOT / name).read_text().splitlines()]
    found = {line for line in lines if re.fullmatch(r"[\w.\[\],-]+==[\w.]+", line)}
    assert set(lines) - found <= {"", "-r requirements.txt"}
    return found


def test_an_install_brings_the_versions_of_the_requirements_files(metadata):
    wanted = {(None, pin) for pin in pins("requirements.txt")}
    for path in ROOT.glob("requirements-*.txt"):
        extra = path.stem.removeprefix("requirements-")
        wanted |= {(extra, pin) for pin in pins(path.name) if extra != "oldest"}
    found = set()
    for requirement in map(Requirement, metadata.get_all("Requires-Dist")):
        extra = re.fullmatch('extra == "(.+)"', str(requirement.marker or ""))
        requirement.marker = None
        found.add((extra and extra[1], str(requirement)))
    assert found == wanted
    assert {"dev", "bench"} <= set(metadata.get_all("Provides-Extra"))


def test_an_install_finds_every_module_from_any_directory(site, checkout, tmp_path):
    code = (
        f"import site, importlib.util; site.addsitedir({str(site)!r})\n"
        f"for name in {[*MODULES, *PACKAGES]}: print(importlib.util.find_spec(name).origin)\n"
        "import paths; print(paths.ROOT.resolve())"
    )
    # -S: where the project is installed itself, its own modules would come first
    run = subprocess.run([sys.executable, "-IS", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    files = [*(f"{name}.py" for name in MODULES), *(f"{name}/__init__.py" for name in PACKAGES)]
    assert run.stdout.splitlines() == [str(checkout.resolve() / file) for file in [*files, "."]]


def test_the_version_and_the_license_are_the_same_everywhere(metadata):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == metadata["Version"] == __version__
    assert citation["license"] == metadata["License-Expression"] == "MIT"
