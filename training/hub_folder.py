"""A captioner as a folder in the hub's layout, readable without torch: what export.py writes.

    model.safetensors        the weights by name; of two tied matrices, the embedding alone
    config.json              all of a checkpoint that is neither weights nor tokenizer
    tokenizer.json           for `tokenizers`
    tokenizer_config.json    which makes it transformers' PreTrainedTokenizerFast

`load` gives what the checkpoint of a finished training holds, only without the optimizer's state, so it is
checked as that is.  The safetensors format can neither execute anything nor claim more than the file holds.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch

from support.errors import UsageError
from support.files import replacing, write_json
from training.contents import require_parts

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
LARGEST_TEXT = 1 << 26  # bytes of a JSON file
EMBEDDING, PROJECTION = "decoder.token_embedding.weight", "decoder.to_vocabulary.weight"  # may be tied


def is_hub_folder(path: Path) -> bool:
    """Whether this looks like a folder that `save` wrote."""
    return os.path.isfile(path / CONFIG)


def require_safetensors() -> Any:
    """The module, an extra.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import safetensors.torch
    except ImportError:
        raise UsageError(
            "this needs the package safetensors: pip install -r requirements-export.txt"
        ) from None
    return safetensors


def save_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Writes weights by name; "format" is what the hub's readers look for."""
    data = require_safetensors().torch.save(weights, {"format": "pt"})
    with replacing(path) as temporary:  # `save_file` would let nobody else read it
        temporary.write_bytes(data)


def save(folder: Path, state: dict[str, Any]) -> None:
    """Writes a captioner's state, as `checkpoints.load` gives it.

    Raises:
        UsageError: safetensors is not installed.
    """
    from coco.tokenizer import EOS, PAD, SOS, UNK  # here, for pre-training loads no tokenizer

    weights = {name: weight.contiguous() for name, weight in state["model"].items()}
    if state["config"]["tie_embeddings"]:
        del weights[PROJECTION]
    save_weights(folder / WEIGHTS, weights)
    beside = ("model", "tokenizer", "optimizer", "scaler", "last_weights", "averaged_steps")
    config = {part: value for part, value in state.items() if part not in beside}
    if config.get("split_file"):
        config["split_file"] = config["split_file"] | {"train": config["split_file"]["train"].tolist()}
    write_json(folder / CONFIG, config)
    with replacing(folder / TOKENIZER) as temporary:
        temporary.write_text(state["tokenizer"], encoding="utf-8")
    special = {"pad_token": PAD, "bos_token": SOS, "eos_token": EOS, "unk_token": UNK}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": state["config"]["context_length"],
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings | special)


def load(folder: Path) -> dict[str, Any]:
    """Reads what `save` wrote; it need not be trusted.

    Returns:
        The state, whose parts are there and of the right types.

    Raises:
        UsageError: a file is missing, damaged, too large, or not of a captioner.
    """
    safetensors = require_safetensors()
    try:
        state = json.loads(_text(folder / CONFIG))
        if not isinstance(state, dict) or state.get("stage") != "captioner":
            raise ValueError(f"{CONFIG} is not a captioner's")
        state |= {"optimizer": {}, "scaler": {}, "tokenizer": _text(folder / TOKENIZER)}
        state["model"] = safetensors.torch.load_file(folder / WEIGHTS)
        if state.get("split_file"):
            train = torch.tensor(state["split_file"]["train"], dtype=torch.int64)
            state["split_file"] = {**state["split_file"], "train": train}
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot be read: {error.filename or WEIGHTS}: {error.strerror or error}"
        ) from error
    except (
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        RecursionError,
        safetensors.SafetensorError,
    ) as error:
        reason = " ".join(str(error).split())[:120]
        raise UsageError(f"{folder}: damaged, or no exported captioner: {reason}; export it anew") from error
    require_parts(folder, state)
    if state["config"].get("tie_embeddings") is True and EMBEDDING in state["model"]:
        state["model"].setdefault(PROJECTION, state["model"][EMBEDDING])
    return state


def _text(path: Path) -> str:
    size = path.stat().st_size
    if size > LARGEST_TEXT:
        raise ValueError(f"{path.name} has {size:,} bytes, more than {LARGEST_TEXT:,}")
    return path.read_text(encoding="utf-8")
