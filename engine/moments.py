"""What one training step holds, moment by moment, worked out from its settings: the arithmetic of `engine.memory`.

A step holds the most at one of a few moments; each is added up from what autograd has saved by then and what the
operation at hand holds besides. In the formulas B is the batch, T the context, D the width, L the layers, H the heads,
V the vocabulary, N = B·T the tokens of one forward pass, S = N·D the values of one residual stream, A = B·H·T² those of
one attention matrix, P the weights; a is the bytes of an activation, 4 in fp32 and 2 under autocast, e those of one as
a block's products read it, a or in fp8 1, and k those of one that a norm keeps. All results are in bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from engine.config import TrainConfig

# How the loss is cut up, said here for it and for the estimate, as this module costs nothing to import.
LOSS_BLOCK_BYTES = 13 * 2**27  # of logits on a GPU: 16,384 rows of bf16, enough to fill the largest
LARGE_PRODUCT = 1e10  # operations of a product from which on `engine.cublaslt` chooses its kernel: 15 µs of an H100
PRODUCT_SCRATCH = 40 * 2**20  # that such kernels take, as measured
LOSS_PADDING = 64  # on a GPU the vocabulary is padded to a multiple of it
CPU_LOSS_ROWS = 512  # of a block on a CPU: 100 MB of logits for GPT-2's vocabulary


def cpu_loss_rows(rows: int) -> int:
    """Of a block on a CPU, where there are so many rows: blocks have one size, at most CPU_LOSS_ROWS."""
    blocks = max(1, math.ceil(rows / CPU_LOSS_ROWS))
    return max(1, math.ceil(rows / blocks))


@dataclass(frozen=True)
class Moment:
    """What a step holds at one moment, besides weights and optimizer states."""

    casts: float = 0
    gradients: float = 0
    activations: float = 0
    logits: float = 0

    @property
    def total(self) -> float:
        """All of it."""
        return self.casts + self.gradients + self.activations + self.logits


@dataclass(frozen=True)
class Step:
    """The sizes of one training step.

    Attributes:
        config: the settings.
        processes: that train together; the sizes are of each.
    """

    config: TrainConfig
    processes: int = 1

    @cached_property
    def a(self) -> int:
        """Bytes of an activation of a matrix product."""
        return 4 if self.config.precision == "fp32" else 2

    @property
    def r(self) -> int:
        """Bytes of a value of the residual stream: it is kept in bf16 where that is the precision, else in fp32."""
        return 2 if self.config.precision in ("bf16", "fp8") else 4

    @cached_property
    def e(self) -> int:
        """Bytes of a value as a block's matrix products read it: a, or in fp8 1."""
        return 1 if self.config.precision == "fp8" else self.a

    @property
    def k(self) -> int:
        """Bytes of a value that a block's norm keeps: under autocast of the stream as it is, see `engine.norm`."""
        return self.r

    @property
    def mixed(self) -> bool:
        """Whether autocast is at work."""
        return self.a == 2

    @property
    def mask(self) -> int:
        """Bytes of a dropout mask's value, where there is dropout."""
        return int(self.config.dropout > 0)

    @cached_property
    def n(self) -> int:
        """N, tokens of a forward pass."""
        return self.config.batch_size * self.config.model.context_length

    @cached_property
    def s(self) -> int:
        """S, values of one residual stream."""
        return self.n * self.config.model.width

    @cached_property
    def scores(self) -> int:
        """A, values of one attention matrix."""
        return self.n * self.config.model.heads * self.config.model.context_length

    @cached_property
    def vocabulary(self) -> int:
        """V·D, weights of the output layer."""
        return self.config.model.vocabulary_size * self.config.model.width

    @cached_property
    def block(self) -> int:
        """12·D² + 13·D, weights of a block."""
        d = self.config.model.width
        return 12 * d * d + 13 * d

    @cached_property
    def block_casts(self) -> int:
        """Copies of a block's matrices as the products read them, e·12·D²; the backward pass needs them, the biases' it
        doesn't."""
        return 12 * self.e * self.config.model.width**2 if self.mixed else 0

    # ------------------------------------------------------------------------------------------ the forward pass

    @cached_property
    def attention_saved(self) -> int:
        """What attention keeps of its inner part, between q, k, v and its output.

        `sdpa` keeps the logarithm of each row's sum, 4·B·H·T, and its result, a·S, where `projection` does not read it
        as it is. `manual` keeps the softmax's fp32 result, 4·A, and the
        operand of the product with v: its copy under autocast, 2·A, or what dropout made of it, 4·A; dropout's mask, A;
        and the mask of the future, T².
        """
        c, drop = self.config, self.config.dropout > 0
        if c.attention_impl == "sdpa":
            result = self.a * self.s if self.e < self.a else 0
            return 4 * c.batch_size * c.model.heads * c.model.context_length + result
        operand = 2 if self.mixed else 4 if drop else 0
        return (4 + operand + drop) * self.scores + c.model.context_length**2

    @cached_property
    def mlp_saved(self) -> int:
        """What the perceptron's half of a block keeps.

        The norm's input, k·S, with mean and deviation, 8·N; its result as `expand` reads it, e·S; before the
        GELU, 4·a·S, and after it, as `contract` reads it, 4·e·S; dropout's mask, S.
        """
        return (self.k + 4 * self.a + 5 * self.e + self.mask) * self.s + 8 * self.n

    @cached_property
    def block_saved(self) -> int:
        """What a block keeps for its backward pass.

        Attention's half: the norm's input, k·S, mean and deviation, 8·N, its result, e·S, q, k and v, 3·a·S, the inner
        part, its result as `projection` reads it, e·S, and dropout's mask, S; then the perceptron's half.
        """
        half = (self.k + 3 * self.a + 2 * self.e + self.mask) * self.s + 8 * self.n
        return half + self.attention_saved + self.mlp_saved

    @cached_property
    def saved(self) -> int:
        """What all blocks keep: everything, or with gradient checkpointing the input of each, r·S."""
        layers = self.config.model.layers
        return layers * (self.r * self.s if self.config.gradient_checkpointing else self.block_saved)

    @cached_property
    def ends_saved(self) -> int:
        """What is kept outside the blocks: the last norm's input, k·S, the gradient of its result (the loss has it at
        once), tokens and targets in 64 bits (twice, as they are copied out of the batch), the embedding's dropout mask.
        """
        return (self.k + self.a + self.mask) * self.s + (8 + 16) * self.n

    @cached_property
    def attention_at_work(self) -> int:
        """The most that `manual` holds in the forward pass of one layer, the matrices that it keeps included.

        At the softmax: scores and masked scores, 2·a·A, its fp32 result, 4·A, and before it bf16's conversion, 4·A
        (fp16's is part of the kernel). At dropout: scores, softmax and result with its mask, (a + 4 + 4 + 1)·A, and
        under autocast the operand made of it, 2·A.
        """
        if self.config.attention_impl == "sdpa":
            return self.attention_saved
        softmax = 2 * self.a + 4 + 4 * (self.r == 2)
        dropout = self.a + 9 + 2 * self.mixed if self.config.dropout > 0 else 0
        return max(softmax, dropout) * self.scores

    # ------------------------------------------------------------------------------------------ the moments

    @property
    def holds_gradients(self) -> bool:
        """Whether gradients lie there from before: of earlier batches of the step, or as what processes average."""
        return self.config.grad_accum_steps > 1 or self.processes > 1

    @cached_property
    def held_gradients(self) -> int:
        """All gradients, 4·P, where they lie there while a batch makes its own."""
        return 4 * self.config.model.parameters if self.holds_gradients else 0

    def moments(self) -> list[Moment]:
        """All moments that can be the peak on a GPU, in order."""
        last = self.config.model.layers - 1
        return [
            self.last_attention(),
            self.loss(),
            self.block_backward(last),
            self.block_backward(0),
            self.embedding_backward(),
            Moment(gradients=4 * self.config.model.parameters),  # the update works in place
        ]

    def last_attention(self) -> Moment:
        """The forward pass inside the last block's attention."""
        layers = self.config.model.layers
        inner = self.attention_at_work - self.attention_saved + self.block_saved - self.mlp_saved
        before = self.saved * (layers - 1) // layers
        casts = max(self.block_casts, self._casts_of(layers))
        return Moment(casts, self.held_gradients, self.ends_saved + before + inner)

    def loss(self) -> Moment:
        """The output layer with its loss, of which the backward pass is a part: see `engine.loss_cuda`.

        A block of logits and the padded copy of the weights, a·(rows·V + V·D), the gradient of the weights, 4·V·D, the
        input, r·S, and its copy, a·S, where autocast has to make one, and the scratch of large products in half
        precision. Of the input's gradient, a·S, `ends_saved` speaks.
        """
        casts = self._casts_of(self.config.model.layers)
        padded = -(-self.config.model.vocabulary_size // LOSS_PADDING) * LOSS_PADDING
        blocks = max(1, math.ceil(self.n * padded * self.a / LOSS_BLOCK_BYTES))
        copies = (self.r + self.a * (self.r > self.a)) * self.s if self.mixed else 0
        gradients = self.held_gradients + 4 * padded * self.config.model.width
        work = self.a * padded * (math.ceil(self.n / blocks) + self.config.model.width)
        work += self._scratch_of(self.vocabulary)
        return Moment(casts, gradients, self.saved + self.ends_saved + copies, work)

    def block_backward(self, layer: int) -> Moment:
        """Inside the backward pass of a block.

        There are the gradients of all layers above, what is saved of this one and those below (recomputed, with
        checkpointing), the residual stream's gradient, 4·S, what its perceptron or its attention works on, and scratch.
        """
        c = self.config
        below = self.saved * (layer + (not c.gradient_checkpointing)) // c.model.layers
        if c.gradient_checkpointing:
            below += self.block_saved
        grads = max(self.held_gradients, self._gradients_above(layer)) + (4 + self.a) * 4 * c.model.width**2
        if self.held_gradients and c.tie_embeddings:
            grads += 4 * self.vocabulary
        casts = self._casts_of(layer) + self.block_casts
        work = max(self._mlp_backward(), self._attention_backward()) + self._scratch_of(4 * c.model.width**2)
        return Moment(casts, grads, below + 4 * self.s + work)

    def _mlp_backward(self) -> int:
        """Gradients around the GELU, 2·4·a·S, less its result, 4·e·S, which is done with; under autocast the incoming
        one's copy, 2·S."""
        return (8 * self.a - 4 * self.e + 2 * self.mixed) * self.s

    def _attention_backward(self) -> int:
        """`manual`'s softmax: gradients of its result, its input and the scores, 3·4·A; the product's operand and the
        perceptron are done with."""
        if self.config.attention_impl == "sdpa":
            return 0
        operand = 2 if self.mixed else 4 if self.config.dropout > 0 else 0
        return (12 - operand) * self.scores - self.mlp_saved

    def embedding_backward(self) -> Moment:
        """The end of the backward pass: all gradients, and the embedding's own, 4·V·D, before it is added to the rest.

        Where it is the output layer too, its gradient from there has been waiting for this one, and their sum takes
        another 4·V·D; with accumulation all stand beside the sum of earlier batches.
        """
        waiting = 4 * self.vocabulary * (2 * self.config.tie_embeddings + (self.held_gradients > 0))
        return Moment(0, 4 * self.config.model.parameters + waiting, 4 * self.s + 24 * self.n)

    def _scratch_of(self, weights: int) -> int:
        """Of the products with so many weights, where they are large and in half precision: see `engine.cublaslt`."""
        return PRODUCT_SCRATCH if self.mixed and 2.0 * self.n * weights >= LARGE_PRODUCT else 0

    def _casts_of(self, layers: int) -> int:
        """Copies of so many blocks' matrices that wait for the backward pass; with checkpointing they are made anew."""
        return 0 if self.config.gradient_checkpointing else layers * self.block_casts

    def _gradients_above(self, layer: int) -> int:
        return 4 * ((self.config.model.layers - 1 - layer) * self.block + self.vocabulary)

    # ------------------------------------------------------------------------------------------ the optimizer

    def optimizer_states(self) -> tuple[int, int]:
        """Bytes of all optimizer states, and how many of them are in managed memory.

        AdamW: two fp32 moments a weight, 8·P. Its 8-bit kinds: that for the embeddings and the output layer; two bytes
        a weight and two fp32 scales for every 256 of them elsewhere, and 8 bytes a weight in tensors of under 4,096.
        The paged kind has moments of 100,000 values or more in managed memory.
        """
        model = self.config.model
        if self.config.optimizer == "adamw":
            return 8 * model.parameters, 0
        d = model.width
        vectors = {d: 6, 3 * d: 1, 4 * d: 1}  # norms' 4·D, biases' 2·D + 3·D + 4·D
        small = sum(count * size for size, count in vectors.items() if size < 4096)
        eight_bit = 12 * d * d + sum(count * size for size, count in vectors.items() if size >= 4096)
        matrices = [size for size in (3 * d * d, d * d, 4 * d * d, 4 * d * d) if size >= 100_000]
        paged = 2 * model.layers * sum(matrices) if self.config.optimizer == "paged_adamw_8bit" else 0
        blocks = model.layers * (2 * eight_bit + 8 * eight_bit // 256 + 8 * small)
        vocabulary = model.parameters - model.layers * self.block - 2 * d
        return 8 * vocabulary + blocks + 16 * d, paged
