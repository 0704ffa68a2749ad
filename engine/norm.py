"""A layer norm of the residual stream and of what is added to it, under autocast on a GPU: one operation each way.

PyTorch norms in fp32 there, so it makes a copy of a bf16 stream, keeps that for the backward pass, and converts its
result; it reads the sum that another operation has written, and adds the gradients of the norm and of the stream beside
it by one more. Here the sum and its norm are made at once, what is kept is the stream itself, and one operation makes
the gradient of both ways. That is also the gradient of what was added, so its sum over all rows is that of the bias of
the layer that made it, for which all of it would have to be read once more. `engine.norm_triton` does each pass by one
kernel, but for adding up the sums of its programs.

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
        forward: x (N, D), what is added to it (N, D) or None, weight and bias (D,), a dtype -> their sum (N, D), or x
            itself; its norm (N, D) in that dtype; the rows' means (N,) and 1 / standard deviations (N,).
        backward: gradient of the norm (N, D), the sum, means, 1 / standard deviations, weight, gradient of the sum by
            its other way (N, D) or None -> the whole gradient of the sum (N, D); and in fp32, (D,) each, those of
            weight and bias, and the first added up over all rows.
    """

    forward: Callable[[Tensor, Tensor | None, Tensor, Tensor, torch.dtype], tuple[Tensor, Tensor, Tensor, Tensor]]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor, Tensor]]


def _plain_forward(
    x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = x if added is None else x + added
    normed, means, rates = torch.native_layer_norm(x.float(), x.shape[1:], weight, bias, EPSILON)
    return x, normed.to(dtype), means[:, 0], rates[:, 0]


def _plain_backward(
    d_normed: Tensor, x: Tensor, means: Tensor, rates: Tensor, weight: Tensor, d_stream: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_x, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
        d_normed.float(), x.float(), x.shape[1:], means[:, None], rates[:, None], weight, weight, [True, True, True]
    )
    d_x = d_x if d_stream is None else d_x + d_stream
    return d_x.to(x.dtype), d_weight, d_bias, d_x.sum(0)


PLAIN = NormKernels(_plain_forward, _plain_backward)


class Added(NamedTuple):
    """What a branch adds to the residual stream.

    Attributes:
        values: (..., D), with the bias of the layer that made them.
        bias: that bias, (D,), if the gradient of `values` does not reach it through that layer; else None.
    """

    values: Tensor
    bias: Tensor | None = None


class _AddAndNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, added: Tensor | None, added_bias: Tensor | None, weight: Tensor, bias: Tensor,
        dtype: torch.dtype, kernels: NormKernels, goes_on: bool,
    ) -> Any:  # fmt: skip
        stream, normed, means, rates = kernels.forward(x, added, weight, bias, dtype)
        ctx.save_for_backward(stream, weight, means, rates)
        ctx.kernel, ctx.goes_on = kernels.backward, goes_on
        ctx.added = None if added is None else added.dtype
        ctx.added_bias = None if added_bias is None else added_bias.dtype
        return (stream, normed) if goes_on else normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        stream, weight, means, rates = ctx.saved_tensors
        d_stream = gradients[0] if ctx.goes_on else None
        d_x, d_weight, d_bias, total = ctx.kernel(gradients[-1], stream, means, rates, weight, d_stream)
        d_added = None if ctx.added is None else d_x.to(ctx.added)
        d_added_bias = None if ctx.added_bias is None else total.to(ctx.added_bias)
        return d_x, d_added, d_added_bias, d_weight, d_bias, None, None, None


def add_and_norm(
    x: Tensor,
    added: Added | None,
    weight: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
    kernels: NormKernels = PLAIN,
    *,
    goes_on: bool = True,
) -> tuple[Tensor, Tensor]:
    """The residual stream with something added, and its layer norm; differentiable once.

    Args:
        x: (..., D).
        added: what is added to it, if anything.
        weight: of the norm, (D,), in fp32.
        bias: of the norm, (D,), in fp32.
        dtype: of the norm's result.
        kernels: what does the work.
        goes_on: whether the stream is wanted beside its norm.

    Returns:
        The stream, (..., D), in x's dtype, or x where it does not go on; and its norm, (..., D).
    """
    rows = x.flatten(0, -2)
    values, layer_bias = (None, None) if added is None else (added.values.flatten(0, -2), added.bias)
    found = _AddAndNorm.apply(rows, values, layer_bias, weight, bias, dtype, kernels, goes_on)
    stream, normed = found if goes_on else (rows, found)
    return stream.view_as(x), normed.view_as(x)
