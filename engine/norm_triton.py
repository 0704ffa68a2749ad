"""The kernels of `engine.norm`, one for each pass. Needs Triton, and a C compiler.

The backward pass makes sums along rows, for the gradient of what was normed, and along columns, for its weights. Each
program goes over rows of its own, in order, and keeps the columns' sums in registers; at the end those of all programs
are added up. So all is read once, and the same step, done twice, gives the same bits.

Shapes: N rows, D width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.norm import EPSILON, PLAIN, NormKernels, norm_beside
from engine.trial import Pairs

# The fastest, or within 1 % of it, of some thirty on an H200, for widths of 768, 1,024 and 1,280.
PROGRAMS = 4  # of the backward pass, for each multiprocessor
WARPS, STAGES = 2, 3


@triton.jit
def _norm(x, weight, bias, normed, means, rates, width, epsilon, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row: its mean, 1 / standard deviation and norm."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, LANES)
    inside = lanes < width
    at = row * width + lanes
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(values, 0) / width
    values = tl.where(inside, values - mean, 0.0)
    rate = 1 / tl.sqrt(tl.sum(values * values, 0) / width + epsilon)
    w, b = tl.load(weight + lanes, mask=inside, other=0.0), tl.load(bias + lanes, mask=inside, other=0.0)
    tl.store(normed + at, (values * rate * w + b).to(normed.dtype.element_ty), mask=inside)
    tl.store(means + row, mean)
    tl.store(rates + row, rate)


@triton.jit
def _norm_gradient(  # type: ignore[no-untyped-def]
    d_normed, x, means, rates, weight, d_stream, d_x, sums, rows, width,
    LANES: tl.constexpr, PROGRAMS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The gradient of every `PROGRAMS`-th row, and their part of those of weight and bias."""
    lanes = tl.arange(0, LANES)
    inside = lanes < width
    w = tl.load(weight + lanes, mask=inside, other=0.0)
    d_weight, d_bias = tl.zeros((LANES,), tl.float32), tl.zeros((LANES,), tl.float32)
    first = tl.program_id(0)
    at = first.to(tl.int64) * width + lanes
    for row in tl.range(first, rows, PROGRAMS, num_stages=STAGES):
        g = tl.load(d_normed + at, mask=inside, other=0.0).to(tl.float32)
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        d = tl.load(d_stream + at, mask=inside, other=0.0).to(tl.float32)
        rate = tl.load(rates + row)
        plain = tl.where(inside, (values - tl.load(means + row)) * rate, 0.0)  # before weight and bias
        d_plain = w * g
        along, level = tl.sum(d_plain * plain, 0) / width, tl.sum(d_plain, 0) / width
        d += (d_plain - level - plain * along) * rate
        tl.store(d_x + at, d.to(d_x.dtype.element_ty), mask=inside)
        d_weight += g * plain
        d_bias += g
        at += PROGRAMS * width
    sums += first * 2 * width
    tl.store(sums + lanes, d_weight, mask=inside)
    tl.store(sums + width + lanes, d_bias, mask=inside)


def _forward(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    x = x.contiguous()
    rows, width = x.shape
    normed = torch.empty_like(x, dtype=dtype)
    means, rates = torch.empty(rows, device=x.device), torch.empty(rows, device=x.device)
    lanes = triton.next_power_of_2(width)
    _norm[(rows,)](x, weight, bias, normed, means, rates, width, EPSILON, LANES=lanes, num_warps=WARPS)
    return normed, means, rates


def _backward(
    d_normed: Tensor, x: Tensor, means: Tensor, rates: Tensor, weight: Tensor, d_stream: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    d_normed, x, d_stream = d_normed.contiguous(), x.contiguous(), d_stream.contiguous()
    rows, width = x.shape
    programs = min(rows, PROGRAMS * _multiprocessors(x.device))
    d_x, sums = torch.empty_like(x), torch.empty(programs, 2, width, device=x.device)
    _norm_gradient[(programs,)](
        d_normed, x, means, rates, weight, d_stream, d_x, sums, rows, width,
        LANES=triton.next_power_of_2(width), PROGRAMS=programs, STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip
    d_weight, d_bias = sums.sum(0)
    return d_x, d_weight, d_bias


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


KERNELS = NormKernels(_forward, _backward)


def beside_pytorch(width: int, stream: torch.dtype, dtype: torch.dtype, device: torch.device) -> Pairs:
    """Results and gradients by `KERNELS` and by PyTorch, of so many rows that each program has several.

    Args:
        width: D.
        stream: dtype of the residual stream.
        dtype: of the norm's result.
        device: where.
    """
    generator = torch.Generator(device).manual_seed(0)
    rows = 5 * PROGRAMS * _multiprocessors(device) + 1
    x, d_stream, d_normed = (torch.randn(rows, width, generator=generator, device=device) for _ in range(3))
    x = (1 + 3 * x).to(stream).requires_grad_()
    weight, bias = (torch.randn(width, generator=generator, device=device).requires_grad_() for _ in range(2))
    results = []
    for kernels in (KERNELS, PLAIN):
        _, normed = both = norm_beside(x, weight, bias, dtype, kernels)
        gradients = torch.autograd.grad(both, (x, weight, bias), (d_stream.to(stream), d_normed.to(dtype)))
        results.append((normed, *gradients))
    return zip(*results, strict=True)
