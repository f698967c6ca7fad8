"""What every transformer layer is made of besides attention: feed-forward and residual connection.

Shapes: B batch, T tokens, D hidden.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from transformer_components.linear import Linear
from transformer_components.stack_config import StackConfig


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
        self.pre_norm = config.pre_norm

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            return x + self.dropout(sublayer(self.norm(x)))  # (B, T, D)
        return self.norm(x + self.dropout(sublayer(x)))  # (B, T, D)


def final_norm(config: StackConfig) -> nn.Module:
    """What a stack ends with: a LayerNorm if pre-norm, else nothing, for the last layer has normalized."""
    return nn.LayerNorm(config.hidden_size) if config.pre_norm else nn.Identity()
