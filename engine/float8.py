"""A linear layer whose three matrix products are of 8-bit numbers, for cards that multiply those twice as fast as bf16.

What is multiplied is rounded to float8 just before: in the forward pass weights and activations to E4M3 (3 bits of
fraction, up to 448), in the backward pass the incoming gradient to E5M2 (2 bits, but up to 57,344 and far smaller
numbers), as in "FP8 Formats for Deep Learning" (arXiv:2209.05433). Each tensor is scaled such that its largest value
just fits, and that value is looked for each time ("dynamic tensor-wise scaling", torchao's recipe `tensorwise`): there
is no history, so a resumed run needs none. Scales are powers of two: they round nothing, compiled or not. Products are
added up in fp32. For the backward pass the rounded tensors are kept, one byte a value.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # cuBLAS multiplies such matrices only whose sides are multiples of it
SMALLEST = 2.0**-100  # largest value from which on a tensor is scaled no further, so that zeros get a finite scale


def quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A matrix in float8, row by row in memory, and the number, (), that it is to be multiplied by to get `x` back.

    A tensor that holds a NaN or an infinity becomes NaN, so that training notices.

    Args:
        x: fp32 or bf16.
        dtype: `E4M3` or `E5M2`.
    """
    largest = x.abs().amax().float().clamp(min=SMALLEST)
    scale = torch.exp2(torch.floor(torch.log2(torch.finfo(dtype).max / largest)))
    return (x * scale).to(dtype, memory_format=torch.contiguous_format), 1 / scale


def product(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], dtype: torch.dtype, **options: Any) -> Tensor:
    """(M, K) times (K, N) -> (M, N) in `dtype`; both as `quantize` gives them, the first laid out row by row."""
    columns = b[0].t().contiguous().t()  # the second is read column by column
    return torch._scaled_mm(a[0], columns, a[1], b[1], out_dtype=dtype, **options)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x8, w8 = quantize(x, E4M3), quantize(weight, E4M3)
        ctx.save_for_backward(*x8, *w8)
        # fast: sums are kept in fewer bits than fp32's on the way, which is enough here but not for gradients
        fast = {"bias": bias.bfloat16(), "use_fast_accum": True}
        return product(x8, (w8[0].t(), w8[1]), torch.bfloat16, **fast)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, x_scale, weight, weight_scale = ctx.saved_tensors
        g, g_scale = quantize(gradient, E5M2)
        columns = g.t().contiguous()  # (O, N)
        d_weight = product((columns, g_scale), (x, x_scale), torch.float32)
        d_x = product((g, g_scale), (weight, weight_scale), torch.bfloat16)
        if not ctx.needs_input_grad[2]:
            return d_x, d_weight, None
        # of the rounded numbers, like the weights': the exact ones would have to be computed and read once more
        return d_x, d_weight, columns.float().sum(dim=1) * g_scale


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x @ weight.T + bias`, with all products in float8.

    Args:
        x: (..., I), in fp32 or bf16; I and O are multiples of 16.
        weight: (O, I), in fp32.
        bias: (O,), in fp32.

    Returns:
        (..., O), in bf16; differentiable once.
    """
    rows = x.flatten(0, -2).bfloat16()  # (N, I): as autocast does, so that the gradient is made in bf16 too
    missing = -len(rows) % MULTIPLE
    if not missing:
        return cast(Tensor, _Linear.apply(rows, weight, bias)).unflatten(0, x.shape[:-1])
    padded = F.pad(rows, (0, 0, 0, missing))  # rows of zeros add nothing to a gradient
    return cast(Tensor, _Linear.apply(padded, weight, bias))[: len(rows)].unflatten(0, x.shape[:-1])
