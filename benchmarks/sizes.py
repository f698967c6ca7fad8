"""The models and the batches that every contestant gets: those of the faithful YAML files, on random data.

Shapes: B images, C captions of each, T tokens, P image side.
"""

from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.measuring import Setting
from coco_samples import CaptionBatch, ImageBatch
from paths import paths
from support.configuration import load_config
from train_captioner import CaptionerConfig
from train_encoder import MaeConfig
from transformer_components.sublayers import StackConfig

TOKENS = 14  # of a COCO caption on average, <SOS> and <EOS> included
PAD_ID, START_ID, END_ID = 0, 1, 2
FIRST_WORD = 4  # what lies below is special

TINY = StackConfig(num_layers=2, num_heads=2, hidden_size=32, key_size=16, value_size=16, feedforward_size=64)


def mae_config(setting: Setting, file: Path | None = None) -> MaeConfig:
    """ViT-B/16 at 224 pixels with a four-layer decoder, or a YAML file's; a toy if only to see it run."""
    config = replace(load_config(file or paths["mae_config"], MaeConfig), precision=_precision(setting))
    if setting.quick:
        config = replace(config, image_size=32, patch_size=8, encoder=TINY, decoder=TINY)
    return config


def captioner_config(setting: Setting, file: Path | None = None) -> CaptionerConfig:
    """A six-layer decoder over 5000 pieces, or a YAML file's; a toy if only to see it run."""
    file = file or paths["captioner_config"]
    config = replace(load_config(file, CaptionerConfig), precision=_precision(setting))
    if setting.quick:
        config = replace(config, vocabulary_size=50, decoder=replace(TINY, dropout=0.2))
    return config


def _precision(setting: Setting) -> str:
    return str(setting.precision).removeprefix("torch.")


def random_images(setting: Setting, count: int) -> torch.Tensor:
    """Random pixels (B, 3, P, P) uint8 on the device."""
    side = mae_config(setting).image_size
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8).to(setting.device)


def image_batch(setting: Setting, count: int) -> ImageBatch:
    """What the loader of the first stage gives."""
    numbers = torch.arange(count, device=setting.device)
    return ImageBatch(random_images(setting, count), numbers, numbers)


def caption_batch(setting: Setting, count: int, per_image: int, tokens: int = TOKENS) -> CaptionBatch:
    """What the loader of the second stage gives: B images, and their captions (B·C, T) side by side."""
    vocabulary = captioner_config(setting).vocabulary_size
    numbers = torch.arange(count, device=setting.device)
    captions = torch.randint(FIRST_WORD, vocabulary, (count * per_image, tokens)).to(setting.device)
    return CaptionBatch(random_images(setting, count), captions, numbers, numbers)
