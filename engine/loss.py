"""The last layer and its loss in one: cross-entropy of a linear layer, without ever holding all logits.

On a GPU `engine.loss_cuda` does it; this is the CPU's way. For nano most of a step is the product with the vocabulary.
Written plainly, its 200 MB of logits are allocated, filled and read again several times; here a block of rows is turned
from logits into gradients while it is in the cache, in memory that is kept from call to call (fresh pages cost a CPU as
much as the arithmetic). The result is exact, not an approximation. The idea of computing the gradient in the forward
pass is Liger Kernel's (arXiv:2410.10989).
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 256  # of a block: 50 MB of logits for GPT-2's vocabulary

_local = threading.local()


def _scratch(rows: int, vocabulary: int) -> Tensor:
    """This thread's block of logits; (rows, vocabulary), contents arbitrary."""
    block: Tensor | None = getattr(_local, "block", None)
    if block is None or block.shape[1] != vocabulary or len(block) < rows:
        block = _local.block = torch.empty(max(rows, ROWS), vocabulary)
    return block[:rows]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, wants_gradient: bool) -> Tensor:
        d_hidden = torch.empty_like(hidden) if wants_gradient else None
        d_weight = torch.zeros_like(weight) if wants_gradient else None
        losses = torch.empty(len(hidden))
        for start in range(0, len(hidden), ROWS):
            rows = slice(start, min(start + ROWS, len(hidden)))
            h, target = hidden[rows], targets[rows, None]
            block = torch.mm(h, weight.T, out=_scratch(len(h), len(weight)))  # logits, (rows, V)
            wanted = block.gather(1, target)
            highest = block.amax(dim=1, keepdim=True)  # without its place: that takes six times as long
            torch.softmax(block, dim=1, out=block)
            # log Σexp from the likeliest token's probability, which is never too small for its logarithm
            losses[rows] = (highest - block.amax(dim=1, keepdim=True).log() - wanted)[:, 0]
            if d_hidden is not None and d_weight is not None:
                block.scatter_add_(1, target, torch.full_like(wanted, -1.0))  # d loss / d logits
                torch.mm(block, weight, out=d_hidden[rows])
                d_weight.addmm_(block.T, h)
        if wants_gradient:
            ctx.save_for_backward(d_hidden, d_weight)
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden.mul_(gradient), d_weight.mul_(gradient), None, None


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum over rows of the cross-entropy, in nats, of `softmax(hidden @ weight.T)`.

    On the CPU all of it is in fp32. On a GPU the products are in autocast's precision, the softmax in fp32.

    Args:
        hidden: (N, D).
        weight: of the output layer, (V, D).
        targets: the right column of each row, (N,).

    Returns:
        (), differentiable once with respect to `hidden` and `weight`.
    """
    kind = hidden.device.type
    wants_gradient = torch.is_grad_enabled()
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    loss: Tensor
    with torch.autocast(kind, enabled=False):
        if kind == "cuda":
            from engine.loss_cuda import LinearCrossEntropy

            loss = LinearCrossEntropy.apply(hidden, weight, targets, dtype, wants_gradient)
        else:
            loss = _LinearCrossEntropy.apply(hidden.float(), weight, targets, wants_gradient)
    return loss
