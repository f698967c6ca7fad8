"""What pyproject.toml leaves open for `pip install -e .[dev]` and `uv sync`: modules and required versions.

The requirements files are the one source of versions: requirements.txt is what an install needs, and each
requirements-NAME.txt but that of the oldest torch is the extra NAME.  setuptools cannot read them by itself,
for they begin with `-r`.
"""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent


def requirements(path: Path) -> list[str]:
    """The requirements in a file of pip's: no comments, and no options such as `-r requirements.txt`."""
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("-")]


extras = {path.stem.partition("-")[2]: path for path in sorted(ROOT.glob("requirements-*.txt"))}
setup(
    py_modules=sorted(path.stem for path in ROOT.glob("*.py") if path.name != "setup.py"),
    install_requires=requirements(ROOT / "requirements.txt"),
    extras_require={name: requirements(path) for name, path in extras.items() if name != "oldest"},
)
