"""Which kernels a device trains best with. What they compute is the same up to rounding.

Each is tried before it is taken, and where it fails PyTorch's own operations do the work, after a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

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
    if device.type == "cuda" and dropout == 0:
        try:
            from engine import attention_cuda
        except Exception as error:  # no Triton, or one that this machine cannot load
            warnings.warn(f"Triton cannot be used here, so attention takes longer: {error}", stacklevel=2)
            return fused_attention
        if attention_cuda.supports(size, dtype, device):
            return attention_cuda.own_attention
    return fused_attention


def perceptron_kernel(rows: int, width: int, device: torch.device, dtype: torch.dtype) -> Perceptron | None:
    """A perceptron that is faster there than one layer after the other, if there is one.

    Args:
        rows: positions of a batch.
        dtype: of the activations.
    """
    if device.type == "cuda":
        from engine import perceptron_cuda

        if perceptron_cuda.supports(rows, width, dtype, device):
            return perceptron_cuda.perceptron
    return None
