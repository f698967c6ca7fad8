"""Tests that need a GPU: marked `cuda`, and skipped where there is none.

python -m pytest -m cuda tests/cuda           they want neither data nor a network, and no package for tests
python -m pytest -m cuda tests/cuda --toy     those that can, on the CPU: to see whether they run
"""

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault(
    "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
)  # or cuBLAS is not deterministic where asked to be


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--toy", action="store_true", help="run tests of tests/cuda on the CPU where they can")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cuda)


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The GPU; the CPU if that was asked for and the test does not say `gpu_only`."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if not request.config.getoption("--toy", default=False):
        pytest.skip("it needs a GPU, and there is none here")
    if request.node.get_closest_marker("gpu_only"):
        pytest.skip("it needs a GPU, also as a toy")
    return torch.device("cpu")


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 products without TF32, for what is compared with them."""
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr("support.devices.set_fast_float32", lambda: None)
