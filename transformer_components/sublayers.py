"""What every layer is made of besides attention: linear, feed-forward, residual, sizes, initial weights.

Shapes: B batch, T tokens, D hidden.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW_ROWS = 96  # up to here the other way round is the faster one; LOG.md, 2026-11-23, has the figures
ENOUGH_ROWS = 48  # from here on a convolution is faster than either, where it is faster at all


@dataclass(frozen=True)
class StackConfig:
    """The shape of an encoder or decoder stack; the names follow Vaswani et al. (2017), table 3.

    Raises:
        ValueError: a size below 1, or a dropout outside [0, 1).
    """

    num_layers: int  # layers, one on top of the other (N in the paper)
    num_heads: int  # attention heads of every layer (h); need not divide hidden_size
    hidden_size: int  # width of the residual stream (d_model)
    key_size: int  # width of one head's queries and keys (d_k)
    value_size: int  # width of one head's values (d_v)
    feedforward_size: int  # inner width of the feed-forward sublayer (d_ff)
    dropout: float = 0.0  # on every sublayer's output and on the sum of the embeddings, never on attention
    pre_norm: bool = (
        False  # False: LayerNorm after each residual sum, as in the paper; True: before each sublayer
    )

    def __post_init__(self):
        sizes = ("num_layers", "num_heads", "hidden_size", "key_size", "value_size", "feedforward_size")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")


class Linear(nn.Linear):
    """x Wᵀ + b, by `affine`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return affine(x, self.weight, self.bias)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x Wᵀ + b, on a CPU in float32 in the fastest of three ways.

    As (W xᵀ + b)ᵀ where x has few rows and no gradients are asked for.  A CPU's matrix product rearranges its
    right factor before it starts.  For few rows that is most of the work if the right factor is the weight,
    and next to none if it is x.  In bfloat16 it gains nothing (48 rows by 768 × 3072, AMX: 522 µs as usual,
    566 turned around).

    As a convolution of one pixel where `convolutions_are_faster`.

    Args:
        x: (..., I).
        weight: (O, I).
        bias: (O,).

    Returns:
        (..., O).
    """
    half = torch.is_autocast_enabled("cpu") or x.dtype is torch.bfloat16
    if not x.is_cpu or half or torch.compiler.is_compiling():  # a compiler has ways of its own
        return F.linear(x, weight, bias)
    rows = x.numel() // x.shape[-1]
    if x.dtype is torch.float32 and rows >= ENOUGH_ROWS and convolutions_are_faster():
        pixels = x.reshape(1, rows, 1, -1).permute(0, 3, 1, 2)  # (1, I, rows, 1), in memory as before
        return F.conv2d(pixels, weight[:, :, None, None], bias).permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)
    if 0 < rows <= FEW_ROWS and not torch.is_grad_enabled():
        flipped = torch.addmm(bias[:, None], weight, x.reshape(rows, -1).t())  # (O, rows)
        return flipped.t().contiguous().view(*x.shape[:-1], -1)
    return F.linear(x, weight, bias)


def convolutions_are_faster() -> bool:
    """Whether a matrix product in float32 is faster in the guise of a convolution: on AMD's with AVX-512.

    Torch leaves the two to different libraries.  Two cores of an EPYC (Zen 5), torch 2.15: 1568 rows by 768 ×
    3072 take 33.8 ms as a product, 15.3 as a convolution; a MAE step of ViT-B/16, 8 images, 1.79 and 1.07 s.
    """
    can = torch.cpu.get_capabilities()
    return bool(can.get("avx512_f")) and str(can.get("cpu_name", "")).startswith("AMD")


def project_jointly(x: Tensor, *projections: nn.Linear) -> Sequence[Tensor]:
    """What several projections make of x, in training by one product with their weights side by side.

    x is cast once instead of once for each of them, also on the way back, and the matrix to work on is
    larger.  In decoding x has few rows, and laying the weights side by side would take longer than that.

    Args:
        x: (..., in_features).
        projections: of that many features.

    Returns:
        Of each, (..., its out_features).
    """
    if not torch.is_grad_enabled():
        return [projection(x) for projection in projections]
    weight = torch.cat([projection.weight for projection in projections])
    bias = torch.cat([projection.bias for projection in projections])
    return affine(x, weight, bias).split([projection.out_features for projection in projections], dim=-1)


class FeedForward(nn.Module):
    """max(0, x W₁ + b₁) W₂ + b₂ at each position (Vaswani et al. 2017, equation 2)."""

    def __init__(self, hidden_size: int, feedforward_size: int):
        super().__init__()
        self.expand = Linear(hidden_size, feedforward_size)
        self.contract = Linear(feedforward_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(F.relu(self.expand(x), inplace=True))  # (B, T, D)


class Residual(nn.Module):
    """The connection around a sublayer: dropout, residual sum and LayerNorm.

    Post-norm is the paper's (sections 3.1 and 5.4).  Pre-norm (Xiong et al. 2020, arXiv:2002.04745) leaves a
    clean path for the gradient; its stack must end with one LayerNorm more.
    """

    def __init__(self, config: StackConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = DropPath()
        self.pre_norm = config.pre_norm

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            return x + self.drop_path(self.dropout(sublayer(self.norm(x))))  # (B, T, D)
        return self.norm(x + self.drop_path(self.dropout(sublayer(x))))  # (B, T, D)


class DropPath(nn.Module):
    """Leaves a sublayer out of some samples in training: stochastic depth (Huang et al. 2016, section 3).

    What stays is scaled up, so that its expectation is that of evaluation, where nothing is left out.
    """

    def __init__(self):
        super().__init__()
        self.rate = 0.0  # share of the samples without it; see `set_drop_path`

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(len(x), *(1,) * (x.dim() - 1), device=x.device) >= self.rate  # (B, 1, 1)
        return x * (kept / (1 - self.rate)).to(x.dtype)


def set_drop_path(layers: nn.ModuleList, rate: float) -> None:
    """Lets a stack's layers be left out: none of the lowest, `rate` of the top one, linearly in between."""
    for number, layer in enumerate(layers):
        for part in layer.modules():
            if isinstance(part, DropPath):
                part.rate = rate * number / max(1, len(layers) - 1)


def final_norm(config: StackConfig) -> nn.Module:
    """What a stack ends with: a LayerNorm if pre-norm, else nothing, for the last layer has normalized."""
    return nn.LayerNorm(config.hidden_size) if config.pre_norm else nn.Identity()


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


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, no dropout; afterwards every module is in the mode in which it was, frozen parts too."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
