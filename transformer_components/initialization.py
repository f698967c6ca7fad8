"""Initial weights and the sinusoids of the paper."""

import math

import torch
from torch import Tensor, nn


def initialize(module: nn.Module) -> None:
    """Draws the initial weights of a module and all that is in it.

    | parameter                 | start                | why                                                |
    |---------------------------|----------------------|----------------------------------------------------|
    | weight of a projection    | Xavier uniform       | keeps the variance from layer to layer (Glorot and |
    |                           |                      | Bengio 2010); so do He et al. 2021, section A.1    |
    | bias of a projection      | 0                    | no preference                                      |
    | scale, shift of LayerNorm | 1, 0                 | plain normalization                                |
    | embedding of width D      | normal, variance 1/D | variance 1 once multiplied by √D (Vaswani et al.   |
    |                           |                      | 2017, section 3.4), unit logits if tied            |

    A bare parameter (learned positions, mask token) is set by the module that owns it, at the scale of what
    it is added to: a post-norm layer divides by the size of the sum, so what starts small stays unheard.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=part.embedding_dim**-0.5)


def sinusoids(positions: Tensor, size: int) -> Tensor:
    """Sines and cosines of the positions in many wavelengths (Vaswani et al. 2017, section 3.5).

    Args:
        positions: (n,).
        size: numbers to a position; an odd one leaves out the last cosine.

    Returns:
        (n, size) float32, sines and cosines in turn.
    """
    rates = torch.exp(torch.arange(0, size, 2) * (-math.log(10000.0) / size))  # (⌈size/2⌉,)
    angles = positions.float()[:, None] * rates  # (n, ⌈size/2⌉)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :size]
