"""Which kernels a device trains best with. What they compute is the same up to rounding.

Each of ours is tried before it is taken, anew for each run, and where it fails PyTorch's own operations do the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from engine import cublaslt, linear_cuda, native, perceptron_cuda
from engine.attention import Attend
from engine.config import TrainConfig
from engine.loss import Piece
from engine.norm import PLAIN, NormKernels
from engine.trial import Pairs, why_not

BiasedAttention = Callable[[Tensor, Tensor, int], Tensor]  # see `engine.attention_cuda.own_attention`
Embed = Callable[[Tensor, Tensor, Tensor, torch.dtype], Tensor]  # see `engine.embedding_triton.embed`
Perceptron = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # see `engine.perceptron_cuda.perceptron`
LinearKernel = Callable[[Tensor, Tensor, Tensor], Tensor]  # see `engine.linear_cuda.linear`

HALF = (torch.bfloat16, torch.float16)
HEAD_SIZES = (16, 32, 64, 128)  # that our attention is made for
VERSION = 2  # of what they round: one more whenever a change of theirs changes a last bit
PYTORCH, TRITON, CUBLASLT, C = "PyTorch", "Triton", "cuBLASLt", "C"


@dataclass(frozen=True)
class Native:
    """What a model computes with on a CPU in fp32, in training and otherwise; see `engine.native`.

    Attributes:
        attend: causal attention, where it is `sdpa` without dropout.
        linear: a layer.
        perceptron: a block's.
        loss: some rows of it.
    """

    attend: Attend | None
    linear: LinearKernel
    perceptron: Perceptron
    loss: Piece


@dataclass(frozen=True)
class Kernels:
    """What a model trains with on a device.

    Attributes:
        attention: one that repeats there at no cost in time, if there is one.
        perceptron: one that is faster there than one layer after the other, if there is one.
        linear: the same for a linear layer by itself.
        norm: what norms and adds to the residual stream in training under autocast, if there is any.
        embedding: one that is faster there than PyTorch's, if there is one.
        native: all that a CPU has instead of these, where it has any.
        names: whose they are, and the loss's; empty where all are PyTorch's and nothing else was wanted.
        lacking: a sentence for each of ours that should work on such a device and does not.
    """

    attention: BiasedAttention | None = None
    perceptron: Perceptron | None = None
    linear: LinearKernel | None = None
    norm: NormKernels | None = None
    embedding: Embed | None = None
    native: Native | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()


def choose_kernels(
    config: TrainConfig, dtype: torch.dtype, device: torch.device, *, builds_native: bool = False
) -> Kernels:
    """The kernels to train with; to try them takes a GPU a second or so, once they are compiled less.

    Args:
        config: resolved.
        dtype: of the activations.
        device: with its index.
        builds_native: whether a CPU is to have its own compiled, which takes a second; see
            `engine.accelerate.builds_native`.
    """
    if device.type != "cuda":
        return _native_kernels(config, device) if builds_native else Kernels()
    forget_trials()
    reasons = {
        what: own.why_not(config, dtype, device) for what, own in OURS.items() if own.wanted(config, dtype, device)
    }

    def chosen(what: str) -> Any:
        return OURS[what].get() if reasons.get(what) == "" else None

    return Kernels(
        attention=chosen("attention"),
        perceptron=chosen("perceptron"),
        linear=chosen("products"),
        norm=chosen("norm") or (PLAIN if dtype in HALF else None),
        embedding=chosen("embedding"),
        names={what: PYTORCH if reasons.get(what, "not wanted") else own.by for what, own in OURS.items()},
        lacking=tuple(
            f"The lab's own kernel for the {what} cannot be used here, so a step takes longer: {reason}"
            for what, reason in reasons.items()
            if reason
        ),
    )


_LACKS_NATIVE = "The lab's own kernels for a CPU cannot be compiled here, so a step takes longer:"


def _native_kernels(config: TrainConfig, device: torch.device) -> Kernels:
    if reason := native.why_not(device):
        return Kernels(lacking=(f"{_LACKS_NATIVE} {reason}",))
    fused = config.attention_impl == "sdpa" and config.dropout == 0
    names = {"attention": C if fused else PYTORCH, "products": C, "perceptron": C, "loss": C}
    own = Native(native.attend if fused else None, native.linear, native.perceptron, native.piece)
    return Kernels(native=own, names=names)


def forget_trials() -> None:
    """Let what is remembered from one call to the next be tried anew: the GPU or the disk may have been full."""
    from engine import loss_cuda

    linear_cuda.why_pytorch.cache_clear()
    loss_cuda.row_kernel.cache_clear()


def wants_attention(config: TrainConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether ours is meant for it: its gradients repeat at no cost in time. It has no dropout, nor does cuDNN's take a
    single position."""
    size = config.model.width // config.model.heads
    suits = dtype in HALF and size in HEAD_SIZES and config.model.context_length > 1
    return suits and config.attention_impl == "sdpa" and config.dropout == 0


