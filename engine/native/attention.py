"""Causal self-attention by `attention.c`. B sequences, T positions, D width, H heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.attention import fused_attention
from engine.native.library import call, scratch


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int) -> Tensor:
        batch, length, width = qkv.size(0), qkv.size(1), qkv.size(2) // 3
        shape, threads = (batch, heads, length, width // heads), torch.get_num_threads()
        out, log_sums = qkv.new_empty(batch, length, width), qkv.new_empty(batch, heads, length)
        memory = scratch(call("attention_scratch", length, width // heads, threads))
        call("attention_forward", *shape, qkv, out, log_sums, memory, threads)
        ctx.save_for_backward(qkv, out, log_sums)
        ctx.shape = shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None]:
        qkv, out, log_sums = ctx.saved_tensors
        threads, d_qkv = torch.get_num_threads(), torch.empty_like(qkv)
        memory = scratch(call("attention_scratch", *ctx.shape[2:], threads))
        call("attention_backward", *ctx.shape, qkv, out, log_sums, d_out.contiguous(), d_qkv, memory, threads)
        return d_qkv, None


def attend(qkv: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
    """As `engine.attention.fused_attention`, without dropout; differentiable once."""
    assert dropout == 0
    out: Tensor = _Attention.apply(qkv.contiguous(), heads)
    return out


def beside_pytorch() -> Iterator[tuple[Tensor, Tensor]]:
    """What is computed here and by PyTorch, of two short sequences: result and gradient, in pairs."""
    qkv = torch.randn(2, 50, 3 * 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ours, theirs = attend(qkv, 2), fused_attention(qkv, 2)
    yield ours, theirs
    (d_ours,), (d_theirs,) = (torch.autograd.grad(y.square().sum(), qkv) for y in (ours, theirs))
    yield d_ours, d_theirs
