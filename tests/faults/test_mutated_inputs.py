"""10,000 mutated inputs of each kind, fixed seed, through the functions with which the product reads them."""

from pathlib import Path

import pytest

from tests.mutation_cases import KINDS, no_code_runs_in, try_all

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("kind", KINDS)
def test_10_000_mutated_inputs(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture) -> None:
    """0 tracebacks, 0 programs started, 0 writes outside, each in less than 2 s."""

    def read_them() -> None:
        outcome = try_all(kind, 10_000, tmp_path, seed=1)
        print(f"{kind}: {outcome.accepted} read, {outcome.refused} refused, slowest {outcome.slowest:.2f} s")
        assert outcome.refused > 1000

    assert no_code_runs_in(read_them) == 0
    assert "panicked" not in capfd.readouterr().err, "the Rust library spoke before our one line"
