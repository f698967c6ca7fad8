"""A captioner of random weights and tiny sizes, with no training and no data set."""

from pathlib import Path
from typing import Any

import torch

from captioner import Captioner, captioner_from_state
from coco.tokenizer import train_tokenizer
from image_captioner import AutoEncoderShape, CaptionerShape, build_captioner
from tests.training_cases import STACK
from training import checkpoints
from transformer_components.encoder_decoder import TransformerEncoderDecoder
from transformer_components.sublayers import StackConfig

# "jogger" and "rower" are too rare to become pieces of their own.
TEXTS = ["a dog runs on a road.", "a cat sits on a red mat, near a dog."] * 8 + ["a jogger", "a rower"]


def random_model(
    vocabulary_size: int,
    context_length: int,
    image_size: int = 32,
    tie_embeddings: bool = False,
    **changes: Any,
) -> TransformerEncoderDecoder:
    """A captioner's model alone; patches of 8 × 8 pixels, two layers in either stack, with `changes`."""
    stack = StackConfig(**STACK | changes)
    encoder = AutoEncoderShape(image_size=image_size, patch_size=8, encoder=stack, decoder=stack)
    shape = CaptionerShape(
        vocabulary_size=vocabulary_size,
        context_length=context_length,
        decoder=stack,
        tie_embeddings=tie_embeddings,
    )
    return build_captioner(encoder, shape)


def random_captioner(num_beams: int = 2) -> Captioner:
    """Pictures of 32 × 32 pixels, 4 × 4 patches; the same weights on every call."""
    return captioner_from_state(random_state(num_beams), torch.device("cpu"))


def save_random_captioner(path: Path, **options: Any) -> None:
    """The same as a checkpoint, as if one epoch had been trained; options are those of `random_state`."""
    counts = ("step", "updates", "bad_steps", "skipped", "unreadable")
    rest = {
        "schema": checkpoints.SCHEMA, "stage": "captioner", "from_scratch": True, "optimizer": {},
        "scaler": {}, "samples": 6, "progress": {"epoch": 1, "history": [], **dict.fromkeys(counts, 0)},
    }  # fmt: skip
    checkpoints.save(path, random_state(**options) | rest)


def save_shipped(root: Path, saved_in: torch.dtype = torch.float16, **changes: Any) -> Path:
    """The same in half precision where the weights that ship lie below `root`, with `changes` of config."""
    path = root / "weights" / "captioner.pt"
    path.parent.mkdir(exist_ok=True)
    save_random_captioner(path)
    state = checkpoints.load(path, "captioner")
    model = {name: weight.to(saved_in) for name, weight in state["model"].items()}
    checkpoints.save(path, {**state, "model": model, "config": state["config"] | changes})
    return path


def random_state(num_beams: int = 2, tie_embeddings: bool = False, **changes: Any) -> dict[str, Any]:
    """What of a captioner's checkpoint makes the captioner; `changes` are those of its stacks."""
    stack = STACK | changes
    tokenizer = train_tokenizer(TEXTS, 320)
    contents = {
        "config": {
            "vocabulary_size": 5000, "decoder": stack, "context_length": 24, "tie_embeddings": tie_embeddings,
            "num_beams": num_beams, "length_alpha": 0.8, "consensus_samples": 0, "precision": "float32",
        },
        "encoder": {"image_size": 32, "patch_size": 8, "encoder": stack, "decoder": stack},
        "tokenizer": tokenizer.to_str(),
    }  # fmt: skip
    torch.manual_seed(1)
    model = random_model(tokenizer.get_vocab_size(), 24, tie_embeddings=tie_embeddings, **changes)
    return contents | {"model": model.state_dict()}
