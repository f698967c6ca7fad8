"""The sizes of one transformer stack."""

from dataclasses import dataclass


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
