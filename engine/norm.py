"""A block's layer norm under autocast on a GPU: it keeps what it normed as it is, and hands it on.

PyTorch norms in fp32 there, so it makes a copy of a bf16 residual stream, keeps that for the backward pass, and
converts its result; and the gradients of the norm and of the stream beside it are added up by an operation of their
own. Here what is kept is the stream itself, and one operation makes the gradient of both ways. `engine.norm_triton`
does each pass by one kernel, but for adding up the weights' gradients of its programs. A compiler does as well by
itself, and is left alone.

Shapes: N rows, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EPSILON = 1e-5  # nn.LayerNorm's


class NormKernels(NamedTuple):
    """What does the work.

    Attributes:
        forward: x (N, D), weight and bias (D,), a dtype -> the norm (N, D) in that dtype, the rows' means (N,) and
            1 / standard deviations (N,).
        backward: gradient of the norm (N, D), x, means, 1 / standard deviations, weight, gradient of x by its other way
            (N, D) -> the whole gradient of x (N, D), and those of weight and bias (D,), in fp32.
    """

    forward: Callable[[Tensor, Tensor, Tensor, torch.dtype], tuple[Tensor, Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def _plain_forward(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    normed, means, rates = torch.native_layer_norm(x.float(), x.shape[1:], weight, bias, EPSILON)
    return normed.to(dtype), means[:, 0], rates[:, 0]


def _plain_backward(
    d_normed: Tensor, x: Tensor, means: Tensor, rates: Tensor, weight: Tensor, d_stream: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    d_x, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
        d_normed.float(), x.float(), x.shape[1:], means[:, None], rates[:, None], weight, weight, [True, True, True]
    )
    return (d_x + d_stream).to(x.dtype), d_weight, d_bias


PLAIN = NormKernels(_plain_forward, _plain_backward)


class _NormBeside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, kernels: NormKernels) -> Any:
        normed, means, rates = kernels.forward(x.flatten(0, -2), weight, bias, dtype)
        ctx.save_for_backward(x, weight, means, rates)
        ctx.backward_kernel = kernels.backward
        return x, normed.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_stream: Tensor, d_normed: Tensor) -> Any:
        x, weight, means, rates = ctx.saved_tensors
        d_normed, rows, d_stream = (tensor.flatten(0, -2) for tensor in (d_normed, x, d_stream))
        d_x, d_weight, d_bias = ctx.backward_kernel(d_normed, rows, means, rates, weight, d_stream)
        return d_x.view_as(x), d_weight, d_bias, None, None


def norm_beside(
    x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, kernels: NormKernels = PLAIN
) -> tuple[Tensor, Tensor]:
    """The residual stream as it goes on, and its layer norm; differentiable once.

    Args:
        x: (..., D).
        weight: of the norm, (D,), in fp32.
        bias: of the norm, (D,), in fp32.
        dtype: of the norm's result.
        kernels: what does the work.

    Returns:
        `x`, and its norm, (..., D).
    """
    both: tuple[Tensor, Tensor] = _NormBeside.apply(x, weight, bias, dtype, kernels)
    return both
