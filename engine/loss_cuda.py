"""The last layer and its cross-entropy on a GPU: exact, and without ever holding all logits.

A block of rows is multiplied with the vocabulary; one kernel then reads its logits twice, for the loss and to leave the
gradient where they were; two products take that on to the hidden states and the weights. Nothing of N·V values stays
until the backward pass (the idea is Liger Kernel's, arXiv:2410.10989). The vocabulary is padded to a multiple of 64 in
here, as matrix products of 50,257 columns are slow; nobody outside sees the padding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine import cublaslt
from engine.linear_cuda import why_pytorch
from engine.loss import plain_rows
from engine.moments import LOSS_BLOCK_BYTES, LOSS_PADDING
from engine.trial import Pairs, why_not

STRETCH = 8192  # columns that the kernel reads at a time
Rows = Callable[[Tensor, Tensor, Tensor, int, bool], None]  # see `engine.loss.plain_rows`


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
        d_weight = torch.empty(padded, width, device=h.device) if wants_gradient else None
        blocks = math.ceil(len(h) * padded * dtype.itemsize / LOSS_BLOCK_BYTES)
        rows = math.ceil(len(h) / max(1, blocks))  # blocks of one size
        over_rows, _ = row_kernel(dtype, h.device)
        multiply = product_kernel(dtype, rows, width, padded, h.device)
        for start in range(0, len(h), max(1, rows)):
            part = slice(start, start + rows)
            logits = h.new_empty(len(h[part]), padded)
            multiply(h[part], w.T, logits)
            over_rows(logits, targets[part], losses[part], vocabulary, wants_gradient)
            if d_hidden is not None and d_weight is not None:
                multiply(logits, w, d_hidden[part])
                multiply(logits.T, h[part], d_weight, add=start > 0)  # the first block overwrites
            del logits
        if wants_gradient:
            ctx.save_for_backward(d_hidden, d_weight)
            ctx.vocabulary, ctx.dtype, ctx.scale = vocabulary, hidden.dtype, _scale_beside(over_rows)
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """The gradients were computed with the loss; only their factor comes now."""
        d_hidden, d_weight = ctx.saved_tensors
        for values in (d_hidden, d_weight):
            ctx.scale(values, gradient)
        return d_hidden.to(ctx.dtype), d_weight[: ctx.vocabulary], None, None, None


def product_kernel(
    dtype: torch.dtype, rows: int, width: int, vocabulary: int, device: torch.device
) -> Callable[..., None]:
    """What multiplies blocks of so many rows: see `plain_multiply`."""
    suits = cublaslt.is_large(rows, width, vocabulary) and cublaslt.pays(dtype, width, device)
    return cublaslt.multiply if suits and not why_pytorch(dtype, device) else plain_multiply


def plain_multiply(a: Tensor, b: Tensor, out: Tensor, *, add: bool = False) -> None:
    """(N, K) times (K, M), into `out`, (N, M), in the factors' dtype or fp32, or with `add` added to what is there."""
    if out.dtype == a.dtype:
        torch.addmm(out, a, b, beta=float(add), out=out)
    else:
        torch.addmm(out, a, b, beta=float(add), out_dtype=out.dtype, out=out)


@functools.cache
def row_kernel(dtype: torch.dtype, device: torch.device) -> tuple[Rows, str]:
    """What turns a block of logits into gradients: one kernel, or where that does not work `plain_rows` and the reason.

    Asked for the first time before a step is recorded as a graph.
    """
    reason = why_not(lambda: _beside_pytorch(dtype, device), device)
    if reason:
        return plain_rows, reason
    from engine.loss_triton import compiled_rows

    return compiled_rows, ""


def plain_scale(values: Tensor, factor: Tensor) -> None:
    """values, contiguous, times factor, () in fp32, in place."""
    values.mul_(factor[None])  # without dimensions it would be rounded to the dtype of the values first


def _scale_beside(rows: Rows) -> Callable[[Tensor, Tensor], None]:
    """`plain_scale`, or what does the same by the kernels that `rows` is of."""
    if rows is plain_rows:
        return plain_scale
    from engine.loss_triton import compiled_scale

    return compiled_scale


def _beside_pytorch(dtype: torch.dtype, device: torch.device) -> Pairs:
    """Losses and gradients of some rows, wide enough for the kernel to read several stretches, and some of those
    gradients scaled; and by PyTorch.

    Logits are large, and larger from stretch to stretch. Probabilities are compared apart from the targets' -1, beside
    which they are next to nothing.
    """
    from engine.loss_triton import compiled_rows

    width, vocabulary, generator = 3 * STRETCH, 3 * STRETCH - 7, torch.Generator(device).manual_seed(0)
    growing = torch.linspace(1, 4, width, device=device)
    logits = (growing * torch.randn(3, width, generator=generator, device=device)).to(dtype)
    targets = torch.tensor([3, STRETCH + 5, vocabulary - 1], device=device)
    results = []
    factor = torch.full((), 1 / 3, device=device)
    for rows in (compiled_rows, plain_rows):
        gradients, losses, alone = logits.clone(), torch.empty(3, device=device), torch.empty(3, device=device)
        rows(logits.clone(), targets, alone, vocabulary, False)
        rows(gradients, targets, losses, vocabulary, True)
        at_targets = gradients.gather(1, targets[:, None])
        others = gradients.scatter(1, targets[:, None], 0.0)
        scaled = others.clone()
        _scale_beside(rows)(scaled, factor)
        results.append((alone, losses, at_targets, others, scaled))
    return zip(*results, strict=True)
