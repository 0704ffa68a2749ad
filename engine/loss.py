"""The last layer and its loss in one: cross-entropy of a linear layer, without ever holding all logits.

On a GPU `engine.loss_cuda` does it; this is the CPU's way. For nano most of a step is the product with the vocabulary.
Written plainly, its 200 MB of logits are allocated, filled and read again several times; here one piece of the rows
after the other is turned from logits into gradients, in memory that is kept from call to call (fresh pages cost a CPU
as much as the arithmetic): by PyTorch's operations, or by `engine.native`. The result is exact, not an approximation.
The idea of computing the gradient in the forward pass is Liger Kernel's (arXiv:2410.10989).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.moments import CPU_LOSS_ROWS as ROWS
from engine.moments import cpu_loss_rows

# See `plain_piece`.
Piece = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, bool], None]

_local = threading.local()


def _scratch(rows: int, vocabulary: int) -> Tensor:
    """This thread's block of logits, (rows, vocabulary and padding), contents arbitrary but for the padding, -inf.

    Each row begins at a multiple of 64 bytes: matrix products into unaligned ones take a third longer.
    """
    width = -(-vocabulary // 16) * 16
    block: Tensor | None = getattr(_local, "block", None)
    if block is None or block.shape[1] != width or len(block) < rows:
        block = _local.block = torch.empty(max(rows, ROWS), width)
    block[:rows, vocabulary:] = -torch.inf
    return block[:rows]


TINY = 1e-30  # a probability from which on its logarithm is taken of the logits instead


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, wants_gradient: bool, piece: Piece
    ) -> Tensor:
        d_hidden = torch.empty_like(hidden) if wants_gradient else None
        d_weight = torch.empty_like(weight) if wants_gradient else None
        losses = torch.empty(len(hidden))
        size = cpu_loss_rows(len(hidden))
        for start in range(0, len(hidden), size):
            rows = slice(start, min(start + size, len(hidden)))
            of_rows = None if d_hidden is None else d_hidden[rows]
            piece(hidden[rows], weight, targets[rows], losses[rows], of_rows, d_weight, start > 0)
        if wants_gradient:
            ctx.save_for_backward(d_hidden, d_weight)
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden.mul_(gradient), d_weight.mul_(gradient), None, None, None


def plain_piece(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    losses: Tensor,
    d_hidden: Tensor | None,
    d_weight: Tensor | None,
    add: bool,
) -> None:
    """The losses of some rows, and the gradients of their sum, by PyTorch's operations.

    Args:
        hidden: (N, D).
        weight: (V, D).
        targets: (N,).
        losses: (N,), written.
        d_hidden, d_weight: (N, D) and (V, D), written; or both None.
        add: whether the second is added to what is there.
    """
    target = targets[:, None]
    block = _scratch(len(hidden), len(weight))
    values = block[:, : len(weight)]  # (N, V): logits, then probabilities, then d loss / d logits
    torch.mm(hidden, weight.T, out=values)
    torch.softmax(block, dim=1, out=block)
    losses.copy_(_surprise(values.gather(1, target), hidden, weight, target))
    if d_hidden is not None and d_weight is not None:
        values.scatter_add_(1, target, torch.full((len(hidden), 1), -1.0))
        torch.mm(values, weight, out=d_hidden)
        torch.addmm(d_weight, values.T, hidden, beta=float(add), out=d_weight)


def _surprise(probability: Tensor, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """-log of the targets' probabilities, (rows, 1) -> (rows,); of the logits where one is too small to be told."""
    losses = -probability.log()[:, 0]
    if (lost := probability[:, 0] < TINY).any():
        logits = hidden[lost] @ weight.T
        losses[lost] = logits.logsumexp(dim=1) - logits.gather(1, target[lost])[:, 0]
    return losses


def plain_rows(logits: Tensor, targets: Tensor, losses: Tensor, vocabulary: int, gradient: bool) -> None:
    """The losses of some rows and, in place of their logits, the gradients; for a GPU on which nothing can be compiled.

    Args:
        logits: (N, W), of which the first `vocabulary` columns count; the others become 0.
        targets: (N,).
        losses: (N,), written.
        gradient: whether it is wanted.
    """
    x = logits[:, :vocabulary].float()
    log_sum = x.logsumexp(dim=1, keepdim=True)
    target = targets[:, None]
    losses.copy_((log_sum - x.gather(1, target))[:, 0])
    if gradient:
        p = (x - log_sum).exp_()
        p.scatter_add_(1, target, torch.full_like(p[:, :1], -1.0))
        logits[:, :vocabulary] = p
        logits[:, vocabulary:] = 0


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, piece: Piece = plain_piece) -> Tensor:
    """Sum over rows of the cross-entropy, in nats, of `softmax(hidden @ weight.T)`.

    On the CPU all of it is in fp32. On a GPU the products are in autocast's precision, the softmax in fp32.

    Args:
        hidden: (N, D).
        weight: of the output layer, (V, D).
        targets: the right column of each row, (N,).
        piece: what does some rows at a time, on the CPU.

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
            loss = _LinearCrossEntropy.apply(hidden.float(), weight, targets, wants_gradient, piece)
    return loss
