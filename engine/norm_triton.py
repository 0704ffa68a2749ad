"""The kernels of `engine.norm`, one for each pass. Needs Triton, and a C compiler.

The backward pass makes sums along rows, for the gradient of what was normed, and along columns, for its weights. Each
program goes over rows of its own, in order, and keeps the columns' sums in registers; at the end those of all programs
are added up. So all is read once, and the same step, done twice, gives the same bits.

Shapes: N rows, D width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.compiler import is_compiling

from engine.norm import EPSILON, PLAIN, Added, NormKernels, add_and_norm
from engine.trial import Pairs

# The fastest, or within 1 % of it, of some thirty on an H200, for widths of 768, 1,024 and 1,280.
PROGRAMS = 4  # of the backward pass, for each multiprocessor
WARPS, STAGES = 2, 3


@triton.jit
def _norm(  # type: ignore[no-untyped-def]
    x, added, weight, bias, stream, normed, means, rates, width, epsilon, ADDS: tl.constexpr, LANES: tl.constexpr
):
    """One row: its sum with what is added, and the mean, 1 / standard deviation and norm of that."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, LANES)
    inside = lanes < width
    at = row * width + lanes
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        values += tl.load(added + at, mask=inside, other=0.0).to(tl.float32)
        rounded = values.to(stream.dtype.element_ty)
        tl.store(stream + at, rounded, mask=inside)
        values = rounded.to(tl.float32)  # the backward pass knows no other
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
    GOES_ON: tl.constexpr, LANES: tl.constexpr, PROGRAMS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The gradient of every `PROGRAMS`-th row, their sum, and their part of the gradients of weight and bias."""
    lanes = tl.arange(0, LANES)
    inside = lanes < width
    w = tl.load(weight + lanes, mask=inside, other=0.0)
    d_weight, d_bias = tl.zeros((LANES,), tl.float32), tl.zeros((LANES,), tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    first = tl.program_id(0)
    at = first.to(tl.int64) * width + lanes
    for row in tl.range(first, rows, PROGRAMS, num_stages=STAGES):
        g = tl.load(d_normed + at, mask=inside, other=0.0).to(tl.float32)
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        rate = tl.load(rates + row)
        plain = tl.where(inside, (values - tl.load(means + row)) * rate, 0.0)  # before weight and bias
        d_plain = w * g
        along, level = tl.sum(d_plain * plain, 0) / width, tl.sum(d_plain, 0) / width
        d = (d_plain - level - plain * along) * rate
        if GOES_ON:
            d += tl.load(d_stream + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(d_x + at, d.to(d_x.dtype.element_ty), mask=inside)
        d_weight += g * plain
        d_bias += g
        total += d
        at += PROGRAMS * width
    sums += first * 3 * width
    tl.store(sums + lanes, d_weight, mask=inside)
    tl.store(sums + width + lanes, d_bias, mask=inside)
    tl.store(sums + 2 * width + lanes, total, mask=inside)


def _forward(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = x.contiguous()
    rows, width = x.shape
    stream = x if added is None else torch.empty_like(x)
    normed = torch.empty_like(x, dtype=dtype)
    means, rates = torch.empty(rows, device=x.device), torch.empty(rows, device=x.device)
    _norm[(rows,)](
        x, x if added is None else added.contiguous(), weight, bias, stream, normed, means, rates, width, EPSILON,
        ADDS=added is not None, LANES=triton.next_power_of_2(width), num_warps=WARPS,
    )  # fmt: skip
    return stream, normed, means, rates


def _backward(
    d_normed: Tensor, x: Tensor, means: Tensor, rates: Tensor, weight: Tensor, d_stream: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gradient of the stream, and side by side those of weight and bias and the sum of the first, (3, D)."""
    d_normed, x = d_normed.contiguous(), x.contiguous()
    rows, width = x.shape
    programs = min(rows, PROGRAMS * _multiprocessors(x.device))
    d_x, sums = torch.empty_like(x), torch.empty(programs, 3, width, device=x.device)
    _norm_gradient[(programs,)](
        d_normed, x, means, rates, weight, x if d_stream is None else d_stream.contiguous(), d_x, sums, rows, width,
        GOES_ON=d_stream is not None, LANES=triton.next_power_of_2(width), PROGRAMS=programs, STAGES=STAGES,
        num_warps=WARPS,
    )  # fmt: skip
    return d_x, sums.sum(0)


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@torch.library.custom_op("lab::add_and_norm", mutates_args=(), device_types="cuda")
def _compiled_forward(
    x: Tensor, added: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _forward(x, added, weight, bias, dtype)


@_compiled_forward.register_fake
def _forward_shapes(
    x: Tensor, added: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    means = x.new_empty(x.size(0), dtype=torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=dtype), means, torch.empty_like(means)


@torch.library.custom_op("lab::norm_gradient", mutates_args=(), device_types="cuda")
def _compiled_backward(
    d_normed: Tensor, x: Tensor, means: Tensor, rates: Tensor, weight: Tensor, d_stream: Tensor | None
) -> tuple[Tensor, Tensor]:
    return _backward(d_normed, x, means, rates, weight, d_stream)


@_compiled_backward.register_fake
def _backward_shapes(
    d_normed: Tensor, x: Tensor, means: Tensor, rates: Tensor, weight: Tensor, d_stream: Tensor | None
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(3, *weight.shape)


def _forward_kernel(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (_compiled_forward if is_compiling() else _forward)(x, added, weight, bias, dtype)


def _backward_kernel(
    d_normed: Tensor, x: Tensor, means: Tensor, rates: Tensor, weight: Tensor, d_stream: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kernel = _compiled_backward if is_compiling() else _backward
    d_x, sums = kernel(d_normed, x, means, rates, weight, d_stream)
    return d_x, *sums.unbind()


KERNELS = NormKernels(_forward_kernel, _backward_kernel)


def beside_pytorch(width: int, stream: torch.dtype, dtype: torch.dtype, device: torch.device) -> Pairs:
    """Results and gradients by `KERNELS` and by PyTorch, of so many rows that each program has several: with something
    added, of the stream as it is, and at the stream's end.

    Args:
        width: D.
        stream: dtype of the residual stream.
        dtype: of the norm's result, and of what is added.
        device: where.
    """
    generator = torch.Generator(device).manual_seed(0)
    rows = 5 * PROGRAMS * _multiprocessors(device) + 1
    x, values, d_stream, d_normed = (torch.randn(rows, width, generator=generator, device=device) for _ in range(4))
    x, values = (1 + 3 * x).to(stream).requires_grad_(), values.to(dtype).requires_grad_()
    weight, bias, layer = (torch.randn(width, generator=generator, device=device).requires_grad_() for _ in range(3))
    d_stream, d_normed = d_stream.to(stream), d_normed.to(dtype)
    for added in (None, Added(values, layer)):
        leaves = (x, weight, bias) if added is None else (x, values, layer, weight, bias)
        results = []
        for kernels in (KERNELS, PLAIN):
            both = add_and_norm(x, added, weight, bias, dtype, kernels)
            _, last = add_and_norm(x, added, weight, bias, dtype, kernels, goes_on=False)
            gradients = torch.autograd.grad((*both, last), leaves, (d_stream, d_normed, d_normed))
            results.append((*(y.detach() for y in both), *gradients))
        yield from zip(*results, strict=True)
