"""Damaged and hostile inputs through the functions that read them (10,000 of each kind in faults/)."""

from pathlib import Path

import pytest

from tests.mutation_cases import KINDS, no_code_runs_in, try_all


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_inputs_are_read_or_refused_in_one_line(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture
) -> None:
    """No other exception, no program started, nothing written elsewhere, each in less than 2 s."""

    def read_them() -> None:
        outcome = try_all(kind, 150, tmp_path)
        assert outcome.refused > 20, outcome

    assert no_code_runs_in(read_them) == 0
    assert "panicked" not in capfd.readouterr().err, "the Rust library spoke before our one line"
