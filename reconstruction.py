"""What an autoencoder learned, to be looked at: images with patches hidden, and what it puts there.

TensorBoard, the report and the notebooks draw from here.

Shapes: B batch, N all patches, M masked patches, P patch side, H and W the model's image size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contrastive import ContrastiveAutoEncoder
from image_captioner import (
    AutoEncoderShape,
    ImageAutoEncoder,
    count_masked,
    normalize_patches,
    patchify,
    random_masking,
    unnormalize_patches,
    unpatchify,
)
from image_transforms import EvaluationTransform, denormalize, normalize
from support.configuration import at_least, bounded, config_part
from training.checkpoints import existing, load_named
from training.contents import require_weights
from transformer_components.sublayers import evaluating


class Reconstruction(NamedTuple):
    """Four views of the same images, each (B, 3, H, W) uint8, and which patches were hidden."""

    original: Tensor
    masked: Tensor  # the hidden patches grey, as ImageNet's mean
    filled: Tensor  # the hidden patches as predicted, the others as they are
    full: Tensor  # every patch as predicted, though only hidden ones were ever trained for
    hidden: Tensor  # (B, M) int64, positions


@dataclass
class Reconstructor:
    """An autoencoder with what it takes to show what it learned."""

    model: ImageAutoEncoder
    transform: EvaluationTransform
    masking_ratio: float
    normalize_targets: bool
    device: torch.device

    @torch.inference_mode()
    def reconstruct(self, images: Tensor, seeds: Sequence[int] | None = None) -> Reconstruction:
        """Hides patches of transformed images (B, 3, H, W) uint8, and predicts them.

        Where the model predicts normalized patches, the true mean and deviation of each are put back: they
        are no part of what it learned, and without them a reconstruction looks like noise.

        Args:
            images: the pictures.
            seeds: of each image's mask; by default 0, 1, 2, ...
        """
        size = self.model.patch_size
        seeds = torch.tensor(range(len(images)) if seeds is None else seeds)
        pixels = normalize(images.to(self.device))  # (B, 3, H, W)
        patches = patchify(pixels, size)  # (B, N, P·P·3)
        kept, hidden = random_masking(seeds, patches.shape[1], self.masking_ratio)
        kept, hidden = kept.to(self.device), hidden.to(self.device)
        with evaluating(self.model):
            predicted = self.model(pixels, kept)  # (B, N, P·P·3)
        if self.normalize_targets:
            _, mean, deviation = normalize_patches(patches)
            predicted = unnormalize_patches(predicted, mean, deviation)
        is_hidden = torch.zeros(patches.shape[:2], dtype=torch.bool, device=self.device)
        is_hidden = is_hidden.scatter(1, hidden, True)[:, :, None]  # (B, N, 1)
        views = (
            patches,
            patches.masked_fill(is_hidden, 0),
            patches.where(~is_hidden, predicted),
            predicted,
        )
        return Reconstruction(*(denormalize(unpatchify(view, size)).cpu() for view in views), hidden.cpu())


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig(AutoEncoderShape):
    """The keys of `mae_config.yaml` with which a trained model reconstructs: its shape and its task."""

    masking_ratio: float = bounded(above=0, below=1)  # of the patches, hidden from the encoder
    normalize_targets: bool  # each target patch by its own mean and variance (He et al. 2021, section 4.1)
    contrastive_weight: float = at_least(0)  # of a second task's loss, see contrastive.py; 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        count_masked(self.num_patches, self.masking_ratio)


def new_auto_encoder(config: ReconstructionConfig) -> ImageAutoEncoder:
    """The masked autoencoder of a configuration, untrained."""
    return ContrastiveAutoEncoder(config) if config.contrastive_weight else ImageAutoEncoder(config)


def require_auto_encoder(path: Path, state: Mapping[str, Any]) -> ReconstructionConfig:
    """What of a checkpoint makes its autoencoder.

    Raises:
        UsageError: the weights do not have these sizes; nothing has been allocated by them.
    """
    config = config_part(state["config"], ReconstructionConfig, f"{path}: config")
    require_weights(
        path,
        state["model"],
        config.encoder.num_layers + config.decoder.num_layers,
        lambda: new_auto_encoder(config),
    )
    return config


def reconstructor_from_state(
    state: Mapping[str, Any], device: torch.device, path: Path = Path("the encoder's checkpoint")
) -> Reconstructor:
    """The autoencoder whose checkpoint holds `state`, ready to show; `path` is for messages.

    Raises:
        UsageError: the weights do not fit the sizes.
    """
    config = require_auto_encoder(path, state)
    model = new_auto_encoder(config)
    model.load_state_dict(state["model"])
    return Reconstructor(
        model=model.to(device).eval(),
        transform=EvaluationTransform(config.image_size),
        masking_ratio=config.masking_ratio,
        normalize_targets=config.normalize_targets,
        device=device,
    )


def clearest_hidden_patch(
    reconstruction: Reconstruction, patch_size: int, index: int = 0
) -> tuple[Tensor, Tensor]:
    """The hidden patch of an image with most to see in it, the one of greatest variance.

    Returns:
        The patch as it is and as predicted, each (3, P, P) uint8.
    """
    views = (reconstruction.original[index], reconstruction.full[index])
    true, predicted = (patchify(view[None], patch_size)[0, reconstruction.hidden[index]] for view in views)
    best = int(true.float().var(dim=1).argmax())
    return tuple(patch[best].view(patch_size, patch_size, 3).permute(2, 0, 1) for patch in (true, predicted))


def encoder_of(folder: Path, wanted: str | None) -> dict[str, Any] | None:
    """The encoder's checkpoint that is named, or the newest in its folder, or None where there is none."""
    if wanted is None and not existing(folder):
        return None
    path, state = load_named(folder, wanted or "last", "encoder")
    require_auto_encoder(path, state)
    return state
