"""A block's perceptron on a GPU with the GELU inside of its matrix products, where cuBLASLt can do that fast.

Between its two products a perceptron holds four times the residual stream, and a GELU of its own reads and writes all
of that, forward and backward, while the card multiplies nothing. cuBLASLt applies it to each tile of a product before
it leaves the registers (its "epilogues" GELU_AUX_BIAS and DGELU), as llm.c does; see `engine.cublaslt`.

Shapes: N rows, D width, F = 4·D.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from engine import cublaslt
from engine.linear_cuda import multiplied, with_bias
from engine.trial import Pairs


@torch.library.custom_op("lab::expand_gelu", mutates_args=(), device_types="cuda")
def expand_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, D), weight (F, D), bias (F,) -> the GELU of x @ weight.T + bias, (N, F), and what it was applied to."""
    before = x.new_empty(x.size(0), weight.size(0))
    hidden = torch.empty_like(before)
    cublaslt.multiply(x, weight.T, hidden, epilogue=cublaslt.GELU_AUX_BIAS, bias=bias, aux=before)
    return hidden, before


@expand_gelu.register_fake
def _expanded(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    before = x.new_empty(x.size(0), weight.size(0))
    return torch.empty_like(before), before


@torch.library.custom_op("lab::gelu_backward", mutates_args=(), device_types="cuda")
def gelu_backward(d_y: Tensor, weight: Tensor, before: Tensor) -> Tensor:
    """d_y (N, D), weight (D, F), before (N, F) -> the gradient of `before`, (N, F): of a GELU and a linear layer."""
    before = before.contiguous()
    d_before = torch.empty_like(before)
    cublaslt.multiply(d_y, weight, d_before, epilogue=cublaslt.DGELU, aux=before)
    return d_before


@gelu_backward.register_fake
def _gradient(d_y: Tensor, weight: Tensor, before: Tensor) -> Tensor:
    return torch.empty_like(before)


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        hidden, before = expand_gelu(x, w1, b1)
        ctx.save_for_backward(x, w1, w2, before, hidden)
        return with_bias(hidden, w2, b2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        x, w1, w2, before, hidden = ctx.saved_tensors
        d_b2 = d_y.sum(0) if ctx.needs_input_grad[4] else None  # first: cuBLAS warns where it is a thread's first work
        d_w2 = multiplied(d_y.T, hidden)
        d_before = gelu_backward(d_y, w2, before)
        return multiplied(d_before, w1), multiplied(d_before.T, x), d_before.sum(0), d_w2, d_b2


def perceptron(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """`gelu(x @ w1.T + b1) @ w2.T + b2`, with GELU's tanh form; differentiable once.

    Args:
        x: (..., D).
        w1: (F, D), like the others in bf16 or fp16.
        b1: (F,).
        w2: (D, F).
        b2: (D,).

    Returns:
        (..., D).
    """
    y: Tensor = _Perceptron.apply(x.flatten(0, -2), w1, b1, w2, b2)
    return y.unflatten(0, x.shape[:-1])


def beside_pytorch(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Pairs:
    """Result and gradients by `perceptron` and by PyTorch's own operations, on a few rows.

    Args:
        rows: N of a training step, for which the library is asked whether it can.
        width: D.

    Raises:
        RuntimeError, OSError: it cannot.
    """
    here = torch.cuda.current_device()
    for turned, epilogue in (((False, True), cublaslt.GELU_AUX_BIAS), ((False, False), cublaslt.DGELU)):
        cublaslt.planned(cublaslt.Shape(here, dtype, dtype, rows, width, 4 * width, turned, epilogue))
    generator = torch.Generator(device).manual_seed(0)
    shapes = ((64, width), (4 * width, width), (4 * width,), (width, 4 * width), (width,))
    x, *weights = (torch.randn(s, generator=generator, device=device) for s in shapes)
    values = [v.to(dtype).requires_grad_() for v in (x, *(w / w.size(-1) ** 0.5 for w in weights))]
    g = torch.randn(x.shape, generator=generator, device=device).to(dtype)
    return zip(_results(perceptron, values, g), _results(_plain, values, g), strict=True)


def _results(layer: Callable[..., Tensor], values: list[Tensor], g: Tensor) -> list[Tensor]:
    y = layer(*values)
    return [y, *torch.autograd.grad(y, values, g)]


def _plain(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, w1, b1), approximate="tanh"), w2, b2)
