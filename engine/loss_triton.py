"""The kernels of `engine.loss_cuda`: from logits to losses and gradients, in place. Needs Triton, and a C compiler."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.loss_cuda import STRETCH

LOG2_E = tl.constexpr(1.4426950408889634)  # kernels raise 2, not e, to a power: that is one instruction
GROUP = tl.constexpr(8)  # columns that a thread reads at once: 16 bytes of bf16
GROUPS, WARPS = STRETCH // 8, 32
SCALED = 8192  # values of a program that scales

# A row's second reading is to find in the cache what the first one has brought there, and what is written is not to
# push out what others wait for: 7 % of the time.
KEEP, LET_GO = tl.constexpr("evict_last"), tl.constexpr("evict_first")


@triton.jit
def _read(logits, columns, vocabulary, padded, POLICY: tl.constexpr):  # type: ignore[no-untyped-def]
    """Logits in fp32, -inf beyond the vocabulary. What is read ends with the padding, as a mask that may end within a
    group would make single reads of it."""
    inside = columns < padded
    x = tl.load(logits + columns, mask=inside, other=float("-inf"), eviction_policy=POLICY).to(tl.float32)
    return tl.where(columns < vocabulary, x, float("-inf"))


@triton.jit
def _loss_and_gradient(  # type: ignore[no-untyped-def]
    logits, targets, losses, stride, vocabulary, padded, GROUPS: tl.constexpr, GRADIENT: tl.constexpr
):
    """One row: its loss, and in place of its logits their gradient."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    wanted = tl.load(logits + target).to(tl.float32)
    columns = tl.arange(0, GROUPS)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    highest = tl.full((GROUPS,), -1e30, tl.float32)
    total = tl.zeros((GROUPS,), tl.float32)
    for start in range(0, padded, GROUPS * GROUP):
        x = _read(logits, start + columns, vocabulary, padded, KEEP)
        higher = tl.maximum(highest, tl.max(x, 1))
        part = tl.sum(tl.exp2(x * LOG2_E - (higher * LOG2_E)[:, None]), 1)
        total = total * tl.exp2((highest - higher) * LOG2_E) + part
        highest = higher
    top = tl.max(highest, 0)
    log_sum = top + tl.log(tl.sum(total * tl.exp2((highest - top) * LOG2_E), 0))
    tl.store(losses + row, log_sum - wanted)
    if GRADIENT:
        for start in range(0, padded, GROUPS * GROUP):
            at = start + columns
            p = tl.exp2(_read(logits, at, vocabulary, padded, LET_GO) * LOG2_E - log_sum * LOG2_E)
            p = tl.where(at == target, p - 1.0, p).to(logits.dtype.element_ty)
            tl.store(logits + at, p, mask=at < padded, eviction_policy=LET_GO)


def compiled_rows(logits: Tensor, targets: Tensor, losses: Tensor, vocabulary: int, gradient: bool) -> None:
    """As `engine.loss.plain_rows`, by one kernel.

    With 32 warps few rows are under way at a time, so that a row's second reading finds most of it in the cache.
    """
    width = logits.shape[1]
    _loss_and_gradient[(len(logits),)](
        logits, targets, losses, width, vocabulary, width, GROUPS=GROUPS, GRADIENT=gradient, num_warps=WARPS
    )


@triton.jit
def _scale(values, factor, count, SCALED: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * SCALED + tl.arange(0, SCALED)
    x = tl.load(values + at, mask=at < count).to(tl.float32) * tl.load(factor)
    tl.store(values + at, x.to(values.dtype.element_ty), mask=at < count)


def compiled_scale(values: Tensor, factor: Tensor) -> None:
    """As `engine.loss_cuda.plain_scale`, by one kernel."""
    _scale[(triton.cdiv(values.numel(), SCALED),)](values, factor, values.numel(), SCALED=SCALED, num_warps=8)
    torch.autograd.graph.increment_version(values)  # who goes backward twice is told, as by PyTorch's own operations
