"""The last layer and its loss in one: cross-entropy of a linear layer, without ever holding all logits.

On a GPU `engine.loss_cuda` does it; this is the CPU's way. For nano most of a step is the product with the vocabulary.
Written plainly, its 200 MB of logits are allocated, filled and read again several times, and memory is slower than
arithmetic. Here a block of rows meets the vocabulary piece by piece, each thread with a piece that stays in its cache
until it has gone from logits to exponentials, been added up, and been multiplied by the weights again. The sum by which
all are to be divided is known only at the end, but division can wait: it is of the small results instead. That leaves
one more reading of the exponentials, for the gradient of the weights. Their memory is kept from call to call, as fresh
pages cost a CPU as much as the arithmetic.

The result is exact, not an approximation. That the gradient is made in the forward pass is Liger Kernel's idea
(arXiv:2410.10989), that division waits FlashAttention's (arXiv:2205.14135).
"""

from __future__ import annotations

import math
import threading
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.moments import CPU_LOSS_ROWS as ROWS
from engine.moments import cpu_loss_rows

PIECE = 2**18  # exponentials that a thread makes at a time, at most: a megabyte, about a core's cache
TINY = 1e-30  # a probability from which on its logarithm is taken of the logits instead
SUMS = (1e-7, 1e30)  # of exponentials: fp32 holds none that is larger, and any that is TINY of the sum in full

_local = threading.local()


def _block(vocabulary: int, rows: int) -> Tensor:
    """This thread's memory for exponentials, (vocabulary, rows), contents arbitrary."""
    kept: Tensor | None = getattr(_local, "kept", None)
    if kept is None or kept.numel() < vocabulary * rows:
        kept = _local.kept = torch.empty(vocabulary * max(rows, ROWS))
    return kept[: vocabulary * rows].view(vocabulary, rows)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, wants_gradient: bool) -> Tensor:
        d_hidden = torch.empty_like(hidden) if wants_gradient else None
        d_weight = torch.empty_like(weight) if wants_gradient else None
        losses = torch.empty(len(hidden))
        size = cpu_loss_rows(len(hidden))
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            h, target = hidden[rows], targets[rows]
            block = _block(len(weight), len(h))
            sums, weighted = _exponentials(h, weight, block, wants_gradient)
            losses[rows] = _surprise(block.gather(0, target[None])[0] / sums, h, weight, target)
            if d_hidden is not None and d_weight is not None:
                torch.sub(weighted / sums[:, None], weight[target], out=d_hidden[rows])
                torch.addmm(d_weight, block, h / sums[:, None], beta=float(start > 0), out=d_weight)  # or overwrites
                d_weight.index_add_(0, target, h, alpha=-1)
        if wants_gradient:
            ctx.save_for_backward(d_hidden, d_weight)
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden.mul_(gradient), d_weight.mul_(gradient), None, None


def _exponentials(hidden: Tensor, weight: Tensor, block: Tensor, weigh: bool) -> tuple[Tensor, Tensor]:
    """exp(logits) of some rows, all of a row times the same factor.

    That is 1 where the sums of all rows allow it, as they nearly always do, since to find the largest logit of each
    takes another pass.

    Args:
        hidden: (N, D).
        weight: (V, D).
        block: (V, N), written.
        weigh: whether the weights' sums are wanted.

    Returns:
        their sums, (N,), and the sums of the weights, each times its exponential, (N, D), or of none, (N, 0).
    """
    found = _sweep(hidden, weight, block, weigh, None)
    if bool(((found[0] > SUMS[0]) & (found[0] < SUMS[1])).all()):
        return found
    torch.mm(weight, hidden.T, out=block)
    return _sweep(hidden, weight, block, weigh, block.amax(dim=0))


def _sweep(hidden: Tensor, weight: Tensor, block: Tensor, weigh: bool, largest: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `_exponentials`; with the `largest` logit of each row, (N,), those in `block` are taken, less that."""
    (rows, width), words, threads = hidden.shape, len(weight), torch.get_num_threads()
    rounds = math.ceil(words * rows / (threads * PIECE))
    piece = words // (threads * rounds) or 1
    turned = hidden.T.contiguous()
    sums = torch.zeros(threads, rows)
    weighted = torch.zeros(threads, width if weigh else 0, rows)
    for start in range(0, words, threads * piece):
        here = slice(start, start + threads * piece)
        parts = threads if here.stop <= words else 1  # a product each, or what is left by all of them
        w, e = weight[here].unflatten(0, (parts, -1)), block[here].unflatten(0, (parts, -1))
        if largest is None:
            torch.bmm(w, turned.expand(parts, -1, -1), out=e)
        else:
            e.sub_(largest)
        sums[:parts] += e.exp_().sum(dim=1)
        if weigh:
            weighted[:parts].baddbmm_(w.mT, e)
    return sums.sum(dim=0), weighted.sum(dim=0).T


def _surprise(probability: Tensor, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """-log of the targets' probabilities, (rows,) each; of the logits where one is too small to be told."""
    losses = -probability.log()
    if (lost := probability < TINY).any():
        logits = hidden[lost] @ weight.T
        losses[lost] = logits.logsumexp(dim=1) - logits.gather(1, target[lost, None])[:, 0]
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
