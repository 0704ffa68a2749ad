"""GPT-2's architecture, small enough to read in one sitting.

Knows nothing about text, data, optimizers or runs. Shapes are in the margin: B sequences, T positions, D width,
H heads, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from engine import float8
from engine.attention import Attend, fused_attention, manual_attention
from engine.config import ModelConfig
from engine.kernels import BiasedAttention, Embed, Kernels, LinearKernel, Perceptron
from engine.loss import Piece, linear_cross_entropy, plain_piece
from engine.norm import PLAIN, Added, NormKernels, add_and_norm


class Linear(nn.Linear):
    """PyTorch's, without its initial weights: `GPT.initialize` or a checkpoint sets them."""

    kernel: LinearKernel | None = None  # stands in for it in training, under autocast
    native: LinearKernel | None = None  # stands in for it on a CPU

    def reset_parameters(self) -> None: ...

    def forward(self, x: Tensor) -> Tensor:
        return self.with_bias(x, self.bias)

    def with_bias(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """As `forward`, but for the bias."""
        if self.kernel and bias is not None and self.training and torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            return self.kernel(x.to(dtype), self.weight.to(dtype), bias.to(dtype))
        if self.native and bias is not None:
            return self.native(x, self.weight, bias)
        return F.linear(x, self.weight, bias)


class Float8Linear(Linear):
    """The same weights, multiplied in 8 bits."""

    def with_bias(self, x: Tensor, bias: Tensor | None) -> Tensor:
        assert bias is not None
        return float8.linear(x, self.weight, bias)


class Embedding(nn.Embedding):
    """PyTorch's, without its initial weights."""

    def reset_parameters(self) -> None: ...


class Norm(nn.LayerNorm):
    """PyTorch's, and of a residual stream to which something is added first."""

    kernels: NormKernels | None = None  # stand in for both in training, under autocast

    def by_kernels(self) -> bool:
        """Whether they do, here and now. PyTorch's own operations are left to a compiler, which does as well."""
        wanted = self.kernels is not None and self.training and torch.is_autocast_enabled("cuda")
        return wanted and not (self.kernels is PLAIN and is_compiling())

    def after(self, x: Tensor, added: Added | None = None, *, goes_on: bool = True) -> tuple[Tensor, Tensor]:
        """The stream with `added`, and its norm, (B, T, D); the first is arbitrary unless it `goes_on`."""
        if self.kernels and self.by_kernels() and not (added is None and is_compiling()):
            dtype = torch.get_autocast_dtype("cuda")
            return add_and_norm(x, added, self.weight, self.bias, dtype, self.kernels, goes_on=goes_on)
        x = x if added is None else x + added.values
        return x, self(x)


class Attention(nn.Module):
    """Causal multi-head self-attention, written out (`manual`) or by a fused kernel (`sdpa`)."""

    def __init__(self, config: ModelConfig, dropout: float, implementation: str, linear: type[Linear]) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = dropout
        self.attend: Attend = manual_attention if implementation == "manual" else fused_attention
        self.kernel: BiasedAttention | None = None  # stands in for it in training, under autocast, without dropout
        self.qkv = linear(config.width, 3 * config.width)
        self.projection = linear(config.width, config.width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); with this bias in the last layer instead of its own."""
        y = self.projection.with_bias(self.inner(x), self.projection.bias if bias is None else bias)
        return F.dropout(y, self.dropout, self.training)

    def inner(self, x: Tensor) -> Tensor:
        """All but the last layer: (B, T, D) -> (B, T, D)."""
        if self.kernel and self.training and torch.is_autocast_enabled("cuda"):
            bias = self.qkv.bias  # whose gradient the kernel makes
            return self.kernel(self.qkv.with_bias(x, bias.detach()), bias, self.heads)
        return self.attend(self.qkv(x), self.heads, self.dropout if self.training else 0.0)


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each added to the residual stream after a norm."""

    def __init__(self, config: ModelConfig, dropout: float, implementation: str, linear: type[Linear]) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm1 = Norm(config.width)
        self.attention = Attention(config, dropout, implementation, linear)
        self.norm2 = Norm(config.width)
        self.expand = linear(config.width, 4 * config.width)
        self.contract = linear(4 * config.width, config.width)
        self.fused_perceptron: Perceptron | None = None  # stands in for the layers in training, under autocast
        self.native_perceptron: Perceptron | None = None  # stands in for them on a CPU

    def forward(self, x: Tensor) -> Tensor:
        """The residual stream (B, T, D) before and after."""
        x, normed = self.before_perceptron(x)
        return x + self.perceptron(normed, self.contract.bias)

    def unfinished(self, x: Tensor, added: Added | None) -> tuple[Tensor, Added]:
        """As `forward`, but what comes and goes is still to be added to the stream: the next norm does both at once."""
        x, normed = self.before_perceptron(x, added)
        return x, self.branch(self.perceptron, normed, self.contract.bias)

    def before_perceptron(self, x: Tensor, added: Added | None = None) -> tuple[Tensor, Tensor]:
        """The stream after attention, and its norm."""
        x, normed = self.norm1.after(x, added)
        return self.norm2.after(x, self.branch(self.attention, normed, self.attention.projection.bias))

    def branch(self, layers: Callable[[Tensor, Tensor], Tensor], x: Tensor, bias: Tensor) -> Added:
        """What layers add to the stream; the next norm's kernels make the gradient of their last bias, unless dropout
        comes between."""
        if self.norm2.by_kernels() and not self.dropout:
            return Added(layers(x, bias.detach()), bias)
        return Added(layers(x, bias))

    def perceptron(self, x: Tensor, bias: Tensor) -> Tensor:
        """Expand, GELU, contract: (B, T, D) -> (B, T, D), with this bias in the last layer."""
        if self.fused_perceptron and self.training and torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            w1, b1, w2 = self.expand.weight, self.expand.bias, self.contract.weight
            y = self.fused_perceptron(x.to(dtype), w1.to(dtype), b1.to(dtype), w2.to(dtype), bias.to(dtype))
        elif self.native_perceptron:
            y = self.native_perceptron(x, self.expand.weight, self.expand.bias, self.contract.weight, bias)
        else:
            hidden = F.gelu(self.expand(x), approximate="tanh")  # (B, T, 4D)
            y = self.contract.with_bias(hidden, bias)
        return F.dropout(y, self.dropout, self.training)


class GPT(nn.Module):
    """A decoder-only transformer with learned positions, pre-norm blocks and GELU, as GPT-2 is.

    Its weights are arbitrary until `initialize` draws them or a checkpoint is loaded.

    Args:
        config: the architecture.
        dropout: share of activations dropped in training.
        attention_impl: `sdpa` or `manual`; both give the same result.
        gradient_checkpointing: recompute each block in the backward pass instead of keeping its activations.
        float8: whether the blocks' linear layers multiply in 8 bits; see `engine.float8`. Meant for bf16 autocast.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dropout: float = 0.0,
        attention_impl: str = "sdpa",
        gradient_checkpointing: bool = False,
        float8: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.dropout = dropout
        self.gradient_checkpointing = gradient_checkpointing
        self.compiled: Callable[[Tensor], Tensor] | None = None  # stands in for `stack` in training
        self.embed: Embed | None = None  # stands in for both embeddings in training, without dropout
        self.loss_piece: Piece = plain_piece  # does some rows of the loss at a time, on a CPU
        self.token_embedding = Embedding(config.vocabulary_size, config.width)
        self.position_embedding = Embedding(config.context_length, config.width)
        linear = Float8Linear if float8 else Linear
        self.blocks = nn.ModuleList(Block(config, dropout, attention_impl, linear) for _ in range(config.layers))
        self.norm = Norm(config.width)
        self.head = Linear(config.width, config.vocabulary_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.token_embedding.weight

    def use_kernels(self, kernels: Kernels) -> None:
        """Train with what is best for a device. `manual` attention and fp8 layers stay."""
        native = kernels.native
        self.loss_piece = native.loss if native else plain_piece
        for block in cast(list[Block], [*self.blocks]):
            block.attention.qkv.native = block.attention.projection.native = native.linear if native else None
            block.native_perceptron = native.perceptron if native else None
            if block.attention.attend is not manual_attention:
                block.attention.attend = (native and native.attend) or fused_attention
                block.attention.kernel = kernels.attention
            if not isinstance(block.expand, Float8Linear):
                block.fused_perceptron = kernels.perceptron
                block.attention.qkv.kernel = block.attention.projection.kernel = kernels.linear
            block.norm1.kernels = block.norm2.kernels = kernels.norm
        self.norm.kernels = kernels.norm
        self.embed = kernels.embedding

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw the initial weights from a generator of their own, so that nothing else decides them.

        As in GPT-2, matrices get a standard deviation of 0.02, those that write to the residual stream
        0.02/√(2·layers). Token embeddings get 0.5/√width (0.018 for `medium`, close to GPT-2's 0.02) and the last norm
        a gain of 0.5: the first logits then have a variance of 1/16 whatever the width, and the loss starts at
        ln(vocabulary) + 1/32. GPT-2's own values start a 1024-wide model 2% too high. Smaller embeddings under a gain
        of 1 would start there too, but in a sweep they made the loss jump by several nats within a hundred steps.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif "norm" in name:
                weight.fill_(0.5 if name == "norm.weight" else 1.0)
            else:
                weight.normal_(0.0, self._initial_std(name), generator=generator)

    def _initial_std(self, name: str) -> float:
        if name.startswith(("token_embedding", "head")):
            return 0.5 / math.sqrt(self.config.width)
        if name.startswith("position_embedding"):
            return 0.25 / math.sqrt(self.config.width)  # half of the tokens', as in GPT-2
        if name.endswith(("projection.weight", "contract.weight")):
            return 0.02 / math.sqrt(2 * self.config.layers)
        return 0.02

    def hidden(self, tokens: Tensor) -> Tensor:
        """The final hidden states.

        Args:
            tokens: ids, (B, T) with T at most the context length.

        Returns:
            (B, T, D), after the last norm.
        """
        kind = tokens.device.type
        in_bf16 = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
        if self.embed and self.training and not self.dropout:
            stream = torch.bfloat16 if in_bf16 else torch.float32
            x = self.embed(tokens, self.token_embedding.weight, self.position_embedding.weight, stream)  # (B, T, D)
        else:
            positions = torch.arange(tokens.size(1), device=tokens.device)
            x = self.token_embedding(tokens) + self.position_embedding(positions)
            x = F.dropout(x, self.dropout, self.training)
            x = x.bfloat16() if in_bf16 else x  # the residual stream too, as in llm.c; fp16's range is too small for it
        run = self.compiled if self.compiled and self.training else self.stack
        return run(x)

    def stack(self, x: Tensor) -> Tensor:
        """All blocks and the last norm: (B, T, D) -> (B, T, D)."""
        added: Added | None = None
        for block in cast(list[Block], [*self.blocks]):
            if self.gradient_checkpointing and self.training:  # which keeps what goes from block to block: one tensor
                keep_dice = self.dropout > 0  # else nothing is drawn, and a CUDA graph could not keep them
                x = cast(Tensor, checkpoint(block, x, use_reentrant=False, preserve_rng_state=keep_dice))
            else:
                x, added = block.unfinished(x, added)
        _, normed = self.norm.after(x, added, goes_on=False)
        return normed.to(x.dtype)  # norms give fp32 under autocast; the output layer reads bf16

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits for the token after each position: ids (B, T) -> (B, T, V)."""
        return cast(Tensor, self.head(self.hidden(tokens)))

    def loss(self, tokens: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats, averaged (or with `reduction="sum"` added up) over all B·T targets.

        Args:
            tokens: ids, (B, T).
            targets: the id after each of them, (B, T).
        """
        targets = targets.flatten()
        hidden = self.hidden(tokens).flatten(0, 1)
        total = linear_cross_entropy(hidden, self.head.weight, targets, self.loss_piece)
        return total / len(targets) if reduction == "mean" else total
