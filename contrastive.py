"""A second task for the encoder, beside reconstruction: to know two crops of an image from those of others.

Reconstruction teaches where edges and colours go on, and little of what a thing is.  Two crops of an image
show the same things, so the encoder's features of both are to be alike, and unlike those of the other images
of the batch (SimCLR, Chen et al. 2020).  Both tasks share one pass of the encoder over the patches that
masking leaves (CAN, Mishra et al. 2022, arXiv:2210.16870), so a crop costs little more than without.

Shapes: B images, 2B crops, the two of an image side by side; D the encoder's width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from image_captioner import AutoEncoderShape, ImageAutoEncoder
from training.sampling import hashed_noise

HIDDEN_SIZE, PROJECTED_SIZE = 1024, 128  # of the projection
TEMPERATURE = 0.1  # Chen et al. 2020, appendix B.7

# How colours are drawn anew, for histograms would tell images apart without a look at what they show.
RECOLORED = 0.8  # share of the crops
BRIGHTNESS, CONTRAST, SATURATION = 0.4, 0.4, 0.6  # a factor is at most so far from 1
GRAY = 0.15  # share of those that lose all their colours
DRAWS = 5  # of a crop: one for each name above


class ContrastiveAutoEncoder(ImageAutoEncoder):
    """The masked autoencoder, and a projection of the encoder's features, which only training uses."""

    def __init__(self, shape: AutoEncoderShape):
        super().__init__(shape)
        self.projection = nn.Sequential(
            nn.Linear(shape.encoder.hidden_size, HIDDEN_SIZE),
            nn.LayerNorm(HIDDEN_SIZE),
            nn.ReLU(),
            nn.Linear(HIDDEN_SIZE, PROJECTED_SIZE),
        )

    def forward(
        self, images: Tensor, kept: Tensor, masked: Tensor | None = None, project: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As `ImageAutoEncoder`; with `project` also (2B, 128), a projection of each crop's mean feature."""
        encoded = self.encoder(images, kept)  # (2B, K, D)
        predicted = self.decoder(encoded, kept, masked)
        return (predicted, self.projection(encoded.mean(1))) if project else predicted


def contrastive_loss(projected: Tensor) -> Tensor:
    """Cross entropy of telling a crop's partner from all other crops (NT-Xent, Chen et al. 2020, eq. 1).

    The others are those of the same pass through the network, so more `accumulation_steps` leave fewer.

    Args:
        projected: (2B, P); rows 2i and 2i + 1 are of one image.

    Returns:
        The mean over the crops, ().
    """
    unit = F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=1)
    with torch.autocast(unit.device.type, enabled=False):  # which would have the product in bfloat16
        similar = unit @ unit.T / TEMPERATURE  # (2B, 2B)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    partners = torch.arange(len(unit), device=unit.device) ^ 1
    return F.cross_entropy(similar.masked_fill(itself, -torch.inf), partners)


def recolored(images: Tensor, seeds: Tensor) -> Tensor:
    """Crops in other colours: brighter or darker, with more or less contrast and saturation, some gray.

    What becomes of a crop follows from its seed alone.

    Args:
        images: (2B, 3, H, W) uint8.
        seeds: (2B,) int64, one for each.

    Returns:
        (2B, 3, H, W) uint8.
    """
    draws = hashed_noise(~seeds, DRAWS).double() * 2.0**-64 + 0.5  # in [0, 1), independent of the mask
    chosen, *factors, gray = draws.float()[:, :, None, None, None].unbind(1)  # each (2B, 1, 1, 1)
    widths = (BRIGHTNESS, CONTRAST, SATURATION)
    brightness, contrast, saturation = (1 + w * (2 * f - 1) for w, f in zip(widths, factors))
    saturation = saturation * (gray >= GRAY)
    pixels = images.float() * brightness
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = mean + (pixels - mean) * contrast
    red, green, blue = pixels.split(1, dim=1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
    pixels = luma + (pixels - luma) * saturation
    return torch.where(chosen < RECOLORED, pixels.round().clamp(0, 255).to(torch.uint8), images)
