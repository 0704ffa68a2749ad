"""Linear layers and perceptrons by `products.c`: bias, GELU and the gradients of biases inside of the products.

Shapes: N rows, I values in, O out; D width, F = 4·D.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from engine.native.library import call, scratch


def multiply(
    left: Tensor,
    right: Tensor,
    *,
    bias: Tensor | None = None,
    activated: Tensor | None = None,
    factor: Tensor | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    """left (M, K) @ right (K, N), each contiguous or the transpose of what is.

    Args:
        bias: added to each row, (N,).
        activated: becomes GELU of the result, (M, N), and the result GELU's derivative there.
        factor: the result is multiplied by it, (M, N).
        sums: become those of the left matrix's rows, (M,); it has to be a transpose.
    """
    (rows, depth), columns, threads = left.shape, right.size(1), torch.get_num_threads()
    result = left.new_empty(rows, columns)
    vectors = (result, bias, activated, factor, sums)
    assert all(v is None or v.is_contiguous() for v in vectors) and 1 in left.stride() and 1 in right.stride()
    assert sums is None or left.stride(0) == 1
    memory = scratch(call("multiply_scratch", columns, depth, threads))
    (l_row, l_column), (r_row, r_column) = left.stride(), right.stride()
    matrices = (left, l_row, l_column, right, r_row, r_column)
    call("multiply", rows, columns, depth, *matrices, *vectors, memory, threads)
    return result


def _gradients(d_y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Those of a linear layer's weight (O, I) and bias (O,), from that of its result (N, O) and what went in (N, I)."""
    d_bias = d_y.new_empty(d_y.size(1))
    return multiply(d_y.T, x, sums=d_bias), d_bias


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight.T, bias=bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        d_y = d_y.contiguous()
        return multiply(d_y, weight), *_gradients(d_y, x)


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        hidden = x.new_empty(len(x), len(w1))
        slope = multiply(x, w1.T, bias=b1, activated=hidden)
        ctx.save_for_backward(x, w1, w2, slope, hidden)
        return multiply(hidden, w2.T, bias=b2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        x, w1, w2, slope, hidden = ctx.saved_tensors
        d_y = d_y.contiguous()
        d_w2, d_b2 = _gradients(d_y, hidden)
        d_before = multiply(d_y, w2, factor=slope)
        return multiply(d_before, w1), *_gradients(d_before, x), d_w2, d_b2


FEW = 96  # rows, from which on packing the weights pays; samples are drawn from fewer


def _by_pytorch(rows: Tensor) -> bool:
    """Whether PyTorch's operations do it, by the shape alone: without gradients, and few rows or none."""
    return not len(rows) or (len(rows) < FEW and not torch.is_grad_enabled())


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(..., I), (O, I), (O,) -> (..., O); differentiable once."""
    rows = x.reshape(-1, x.size(-1)).contiguous()
    y: Tensor = F.linear(rows, weight, bias) if _by_pytorch(rows) else _Linear.apply(rows, weight, bias)
    return y.view(*x.shape[:-1], len(weight))


def perceptron(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """A linear layer, GELU (tanh's form) and another: (..., D), (F, D), (F,), (D, F), (D,) -> (..., D); once."""
    rows = x.reshape(-1, x.size(-1)).contiguous()
    y = _plain_perceptron(rows, w1, b1, w2, b2) if _by_pytorch(rows) else _Perceptron.apply(rows, w1, b1, w2, b2)
    return y.view_as(x)


def _plain_perceptron(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, w1, b1), approximate="tanh"), w2, b2)


def beside_pytorch() -> Iterator[tuple[Tensor, Tensor]]:
    """What is computed here and by PyTorch, of small layers: results and gradients, in pairs."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((200, 24), (400, 24), (400,), (24, 400), (24,))
    x, w1, b1, _, _ = parts = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    for ours, theirs, of in (
        (linear(x, w1, b1), F.linear(x, w1, b1), parts[:3]),
        (perceptron(*parts), _plain_perceptron(*parts), parts),
    ):
        yield ours, theirs
        yield from zip(_derived(ours, of), _derived(theirs, of), strict=True)


def _derived(y: Tensor, of: Iterable[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y.square().sum(), [*of])