def wants_products(config: TrainConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether ours are meant for it."""
    return cublaslt.pays(dtype, config.model.width, device)


def wants_perceptron(config: TrainConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether ours is meant for it. Layers in fp8 have products of their own."""
    return config.precision != "fp8" and wants_products(config, dtype, device)


def _attention_trial(config: TrainConfig, dtype: torch.dtype, device: torch.device) -> Pairs:
    from engine import attention_cuda  # needs Triton

    return attention_cuda.beside_pytorch(config.model.width // config.model.heads, dtype, device)


def _perceptron_trial(config: TrainConfig, dtype: torch.dtype, device: torch.device) -> Pairs:
    rows = config.batch_size * config.model.context_length
    return perceptron_cuda.beside_pytorch(rows, config.model.width, dtype, device)


def _stream(dtype: torch.dtype) -> torch.dtype:
    """Of the residual stream, by that of other activations; see `engine.model.GPT.hidden`."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def _embedding_trial(config: TrainConfig, dtype: torch.dtype, device: torch.device) -> Pairs:
    from engine import embedding_triton  # needs Triton

    return embedding_triton.beside_pytorch(config.model.width, _stream(dtype), device)


def _norm_trial(config: TrainConfig, dtype: torch.dtype, device: torch.device) -> Pairs:
    from engine import norm_triton  # needs Triton

    return norm_triton.beside_pytorch(config.model.width, _stream(dtype), dtype, device)


def _why_not_loss(config: TrainConfig, dtype: torch.dtype, device: torch.device) -> str:
    from engine.loss_cuda import row_kernel  # which the loss asks itself for what to use

    return row_kernel(dtype, device)[1]


def _tried(
    trial: Callable[[TrainConfig, torch.dtype, torch.device], Pairs],
) -> Callable[[TrainConfig, torch.dtype, torch.device], str]:
    return lambda config, dtype, device: why_not(partial(trial, config, dtype, device), device)


@dataclass(frozen=True)
class _Own:
    """One of our kernels.

    Attributes:
        by: what it is made with.
        wanted: whether it is meant for a run.
        why_not: tries it for a run, and says why it cannot be used; "" when it can.
        place: the module that it is in, which may need Triton, and its name there.
    """

    by: str
    wanted: Callable[[TrainConfig, torch.dtype, torch.device], bool]
    why_not: Callable[[TrainConfig, torch.dtype, torch.device], str]
    place: tuple[str, str]

    def get(self) -> Any:
        """Itself."""
        module, name = self.place
        return getattr(import_module(f"engine.{module}"), name)


OURS = {
    "attention": _Own(TRITON, wants_attention, _tried(_attention_trial), ("attention_cuda", "own_attention")),
    "products": _Own(
        CUBLASLT,
        wants_products,
        lambda config, dtype, device: linear_cuda.why_pytorch(dtype, device),
        ("linear_cuda", "linear"),
    ),
    "perceptron": _Own(CUBLASLT, wants_perceptron, _tried(_perceptron_trial), ("perceptron_cuda", "perceptron")),
    "norm": _Own(TRITON, lambda config, dtype, device: dtype in HALF, _tried(_norm_trial), ("norm_triton", "KERNELS")),
    "embedding": _Own(
        TRITON,
        lambda config, dtype, device: config.dropout == 0,
        _tried(_embedding_trial),
        ("embedding_triton", "embed"),
    ),
    "loss": _Own(TRITON, lambda *_: True, _why_not_loss, ("loss_triton", "compiled_rows")),
}
