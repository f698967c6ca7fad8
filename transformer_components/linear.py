"""A linear layer that is quick with few rows on a CPU, which is what one step of a beam search is."""

import torch
from torch import Tensor, nn

FEW_ROWS = 96  # up to here the other way round is the faster one; benchmarks/README.md has the figures


class Linear(nn.Linear):
    """x Wᵀ + b, computed as (W xᵀ + b)ᵀ where x has few rows.

    A CPU's matrix product rearranges its right factor before it starts.  For few rows that is most of the
    work if the right factor is the weight, and next to none if it is x.  Only without gradients and in
    float32: in bfloat16 it gains nothing (48 rows by 768 × 3072, AMX: 522 µs as usual, 566 turned around).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        rows = x.numel() // self.in_features
        half = torch.is_autocast_enabled("cpu") or x.dtype is torch.bfloat16
        if not x.is_cpu or half or torch.is_grad_enabled() or not 0 < rows <= FEW_ROWS:
            return super().forward(x)
        flipped = torch.addmm(self.bias[:, None], self.weight, x.reshape(rows, -1).t())  # (out, rows)
        return flipped.t().contiguous().view(*x.shape[:-1], -1)
