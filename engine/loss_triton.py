"""The kernel of `engine.loss_cuda`: from logits to losses and gradients, in place. Needs Triton, and a C compiler."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


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


def compiled_rows(logits: Tensor, targets: Tensor, losses: Tensor, vocabulary: int, gradient: bool) -> None:
    """As `engine.loss.plain_rows`, by one kernel.

    With 32 warps few rows are under way at a time, so that a row's second reading finds most of it in the cache.
    """
    width = logits.shape[1]
    _loss_and_gradient[(len(logits),)](
        logits, targets, losses, width, vocabulary, width, LANES=4096, GRADIENT=gradient, num_warps=32
    )
