"""Which kernels a device trains best with. What they compute is the same up to rounding.

Each of ours is tried before it is taken, anew for each run, and where it fails PyTorch's own operations do the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from engine.config import TrainConfig
from engine.norm import PLAIN, NormKernels
from engine.trial import Pairs, why_not

BiasedAttention = Callable[[Tensor, Tensor, int], Tensor]  # see `engine.attention_cuda.own_attention`
Perceptron = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # see `engine.perceptron_cuda.perceptron`

HALF = (torch.bfloat16, torch.float16)
HEAD_SIZES = (16, 32, 64, 128)  # that our attention is made for
HOPPER = (9, 0)  # where cuBLASLt's GELU was measured, and pays
PYTORCH, TRITON, CUBLASLT = "PyTorch", "Triton", "cuBLASLt"


@dataclass(frozen=True)
class Kernels:
    """What a model trains with on a device.

    Attributes:
        attention: one that repeats there at no cost in time, if there is one.
        perceptron: one that is faster there than one layer after the other, if there is one.
        norm: what norms in uncompiled training steps under autocast, if there is any.
        names: whose they are, and the loss's; empty on a CPU.
        lacking: a sentence for each of ours that should work on such a device and does not.
    """

    attention: BiasedAttention | None = None
    perceptron: Perceptron | None = None
    norm: NormKernels | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()


def choose_kernels(config: TrainConfig, dtype: torch.dtype, device: torch.device) -> Kernels:
    """The kernels to train with; to try them takes a GPU a second or so, once they are compiled less.

    Args:
        config: resolved.
        dtype: of the activations.
        device: with its index.
    """
    if device.type != "cuda":
        return Kernels()
    reasons = {}
    attention: BiasedAttention | None = None
    if wants_attention(config, dtype):
        reasons["attention"] = why_not(partial(_attention_trial, config, dtype, device), device)
        if not reasons["attention"]:
            from engine.attention_cuda import own_attention as attention
    perceptron: Perceptron | None = None
    if wants_perceptron(config, dtype, device):
        reasons["perceptron"] = why_not(partial(_perceptron_trial, config, dtype, device), device)
        if not reasons["perceptron"]:
            from engine.perceptron_cuda import perceptron
    norm: NormKernels | None = None
    if dtype in HALF:
        norm = PLAIN
        reasons["norm"] = why_not(partial(_norm_trial, config, dtype, device), device)
        if not reasons["norm"]:
            from engine.norm_triton import KERNELS as norm
    from engine.loss_cuda import row_kernel

    row_kernel.cache_clear()  # its last answer may have been of a GPU that was full
    _, reasons["loss"] = row_kernel(dtype, device)
    ours = {"attention": TRITON, "perceptron": CUBLASLT, "norm": TRITON, "loss": TRITON}
    return Kernels(
        attention,
        perceptron,
        norm,
        {what: PYTORCH if reasons.get(what, "not wanted") else whose for what, whose in ours.items()},
        tuple(
            f"The lab's own kernel for the {what} cannot be used here, so a step takes longer: {reason}"
            for what, reason in reasons.items()
            if reason
        ),
    )


def wants_attention(config: TrainConfig, dtype: torch.dtype) -> bool:
    """Whether ours is meant for it: its gradients repeat at no cost in time. It has no dropout, nor does cuDNN's take a
    single position."""
    size = config.model.width // config.model.heads
    suits = dtype in HALF and size in HEAD_SIZES and config.model.context_length > 1
    return suits and config.attention_impl == "sdpa" and config.dropout == 0


def wants_perceptron(config: TrainConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether ours is meant for it. Layers in fp8 have products of their own."""
    from engine.perceptron_cuda import ALIGNED

    suits = config.precision != "fp8" and dtype in HALF and config.model.width % ALIGNED == 0
    return suits and torch.cuda.get_device_capability(device) == HOPPER


def _attention_trial(config: TrainConfig, dtype: torch.dtype, device: torch.device) -> Pairs:
    from engine import attention_cuda  # needs Triton

    return attention_cuda.beside_pytorch(config.model.width // config.model.heads, dtype, device)


def _perceptron_trial(config: TrainConfig, dtype: torch.dtype, device: torch.device) -> Pairs:
    from engine import perceptron_cuda

    rows = config.batch_size * config.model.context_length
    return perceptron_cuda.beside_pytorch(rows, config.model.width, dtype, device)


def _norm_trial(config: TrainConfig, dtype: torch.dtype, device: torch.device) -> Pairs:
    from engine import norm_triton  # needs Triton

    stream = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    return norm_triton.beside_pytorch(config.model.width, stream, dtype, device)
