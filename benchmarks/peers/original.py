"""The original (michaelkosmider/image_captioning), run from a checkout of its own files.

    run.py --original DIR

Its models are imported from DIR, its transformer from the package `transformer_components_michaelkosmider`,
or from that package's wheel, if one lies in DIR.
Its training steps stand in the bodies of scripts that start at once, so here they are put together anew from
its parts: the same operations in the same order.  What differs from its scripts:

- The precision is that of the table, and on a CPU float32 besides.  Its scripts ask for autocast without
  naming a type, which on a CPU is bfloat16, also where that is many times slower.
- Images lie ready on the device; only `loader` reads files.
- It generates in evaluation mode and without gradients; its own call does neither, and then keeps a graph of
  60 steps.

Nothing else is repaired.  Its masks are drawn with replacement, so that 22 % of the "masked" patches can be
seen; that is wrong but costs the same, and so it stays.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks import sizes
from benchmarks.measuring import Contestant, Setting
from coco_samples import CaptionBatch, ImageBatch
from image_transforms import normalize
from support import devices
from train_captioner import CaptionerConfig
from train_encoder import MaeConfig
from transformer_components.sublayers import StackConfig

NAME = "original"


def load(directory: Path, name: str) -> ModuleType:
    """One of the original's modules, and with it those that it imports, which have the names of ours."""
    names = {path.stem for path in directory.glob("*.py")}
    ours = {other: sys.modules.pop(other) for other in names & sys.modules.keys()}
    # Where nothing can be installed, its package is taken from a wheel beside it.
    sys.path += [wheel for wheel in map(str, directory.glob("*.whl")) if wheel not in sys.path]
    sys.path.insert(0, str(directory))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(directory))
        for other in names:
            sys.modules.pop(other, None)
        sys.modules.update(ours)


def in_each_precision(setting: Setting, make: Callable[[Setting], Contestant]) -> list[Contestant]:
    """What `make` gives for the table's precision and, on a CPU, for float32 if that is another."""
    found = [make(setting)]
    if not setting.on_gpu and setting.precision is not torch.float32:
        exact = make(replace(setting, precision=torch.float32))
        found.append(replace(exact, name=f"{exact.name}, float32"))
    return found


