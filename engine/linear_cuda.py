"""A linear layer on a GPU whose products cuBLASLt does by the fastest of its kernels; see `engine.cublaslt`.

Small products, which the host cannot launch as fast as the GPU does them, stay with PyTorch: shapes alone decide. On an
H100 both gave the same bits at all shapes that were tried, but for weights' gradients that are cut into other parts
(tests/gpu/repeat.py).

Shapes: N rows, I values in, O values out.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from engine import cublaslt
from engine.trial import Pairs, why_not


@torch.library.custom_op("lab::matmul", mutates_args=(), device_types="cuda")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """(N, K) times (K, M) -> (N, M)."""
    out = a.new_empty(a.size(0), b.size(1))
    cublaslt.multiply(a, b, out)
    return out


@matmul.register_fake
def _matmul(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.size(0), b.size(1))


@torch.library.custom_op("lab::biased_product", mutates_args=(), device_types="cuda")
def biased_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (N, I), weight (O, I), bias (O,) -> x @ weight.T + bias, (N, O)."""
    out = x.new_empty(x.size(0), weight.size(0))
    cublaslt.multiply(x, weight.T, out, epilogue=cublaslt.BIAS, bias=bias)
    return out


@biased_product.register_fake
def _biased_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.size(0), weight.size(0))


def multiplied(a: Tensor, b: Tensor) -> Tensor:
    """(N, K) times (K, M) -> (N, M); not differentiable."""
    return matmul(a, b) if cublaslt.is_large(a.size(0), a.size(1), b.size(1)) else a @ b


def with_bias(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (N, I), weight (O, I), bias (O,) -> x @ weight.T + bias, (N, O); not differentiable."""
    large = cublaslt.is_large(x.size(0), *weight.shape)
    return biased_product(x, weight, bias) if large else F.linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return with_bias(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        d_bias = d_y.sum(0) if ctx.needs_input_grad[2] else None
        return multiplied(d_y, weight), multiplied(d_y.T, x), d_bias


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x @ weight.T + bias`; differentiable once.

    Args:
        x: (..., I).
        weight: (O, I), like the others in bf16 or fp16.
        bias: (O,).

    Returns:
        (..., O).
    """
    y: Tensor = _Linear.apply(x.flatten(0, -2), weight, bias)
    return y.unflatten(0, x.shape[:-1])


@functools.cache
def why_pytorch(dtype: torch.dtype, device: torch.device) -> str:
    """Why products of such factors cannot be done here, in one line; "" when they can.

    Asked for the first time before a step is recorded as a graph.
    """
    return why_not(lambda: beside_pytorch(dtype, device), device)


def beside_pytorch(dtype: torch.dtype, device: torch.device) -> Pairs:
    """Products of factors that lie in all four ways, by themselves and added in fp32 to something, and with a bias; by
    cuBLASLt and by PyTorch."""
    n, k, m = 192, 64, 128
    generator = torch.Generator(device).manual_seed(0)
    bias = torch.randn(m, generator=generator, device=device).to(dtype)
    for a_turned in (False, True):
        for b_turned in (False, True):
            a = torch.randn(*((k, n) if a_turned else (n, k)), generator=generator, device=device).to(dtype)
            b = torch.randn(*((m, k) if b_turned else (k, m)), generator=generator, device=device).to(dtype)
            a, b = a.T if a_turned else a, b.T if b_turned else b
            exact = a.float() @ b.float()
            yield matmul(a, b), exact
            out = torch.ones(n, m, device=device)
            cublaslt.multiply(a, b, out, add=True)
            yield out, exact + 1
    yield biased_product(a, b.T, bias), exact + bias
