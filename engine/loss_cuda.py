"""The last layer and its cross-entropy on a GPU: exact, and without ever holding all logits.

A block of rows is multiplied with the vocabulary; one kernel then reads its logits twice, for the loss and to leave the
gradient where they were; two products take that on to the hidden states and the weights. Nothing of N·V values stays
until the backward pass (the idea is Liger Kernel's, arXiv:2410.10989). The vocabulary is padded to a multiple of 64 in
here, as matrix products of 50,257 columns are slow; nobody outside sees the padding.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.loss import plain_rows
from engine.moments import LOSS_BLOCK_BYTES, LOSS_PADDING


@triton.jit
def _loss_and_gradient(  # type: ignore[no-untyped-def]
    logits, targets, losses, stride, vocabulary, padded, LANES: tl.constexpr, GRADIENT: tl.constexpr
):
    """One row: its loss, and in place of its logits their gradient."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    wanted = tl.load(logits + target).to(tl.float32)
    lanes = tl.arange(0, LANES)
    highest = tl.full((LANES,), -1e30, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    for start in range(0, vocabulary, 2 * LANES):  # two at a time: exponentials are what takes the longest
        one, two = start + lanes, start + LANES + lanes
        x = tl.load(logits + one, mask=one < vocabulary, other=float("-inf")).to(tl.float32)
        y = tl.load(logits + two, mask=two < vocabulary, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.maximum(x, y))
        total = total * tl.exp(highest - higher) + tl.exp(x - higher) + tl.exp(y - higher)
        highest = higher
    top = tl.max(highest, 0)
    log_sum = top + tl.log(tl.sum(total * tl.exp(highest - top), 0))
    tl.store(losses + row, log_sum - wanted)
    if GRADIENT:
        for start in range(0, padded, LANES):
            columns = start + lanes
            x = tl.load(logits + columns, mask=columns < vocabulary, other=float("-inf")).to(tl.float32)
            p = tl.exp(x - log_sum)
            tl.store(logits + columns, tl.where(columns == target, p - 1.0, p), mask=columns < padded)


class LinearCrossEntropy(torch.autograd.Function):
    """Sum over rows of the cross-entropy; see `engine.loss.linear_cross_entropy`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, wants_gradient: bool
    ) -> Tensor:
        """hidden (N, D), weight (V, D), targets (N,), the dtype of the products -> ()."""
        vocabulary, width = weight.shape
        padded = -(-vocabulary // LOSS_PADDING) * LOSS_PADDING
        w = torch.zeros(padded, width, dtype=dtype, device=weight.device)
        w[:vocabulary] = weight
        h = hidden.to(dtype)
        losses = torch.empty(len(h), device=h.device)
        d_hidden = torch.empty_like(h) if wants_gradient else None
        d_weight = torch.zeros(padded, width, device=h.device) if wants_gradient else None
        blocks = math.ceil(len(h) * padded * dtype.itemsize / LOSS_BLOCK_BYTES)
        rows = math.ceil(len(h) / max(1, blocks))  # blocks of one size
        for start in range(0, len(h), max(1, rows)):
            part = slice(start, start + rows)
            logits = h[part] @ w.T  # (rows, V padded)
            rows_in_place = _compiled_rows if _can_compile() else plain_rows
            rows_in_place(logits, targets[part], losses[part], vocabulary, wants_gradient)
            if d_hidden is not None and d_weight is not None:
                torch.mm(logits, w, out=d_hidden[part])
                _add_product(d_weight, logits.T, h[part])
            del logits
        if wants_gradient:
            ctx.save_for_backward(d_hidden, d_weight)
            ctx.vocabulary, ctx.dtype = vocabulary, hidden.dtype
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """The gradients were computed with the loss; only their factor comes now."""
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden.mul_(gradient).to(ctx.dtype), d_weight.mul_(gradient)[: ctx.vocabulary], None, None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, added up in fp32 whatever the factors are."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    else:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)


def _compiled_rows(logits: Tensor, targets: Tensor, losses: Tensor, vocabulary: int, gradient: bool) -> None:
    """As `engine.loss.plain_rows`, by one kernel.

    With 32 warps few rows are under way at a time, so that a row's second reading finds most of it in the cache.
    """
    width = logits.shape[1]
    _loss_and_gradient[(len(logits),)](
        logits, targets, losses, width, vocabulary, width, LANES=4096, GRADIENT=gradient, num_warps=32
    )


@functools.cache
def _can_compile() -> bool:
    """Whether Triton works here: it needs a C compiler. Asked in the first step, which no graph records."""
    try:
        targets = torch.zeros(1, dtype=torch.int64, device="cuda")
        _compiled_rows(torch.zeros(1, LOSS_PADDING, device="cuda"), targets, torch.empty(1, device="cuda"), 2, True)
        torch.cuda.synchronize()
    except Exception as error:  # no compiler, no headers, an unknown card: the plain way needs more passes over memory
        warnings.warn(f"Triton cannot compile here, so the loss takes longer: {error}", stacklevel=2)
        return False
    return True
