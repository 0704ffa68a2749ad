"""Which kernels a device trains best with. What they compute is the same up to rounding.

Each of ours is tried before it is taken, and where it fails PyTorch's own operations do the work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.attention import Attend, fused_attention
from engine.config import TrainConfig
from engine.trial import Pairs, why_not

Perceptron = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # see `engine.perceptron_cuda.perceptron`

HALF = (torch.bfloat16, torch.float16)
HEAD_SIZES = (16, 32, 64, 128)  # that our attention is made for
HOPPER = (9, 0)  # where cuBLASLt's GELU was measured, and pays
PYTORCH, TRITON, CUBLASLT = "PyTorch", "Triton", "cuBLASLt"


@dataclass(frozen=True)
class Kernels:
    """What a model trains with on a device.

    Attributes:
        attend: the fused attention.
        perceptron: one that is faster there than one layer after the other, if there is one.
        names: whose they are, and the loss's, for the record: other ones round otherwise. {} on a CPU.
        lacking: a sentence for each of ours that should work on such a device and does not.
    """

    attend: Attend = fused_attention
    perceptron: Perceptron | None = None
    names: tuple[tuple[str, str], ...] = ()
    lacking: tuple[str, ...] = ()


def choose_kernels(config: TrainConfig, dtype: torch.dtype, device: torch.device) -> Kernels:
    """The kernels to train with; they are tried here the first time, which takes a second or so on a GPU.

    Args:
        config: resolved.
        dtype: of the activations.
        device: with its index.
    """
    if device.type != "cuda":
        return Kernels()
    model = config.model
    size = 0 if config.attention_impl == "manual" or config.dropout else model.width // model.heads
    attend, no_attention = _attention(size, dtype, device)
    width = 0 if config.precision == "fp8" else model.width
    perceptron, no_perceptron = _perceptron(config.batch_size * model.context_length, width, dtype, device)
    from engine.loss_cuda import row_kernel

    _, no_rows = row_kernel(dtype, device)
    names = {
        "attention": PYTORCH if attend is fused_attention else TRITON,
        "perceptron": CUBLASLT if perceptron else PYTORCH,
        "loss": PYTORCH if no_rows else TRITON,
    }
    reasons = {"attention": no_attention, "perceptron": no_perceptron, "loss": no_rows}
    lacking = [
        f"The lab's own kernel for the {what} cannot be used here, so a step takes longer: {reason}"
        for what, reason in reasons.items()
        if reason
    ]
    return Kernels(attend, perceptron, tuple(names.items()), tuple(lacking))


@functools.cache
def _attention(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Attend, str]:
    """The attention for heads of a size, and why it is not ours where it should be.

    Ours has gradients that repeat at no cost in time. It has no dropout, and writes out no weights: size 0 stands for
    both.
    """
    if dtype not in HALF or size not in HEAD_SIZES:
        return fused_attention, ""

    def beside_pytorch() -> Pairs:
        from engine import attention_cuda

        return attention_cuda.beside_pytorch(size, dtype, device)

    if reason := why_not(beside_pytorch, device):
        return fused_attention, reason
    from engine.attention_cuda import own_attention

    return own_attention, ""


@functools.cache
def _perceptron(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Perceptron | None, str]:
    """The perceptron, if there is one that pays, and why there is none where there should be.

    Args:
        rows: positions of a batch.
        width: D; 0 where the layers multiply in 8 bits.
    """
    from engine import perceptron_cuda

    suits = dtype in HALF and width > 0 and width % perceptron_cuda.ALIGNED == 0
    if not suits or torch.cuda.get_device_capability(device) != HOPPER:
        return None, ""
    reason = why_not(lambda: perceptron_cuda.beside_pytorch(rows, width, dtype, device), device)
    return (None, reason) if reason else (perceptron_cuda.perceptron, "")
