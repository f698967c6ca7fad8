"""The encoder stack (Vaswani et al. 2017, section 3.1).

Shapes: B batch, S source length, D hidden.
"""

from torch import Tensor, nn

from transformer_components.attention import MultiHeadAttention
from transformer_components.sublayers import FeedForward, Residual, StackConfig, final_norm, initialize


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward, each inside a residual connection."""

    def __init__(self, config: StackConfig):
        super().__init__()
        self.self_attention = MultiHeadAttention(
            config.hidden_size, config.num_heads, config.key_size, config.value_size
        )
        self.self_attention_residual = Residual(config)
        self.feedforward = FeedForward(config.hidden_size, config.feedforward_size)
        self.feedforward_residual = Residual(config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D)."""

        def attend_to_self(y: Tensor) -> Tensor:
            return self.self_attention(*self.self_attention.project_all(y))

        x = self.self_attention_residual(x, attend_to_self)
        return self.feedforward_residual(x, self.feedforward)


class TransformerEncoder(nn.Module):
    """A stack of encoder layers; `layers[-1]` is the top one."""

    def __init__(self, config: StackConfig):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))
        self.final_norm = final_norm(config)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings (B, S, D) to features (B, S, D); every position sees every other."""
        for layer in self.layers:
            x = layer(x)
        return self.final_norm(x)
