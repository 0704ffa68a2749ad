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
    before: Tensor | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    """left (M, K) @ right (K, N), each contiguous or the transpose of what is.

    Args:
        bias: added to each row, (N,).
        activated: becomes the result's GELU, (M, N).
        before: the result is multiplied by GELU's derivative there, (M, N).
        sums: become those of the left matrix's rows, (M,); it has to be a transpose.
    """
    rows, depth, columns, threads = *left.shape, right.size(1), torch.get_num_threads()
    result = left.new_empty(rows, columns)
    memory = scratch(call("multiply_scratch", columns, depth, threads))
    shape, strides = (rows, columns, depth), (left.stride(), right.stride())
    call(
        "multiply",
        *shape,
        left,
        *strides[0],
        right,
        *strides[1],
        result,
        bias,
        activated,
        before,
        sums,
        memory,
        threads,
    )
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
        before = multiply(x, w1.T, bias=b1, activated=hidden)
        ctx.save_for_backward(x, w1, w2, before, hidden)
        return multiply(hidden, w2.T, bias=b2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        x, w1, w2, before, hidden = ctx.saved_tensors
        d_y = d_y.contiguous()
        d_w2, d_b2 = _gradients(d_y, hidden)
        d_before = multiply(d_y, w2, before=before)
        return multiply(d_before, w1), *_gradients(d_before, x), d_w2, d_b2


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(..., I), (O, I), (O,) -> (..., O); differentiable once."""
    y: Tensor = _Linear.apply(x.reshape(-1, x.size(-1)).contiguous(), weight, bias)
    return y.view(*x.shape[:-1], -1)


def perceptron(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """A linear layer, GELU (tanh's form) and another: (..., D), (F, D), (F,), (D, F), (D,) -> (..., D); once."""
    y: Tensor = _Perceptron.apply(x.reshape(-1, x.size(-1)).contiguous(), w1, b1, w2, b2)
    return y.view_as(x)


def beside_pytorch() -> Iterator[tuple[Tensor, Tensor]]:
    """What is computed here and by PyTorch, of small layers: results and gradients, in pairs."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((50, 24), (40, 24), (40,), (24, 40), (24,))
    x, w1, b1, w2, b2 = parts = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    for ours, theirs, of in (
        (linear(x, w1, b1), F.linear(x, w1, b1), parts[:3]),
        (perceptron(*parts), F.linear(F.gelu(F.linear(x, w1, b1), approximate="tanh"), w2, b2), parts),
    ):
        yield ours, theirs
        yield from zip(_derived(ours, of), _derived(theirs, of), strict=True)


def _derived(y: Tensor, of: Iterable[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y.square().sum(), [*of])
