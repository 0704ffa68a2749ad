"""Causal self-attention, in two ways that give the same result. B sequences, T positions, D width, H heads."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Attend = Callable[[Tensor, int, float], Tensor]  # queries, keys and values (B, T, 3·D); H; dropout -> (B, T, D)


def manual_attention(qkv: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
    """Step by step, with the whole attention matrix.

    Args:
        qkv: queries, keys and values side by side, (B, T, 3·D).
        dropout: share of attention weights dropped.

    Returns:
        (B, T, D), in the dtype of `qkv`.
    """
    q, k, v = _by_head(qkv, heads)
    scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.size(-1))  # (B, H, T, T)
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=qkv.device).triu(1)
    weights = F.softmax(scores.masked_fill(future, float("-inf")), dim=-1)
    y = F.dropout(weights, dropout).to(v.dtype) @ v
    return y.transpose(1, 2).flatten(2)


def fused_attention(qkv: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
    """As `manual_attention`, by PyTorch's fused kernel, which never holds the matrix."""
    q, k, v = _by_head(qkv, heads)
    y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    return y.transpose(1, 2).flatten(2)


def _by_head(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, 3·D) -> three of (B, H, T, D/H)."""
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
    return q, k, v
