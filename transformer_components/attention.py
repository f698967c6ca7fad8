"""Scaled dot-product attention and its multi-head form (Vaswani et al. 2017, section 3.2).

Shapes: B batch, T queries, S keys, H heads, D hidden, M memory width, k key size, v value size.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transformer_components.sublayers import Linear, project_jointly


def causal_mask(length: int, device: torch.device | None = None) -> Tensor:
    """(length, length) bool, True where a query (row) may look: at itself and at what came before."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(Q Kᵀ / √k) V, equation 1 of the paper, written out.

    Args:
        query: (..., T, k).
        key: (..., S, k).
        value: (..., S, v).
        mask: bool, broadcast to (..., T, S), True where a query may look.  None: everywhere.

    Returns:
        The attended values (..., T, v), and the weights (..., T, S), each row of which sums to 1.
    """
    # Divided before the product, which is the same, and k numbers a row in place of S.
    scores = query / math.sqrt(query.shape[-1]) @ key.transpose(-2, -1)  # (..., T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1)  # (..., T, S)
    return weights @ value, weights


def fused_is_faster(query: Tensor) -> bool:
    """Whether torch's own attention beats the formula written out.

    It does but for one case, training in bfloat16 on a CPU, because of its backward pass.  By how much the
    formula is faster there, two cores of a Xeon with AMX, torch 2.15, whole training steps:

                                        bfloat16   float32
        ViT-B/16 MAE, 32 images           1.33 ×    0.96 ×   (8 images)
        captioner, all layers learn       1.20 ×    0.96 ×
        6 layers of 256, 128 pixels       1.58 ×    0.90 ×
        forward pass alone, 196 tokens    0.58 ×    0.46 ×

    On an EPYC (Zen 5) the three steps are 1.20, 1.17 and 1.39 times as fast with it, in float32 0.97 to 1.00;
    a search in bfloat16 is 1.00 to 1.07 times as fast.
    """
    return not (query.is_cpu and query.requires_grad and query.dtype is torch.bfloat16)


def fused_kernel_is_right(device: torch.device) -> bool:
    """Whether torch's own attention is right with bool masks, and with keys that are part of a storage.

    On Apple GPUs torch 2.8 to 2.12 got one or the other wrong without a word (pytorch issues 163597, 181133,
    pull requests 182285, 184180), and a cache hands over both.
    """
    return device.type != "mps"


class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each in a subspace of its own (section 3.2.2).

    Keys and values are projected by a call of their own, `project`, so that a decoder can keep them from
    one step to the next and, for the memory of a source, compute them once for all its beams.  What looks at
    itself projects all three at once, by `project_all`.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, key_size: int, value_size: int, memory_size: int | None = None
    ):
        """
        Args:
            hidden_size: width of the queries' input and of the output.
            num_heads: number of heads.
            key_size: width of each head's queries and keys.
            value_size: width of each head's values.
            memory_size: width of what is looked at; None: hidden_size, as in self-attention.
        """
        super().__init__()
        memory_size = hidden_size if memory_size is None else memory_size
        self.num_heads = num_heads
        self.query_projection = Linear(hidden_size, num_heads * key_size)
        self.key_projection = Linear(memory_size, num_heads * key_size)
        self.value_projection = Linear(memory_size, num_heads * value_size)
        self.output_projection = Linear(num_heads * value_size, hidden_size)

    def project_queries(self, x: Tensor) -> Tensor:
        """The queries (B, H, T, k) of what looks, x (B, T, D)."""
        return self._split(self.query_projection(x))

    def project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The keys (B, H, S, k) and values (B, H, S, v) of what is looked at, memory (B, S, M)."""
        keys, values = project_jointly(memory, self.key_projection, self.value_projection)
        return self._split(keys), self._split(values)

    def project_all(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (B, H, T, k), values (B, H, T, v) of what looks at itself, x (B, T, D)."""
        query, keys, values = project_jointly(
            x, self.query_projection, self.key_projection, self.value_projection
        )
        return self._split(query), self._split(keys), self._split(values)

    def forward(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        is_causal: bool = False,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """
        Args:
            query: (B, H, T, k) from `project_queries`, or with the next two from `project_all`.
            keys: (B, H, S, k) from `project`.
            values: (B, H, S, v) from `project`.
            mask: bool, broadcast to (B, H, T, S), True where a query may look.  None: everywhere.
            is_causal: query i looks at keys 0 to i; stands in for `mask` where T = S.
            weights: a list to which the attention weights (B, H, T, S) are appended.  Weights need the
                formula step by step; without the list, torch's fused kernel computes the same, where it is
                right and faster.

        Returns:
            (B, T, D).
        """
        device = query.device
        if weights is None and fused_kernel_is_right(device) and fused_is_faster(query):
            heads = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, is_causal=is_causal)
        else:
            mask = causal_mask(query.shape[2], device) if is_causal else mask
            heads, attended = scaled_dot_product_attention(query, keys, values, mask)  # (B, H, T, v)
            if weights is not None:
                weights.append(attended)
        return self.output_projection(heads.transpose(1, 2).flatten(2))  # (B, T, D)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, T, H·k) -> (B, H, T, k)
