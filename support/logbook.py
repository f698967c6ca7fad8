"""What a run tells: one line an epoch for the reader, one JSON line an epoch for programs (`log.jsonl`)."""

import json
import math
from pathlib import Path
from typing import Any

from support.files import replacing


def write_log(path: Path, history: list[dict[str, Any]]) -> None:
    """Writes the history, one JSON object a line.

    The whole file is written anew and renamed into place: after a resume from an earlier checkpoint it holds
    that run's epochs and no others.
    """
    with replacing(path) as temporary:
        temporary.write_text(
            "".join(json.dumps(_finite(entry)) + "\n" for entry in history), encoding="utf-8"
        )


def _finite(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry with null for NaN and infinity, which JSON does not have."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in entry.items()
    }


def epoch_line(entry: dict[str, Any], total_epochs: int, unit: str) -> str:
    """One epoch: `epoch  3/12 | train 1.2345 | val 1.3456 | BLEU-4 61.20 | ... | 245 pairs/s, 80 s`.

    Args:
        entry: the epoch's, as the log has it.
        total_epochs: of the schedule.
        unit: what a sample is, "images" or "pairs" of an image and a caption.
    """
    parts = [f"epoch {entry['epoch']:3d}/{total_epochs}"]
    parts.append(f"train {entry['train_loss']:.4f}")
    parts.append(f"val {entry['val_loss']:.4f}")
    if entry.get("bleu4") is not None:
        parts.append(f"BLEU-4 {100 * entry['bleu4']:.2f}")
    parts.append(f"rate {entry['learning_rate']:.1e}")
    parts.append(f"{entry['samples_per_second']:.0f} {unit}/s, {entry['seconds']:.0f} s")
    if entry["skipped_steps"]:
        parts.append(f"{entry['skipped_steps']} steps skipped")
    if entry["unreadable_samples"]:
        parts.append(f"{entry['unreadable_samples']} samples unreadable")
    return " | ".join(parts)
