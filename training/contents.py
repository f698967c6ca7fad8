"""What must stand in a checkpoint before a model is built from it: the parts, their types, sizes that fit.

Whoever makes a checkpoint can also make its digest.  So nothing is allocated by what its configuration says
until its own weights, which cannot be larger than the file, have just these shapes.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from support.errors import UsageError

PARTS = {"config": dict, "model": dict, "optimizer": dict, "scaler": dict, "progress": dict, "samples": int}
MORE_PARTS = {"encoder": {}, "captioner": {"encoder": dict, "tokenizer": str, "from_scratch": bool}}
FORMATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # of weights
COUNTS = ("epoch", "step", "updates", "bad_steps", "skipped", "unreadable")  # of the progress
LARGEST_COUNT = 1 << 53  # beyond it a float does not count exactly
REBUILDING = (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError)


def require_parts(path: Path, state: Mapping[str, Any]) -> None:
    """Raises UsageError, naming file and part, unless all that a training script saves is there."""
    for part, kind in (PARTS | MORE_PARTS[state["stage"]]).items():
        if part not in state:
            raise _unsound(path, f"it has no {part}")
        if not isinstance(state[part], kind) or (kind is int and isinstance(state[part], bool)):
            raise _unsound(
                path, f"its {part} should be of type {kind.__name__}, not {type(state[part]).__name__}"
            )
    for name, weight in state["model"].items():
        if not isinstance(name, str) or not isinstance(weight, torch.Tensor):
            raise _unsound(path, f"its model holds {name!r:.40}, which is no weight")
        if weight.dtype not in FORMATS:
            raise _unsound(path, f"its weight {name!r:.80} is of {weight.dtype}, no ordinary floating point")
    split = state.get("split_file")
    kinds = {"name": str, "sha256": str, "train": torch.Tensor}
    if split is not None and not (
        isinstance(split, dict) and all(isinstance(split.get(key), kind) for key, kind in kinds.items())
    ):
        raise _unsound(path, f"its split_file should hold {', '.join(kinds)}")
    for part, word in (("root", "words"), ("images", "words"), ("begun_with", "name")):
        kept = state.get(part, {word: "", "sha256": ""})
        if not (isinstance(kept, dict) and all(isinstance(kept.get(k), str) for k in (word, "sha256"))):
            raise _unsound(path, f"its {part} should hold {word}, sha256")
    size = state.get("resized_to")
    if size is not None and not (type(size) is int and 0 < size <= LARGEST_COUNT):
        raise _unsound(path, "its resized_to should be a number of pixels, or none")
    _require_progress(path, state["progress"])


def require_weights(
    path: Path, weights: Mapping[str, torch.Tensor], num_layers: int, build: Callable[[], nn.Module]
) -> None:
    """Raises UsageError unless the weights are those of the model that `build` makes.

    Args:
        path: the checkpoint, for the message.
        weights: what it holds.
        num_layers: of the model; building takes time with each, even where it takes no memory.
        build: makes the model, here without memory for its weights.
    """
    if num_layers > len(weights):
        raise _unsound(path, f"its configuration says {num_layers} layers, and it has {len(weights)} weights")
    try:
        with torch.device("meta"):
            model = build()
        # A plain copy: torch notes `assign` in the metadata of what it is given, and would do so ever after.
        model.load_state_dict(dict(weights), assign=True)
    except (*REBUILDING, RuntimeError) as error:
        raise _unsound(path, f"its weights do not fit its configuration: {_brief(error)}") from error


@contextmanager
def restoring(path: Path, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Names the checkpoint in what goes wrong while a run is taken up from it.

    At the end the optimizer must have moments of its parameters' shapes.
    """
    try:
        yield
    except (UsageError, *REBUILDING) as error:
        raise _unsound(path, _brief(error)) from error
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moments = optimizer.state.get(parameter, {})
            shape = parameter.shape
            shapes = {"step": (), "exp_avg": shape, "exp_avg_sq": shape}  # AdamW's
            if "momentum" in group:  # Muon's
                shapes = {"momentum_buffer": shape}
            if not isinstance(moments, dict) or {
                name: getattr(moment, "shape", None) for name, moment in moments.items()
            } not in ({}, shapes):
                raise _unsound(path, "its optimizer's moments do not fit its weights")


def _require_progress(path: Path, progress: Mapping[Any, Any]) -> None:
    for key in COUNTS:
        value = progress.get(key)
        if type(value) is not int or not 0 <= value <= LARGEST_COUNT:
            raise _unsound(path, f"its progress has no whole number for {key}")
    history = progress.get("history")
    if not isinstance(history, list):
        raise _unsound(path, "its progress has no history")
    if any(type(value) not in (int, float, bool) for key, value in progress.items() if key != "history"):
        raise _unsound(path, "its progress holds something else than numbers")
    for entry in history:
        figures = list(entry.values()) if isinstance(entry, dict) else ["none"]
        if not all(type(figure) in (int, float, type(None)) for figure in figures) or "epoch" not in entry:
            raise _unsound(path, "its history holds something else than figures of epochs")


def _unsound(path: Path, reason: str) -> UsageError:
    return UsageError(f"{path}: {reason}; take another checkpoint")


def _brief(error: Exception) -> str:
    text = f"{error} is missing" if isinstance(error, KeyError) else str(error) or type(error).__name__
    return re.sub(r"\s+", " ", text)[:200]