def mae_step(setting: Setting, config: MaeConfig, batch: ImageBatch) -> Contestant:
    """Its first stage's step: masks, unfolded patches, the model, AdamW, the loss read at every step."""

    def build() -> Callable[[], object]:
        models = load(setting.original, "image_captioner")
        draw_masks = load(setting.original, "train_encoder").get_patch_indices
        patches = (config.image_size // config.patch_size) ** 2
        model = models.ImageAutoEncoder(
            models.ImageEncoder(config.image_size, config.patch_size, _stack(config.encoder)),
            models.ImageDecoder(config.patch_size, patches, _stack(config.decoder)),
        ).to(setting.device)
        images = normalize(batch.images)
        unfold = nn.Unfold(kernel_size=config.patch_size, stride=config.patch_size)

        def loss() -> torch.Tensor:
            masked, kept = draw_masks(len(images), patches, config.masking_ratio, setting.device)
            truth = unfold(images).transpose(1, 2)  # (B, N, P·P·3)
            where = masked[:, :, None].expand(-1, -1, truth.shape[2])
            return nn.functional.mse_loss(model(images, kept).gather(1, where), truth.gather(1, where))

        return _step(setting, model, loss, config.weight_decay)

    return Contestant(NAME, build)


def captioner_step(
    setting: Setting, config: CaptionerConfig, mae: MaeConfig, batch: CaptionBatch, all_learn: bool
) -> Contestant:
    """Its second stage's step, on (image, caption) pairs: as many images as captions."""

    def build() -> Callable[[], object]:
        model = _captioner(setting, config, mae)
        from transformer_components_michaelkosmider import get_causal_mask  # found since `load`

        if not all_learn:
            model.encoder.requires_grad_(False)
        images = normalize(batch.images)
        inputs, labels = batch.tokens[:, :-1], batch.tokens[:, 1:]
        criterion = nn.CrossEntropyLoss(ignore_index=sizes.PAD_ID, label_smoothing=config.label_smoothing)

        def loss() -> torch.Tensor:
            mask = get_causal_mask(inputs.shape[1], device=setting.device)
            logits = model(
                inputs, images, tgt_mask=mask, tgt_key_padding_mask=inputs == sizes.PAD_ID,
                src_key_padding_mask=None,
            )  # fmt: skip
            (labels != sizes.PAD_ID).sum().item()  # the weight of its running mean
            return criterion(logits.flatten(0, 1), labels.flatten())

        model.train()
        return _step(setting, model, loss, config.weight_decay)

    return Contestant(NAME, build, "its batch holds each image once for every caption")


def beam_search(
    setting: Setting, config: CaptionerConfig, mae: MaeConfig, images: torch.Tensor, length: int, beams: int
) -> Contestant:
    """Its `generate`, with an end token that no beam chooses."""

    def build() -> Callable[[], object]:
        model = _captioner(setting, config, mae).eval()
        with torch.no_grad():
            model.decoder.project.bias[sizes.END_ID] = -1e9

        @torch.no_grad()
        def run() -> torch.Tensor:
            with devices.autocast(setting.device, setting.precision):
                found = model.generate(
                    normalize(images), None, num_beams=beams, max_beam_len=length + 1,
                    length_alpha=config.length_alpha, SOS_IDX=sizes.START_ID, PAD_IDX=sizes.PAD_ID,
                    EOS_IDX=sizes.END_ID,
                )  # fmt: skip
            assert found.shape[1] == length + 1  # the start token counts there
            return found.tolist()

        return run

    return Contestant(NAME, build, "in evaluation mode and without gradients, which its own call lacks")


def loader(setting: Setting, paths: Mapping[str, Path], batch_size: int) -> Contestant:
    """An epoch of its first stage's loader, by its own data set and transform."""

    def build() -> Callable[[], object]:
        transform = load(setting.original, "image_transforms").encoder_image_transform_index["train"]
        data_set = load(setting.original, "coco_loader").ImageOnlyDataset
        pictures = data_set(paths["train_images"], paths["train_image_ids"], transform)
        batches = DataLoader(pictures, batch_size, shuffle=True)
        return lambda: [None for _ in batches]

    note = (
        "COCO's own files, by Pillow, bicubic; it also normalizes its batches, which ours does on the device"
    )
    return Contestant(NAME, build, note)


def _captioner(setting: Setting, config: CaptionerConfig, mae: MaeConfig) -> nn.Module:
    models = load(setting.original, "image_captioner")
    from transformer_components_michaelkosmider import TransformerEncoderDecoder  # found since `load`

    return TransformerEncoderDecoder(
        models.ImageEncoder(mae.image_size, mae.patch_size, _stack(mae.encoder)),
        models.CaptionDecoder(config.vocabulary_size, config.context_length, _stack(config.decoder)),
    ).to(setting.device)


def _stack(config: StackConfig) -> dict[str, float]:
    """The sizes of a stack, by the names that the original gives them."""
    keys = ("num_heads", "hidden_size", "key_size", "value_size", "feedforward_size", "dropout")
    return {"stack_size": config.num_layers, **{key: getattr(config, key) for key in keys}}


def _step(
    setting: Setting, model: nn.Module, loss_fn: Callable[[], torch.Tensor], weight_decay: float
) -> Callable[[], object]:
    """A step with AdamW as its scripts make it, scaled where float16 needs that."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=weight_decay)
    scaler = torch.amp.GradScaler(setting.device.type, enabled=setting.precision is torch.float16)

    def step() -> float:
        optimizer.zero_grad()
        with devices.autocast(setting.device, setting.precision):
            loss = loss_fn()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    return step
