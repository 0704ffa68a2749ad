"""Which kernels a device trains best with. What they compute is the same up to rounding.

Each is tried before it is taken; what works on a machine works there always, so a resumed run gets the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from engine.attention import Attend, fused_attention

Perceptron = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # see `engine.perceptron_cuda.perceptron`


def attention_kernel(size: int, dropout: float, device: torch.device, dtype: torch.dtype) -> Attend:
    """The fused attention to train with: on a GPU our own where it works, as its gradients repeat at no cost in time.

    Args:
        size: of a head.
        dtype: of the activations.
    """
    if device.type == "cuda" and dropout == 0 and find_spec("triton"):
        from engine import attention_cuda

        if attention_cuda.supports(size, dtype):
            return attention_cuda.own_attention
    return fused_attention


def perceptron_kernel(width: int, device: torch.device, dtype: torch.dtype) -> Perceptron | None:
    """A perceptron that is faster there than one layer after the other, if there is one."""
    if device.type == "cuda":
        from engine import perceptron_cuda

        if perceptron_cuda.supports(width, dtype):
            return perceptron_cuda.perceptron
    return None
