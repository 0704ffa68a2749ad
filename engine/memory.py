"""How much memory a run will need, worked out from its settings before anything is started.

A training step holds the most at one of a few moments; each is added up below from what autograd has saved by then and
what the operation at hand holds besides, and the largest one is the peak. No torch here: the answer takes microseconds
and needs no GPU. `docs/memory.md` compares it with measurements.

In the formulas B is the batch, T the context, D the width, L the layers, H the heads, V the vocabulary, N = B·T the
tokens of one forward pass, S = N·D the values of one residual stream, A = B·H·T² those of one attention matrix, P the
weights; a is the bytes of an activation, 4 in fp32 and 2 under autocast. All results are in bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property

from engine.config import TrainConfig

GIB = 2**30
MIB = 2**20
CARDS = (8, 12, 16, 24, 40, 80)  # GB of common cards


@dataclass(frozen=True)
class Breakdown:
    """What a run holds at its peak, in bytes.

    Attributes:
        weights: in fp32, and the copies in bf16 or fp16 that autocast has made of them.
        gradients: one fp32 number a weight, and those on their way to one.
        optimizer: the moments of every weight.
        activations: what the forward pass keeps for the backward pass, and what is at work in a block.
        logits: scores over the vocabulary, and the loss's work on them.
        workspace: scratch memory of the libraries.
        cache: what PyTorch's allocator has taken and not given out: rounding, and gaps between blocks.
        context: on a GPU, the CUDA context and the kernels.
        process: on a CPU, the process itself: the interpreter and the libraries.
        paged: the part of `optimizer` in managed memory, which PyTorch doesn't count and the driver may move away.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    workspace: int
    cache: int
    context: int = 0
    process: int = 0
    paged: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """The parts by name; they add up to `total`."""
        return {name: value for name, value in asdict(self).items() if name != "paged"}

    @property
    def gib(self) -> dict[str, float]:
        """The parts and their total, in GiB."""
        return {name: value / GIB for name, value in (self.parts | {"total": self.total}).items()}

    @property
    def peak_allocated(self) -> int:
        """What `torch.cuda.max_memory_allocated()` will say."""
        return self.reserved - self.cache

    @property
    def reserved(self) -> int:
        """What `torch.cuda.max_memory_reserved()` will say."""
        return self.total - self.context - self.process - self.paged

    @property
    def total(self) -> int:
        """What the process holds on the device."""
        return sum(self.parts.values())


def estimate_memory(config: TrainConfig, device: str | None = None) -> Breakdown:
    """The memory of a run at its peak.

    Validation and samples never need more than training: they keep nothing for a backward pass, and the loss of the
    same batch takes 8·N·V bytes forward and 12·N·V backward.

    Args:
        config: checked settings; automatic values are taken as a run would resolve them.
        device: `cuda` or `cpu` instead of the config's own; `auto` counts as a GPU.
    """
    name = device or config.device
    cpu = name.startswith("cpu")
    if config.precision == "auto":
        config = replace(config, precision="fp32" if cpu else "bf16")
    return _on_cpu(Step(config, cpu=True)) if cpu else _on_gpu(Step(config))


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
    """The sizes of one training step."""

    config: TrainConfig
    cpu: bool = False

    @cached_property
    def a(self) -> int:
        """Bytes of an activation of a matrix product."""
        return 4 if self.config.precision == "fp32" else 2

    @property
    def mixed(self) -> bool:
        """Whether autocast is at work."""
        return self.a == 2

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
    def logits(self) -> int:
        """N·V, values of the logits."""
        return self.n * self.config.model.vocabulary_size

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
        """Autocast's copies of a block's matrices, 2·12·D²; the backward pass needs them, the biases' it doesn't."""
        return 24 * self.config.model.width**2 if self.mixed else 0

    @cached_property
    def head_cast(self) -> int:
        """Autocast's copy of the output layer, 2·V·D."""
        return 2 * self.vocabulary if self.mixed else 0

    # ------------------------------------------------------------------------------------------ the forward pass

    @cached_property
    def attention_saved(self) -> int:
        """What attention keeps of its inner part, between q, k, v and its output.

        `sdpa` keeps the logarithm of each row's sum, 4·B·H·T. `manual` keeps the softmax's fp32 result, 4·A, and the
        operand of the product with v: its copy under autocast, 2·A, or what dropout made of it, 4·A; dropout's mask, A;
        and the mask of the future, T².
        """
        c, drop = self.config, self.config.dropout > 0
        if c.attention_impl == "sdpa":
            return 4 * c.batch_size * c.model.heads * c.model.context_length
        operand = 2 if self.mixed else 4 if drop else 0
        return (4 + operand + drop) * self.scores + c.model.context_length**2

    @cached_property
    def mlp_saved(self) -> int:
        """What the perceptron's half of a block keeps.

        The norm's input in fp32, 4·S, with mean and deviation, 8·N; its result as `expand` reads it, a·S; before and
        after the GELU, 2·4·a·S; dropout's mask, S.
        """
        return (4 + 9 * self.a + (self.config.dropout > 0)) * self.s + 8 * self.n

    @cached_property
    def block_saved(self) -> int:
        """What a block keeps for its backward pass.

        Attention's half: the norm's input, 4·S, mean and deviation, 8·N, its result, a·S, q, k and v, 3·a·S, the inner
        part, its result as `projection` reads it, a·S, and dropout's mask, S; then the perceptron's half.
        """
        half = (4 + 5 * self.a + (self.config.dropout > 0)) * self.s + 8 * self.n
        return half + self.attention_saved + self.mlp_saved

    @cached_property
    def saved(self) -> int:
        """What all blocks keep: everything, or with gradient checkpointing the input of each, 4·S."""
        layers = self.config.model.layers
        return layers * (4 * self.s if self.config.gradient_checkpointing else self.block_saved)

    @cached_property
    def ends_saved(self) -> int:
        """What is kept outside the blocks: the last norm's input, its result as the output layer reads it, tokens and
        targets in 64 bits (twice, as the targets are copied out of the batch), the embedding's dropout mask."""
        return (4 + self.a + (self.config.dropout > 0)) * self.s + (8 + 16) * self.n

    @cached_property
    def attention_at_work(self) -> int:
        """The most that `manual` holds in the forward pass of one layer, the matrices that it keeps included.

        At the softmax: scores and masked scores, 2·a·A, its fp32 result, 4·A, and before it bf16's conversion, 4·A
        (fp16's is part of the kernel). At dropout: scores, softmax and result with its mask, (a + 4 + 4 + 1)·A, and
        under autocast the operand made of it, 2·A.
        """
        if self.config.attention_impl == "sdpa":
            return self.attention_saved
        softmax = 2 * self.a + 4 + 4 * (self.config.precision == "bf16")
        dropout = self.a + 9 + 2 * self.mixed if self.config.dropout > 0 else 0
        return max(softmax, dropout) * self.scores

    # ------------------------------------------------------------------------------------------ the moments

    @cached_property
    def held_gradients(self) -> int:
        """What earlier batches of the same step have left: with gradient accumulation all gradients, 4·P."""
        return 4 * self.config.model.parameters if self.config.grad_accum_steps > 1 else 0

    def moments(self) -> list[Moment]:
        """All moments that can be the peak on a GPU, in order."""
        last = self.config.model.layers - 1
        return [
            self.last_attention(),
            self.loss_forward(),
            self.loss_backward(),
            self.head_backward(),
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
        return Moment(layers * self.block_casts, self.held_gradients, self.ends_saved + before + inner)

    def loss_forward(self) -> Moment:
        """The loss's log-softmax: fp32 logits and result, 8·N·V.

        Autocast's copies of all weights are there until its end, and the last norm's fp32 result, 4·S.
        """
        casts = self.config.model.layers * self.block_casts + self.head_cast
        hidden = 4 * self.s if self.mixed else 0
        return Moment(casts, self.held_gradients, self.saved + self.ends_saved + hidden, 8 * self.logits)

    def loss_backward(self) -> Moment:
        """The log-softmax's backward pass: its result, the gradient of it and that of the logits, 12·N·V.

        Autocast's copies are left only where autograd has saved them.
        """
        return Moment(
            self._casts_of(self.config.model.layers) + self.head_cast,
            self.held_gradients,
            self.saved + self.ends_saved,
            12 * self.logits,
        )

    def head_backward(self) -> Moment:
        """The output layer's backward pass: gradients of logits (a·N·V), of its input (a·S) and of its weights.

        The latter under autocast first in 2·V·D, then, when the logits' are gone, in 4·V·D besides.
        """
        saved = self.saved + self.ends_saved + self.a * self.s
        casts = self._casts_of(self.config.model.layers)
        if not self.mixed:
            return Moment(casts, self.held_gradients + 4 * self.vocabulary, saved, 4 * self.logits)
        product = Moment(casts + self.head_cast, self.held_gradients + 2 * self.vocabulary, saved, 2 * self.logits)
        conversion = Moment(casts, self.held_gradients + 6 * self.vocabulary, saved)
        return max(product, conversion, key=lambda moment: moment.total)

    def block_backward(self, layer: int) -> Moment:
        """Inside the backward pass of a block.

        There are the gradients of all layers above, what is saved of this one and those below (recomputed, with
        checkpointing), the residual stream's gradient, 4·S, and what its perceptron or its attention works on.
        """
        c = self.config
        below = self.saved * (layer + (not c.gradient_checkpointing)) // c.model.layers
        if c.gradient_checkpointing:
            below += self.block_saved
        grads = max(self.held_gradients, self._gradients_above(layer)) + (4 + self.a) * 4 * c.model.width**2
        if self.held_gradients and c.tie_embeddings:
            grads += 4 * self.vocabulary
        casts = self._casts_of(layer) + self.block_casts
        return Moment(casts, grads, below + 4 * self.s + max(self._mlp_backward(), self._attention_backward()))

    def _mlp_backward(self) -> int:
        """Gradients around the GELU, 2·4·a·S, less its result, which is done with; under autocast the incoming one's
        copy, 2·S."""
        return max(4 * self.a * self.s + self.mixed * 2 * self.s, 4 * self.a * self.s)

    def _attention_backward(self) -> int:
        """`manual`'s softmax: gradients of result and input, 2·4·A; the product's operand and the perceptron are done
        with."""
        if self.config.attention_impl == "sdpa":
            return 0
        operand = 2 if self.mixed else 4 if self.config.dropout > 0 else 0
        return (8 - operand) * self.scores - self.mlp_saved

    def embedding_backward(self) -> Moment:
        """The end of the backward pass: all gradients, and the embedding's own, 4·V·D, before it is added to the rest.

        Where it is the output layer too, its gradient from there has been waiting for this one: with accumulation both
        stand beside the sum of earlier batches. Their sum overwrites the waiting one if that is a tensor of its own, as
        autocast's conversion makes it; in fp32 it is a transposed view, and the sum takes another 4·V·D.
        """
        tied = self.config.tie_embeddings
        waiting = 4 * self.vocabulary * (tied + (tied and not self.mixed) + (self.held_gradients > 0))
        return Moment(0, 4 * self.config.model.parameters + waiting, 4 * self.s + 24 * self.n)

    def _casts_of(self, layers: int) -> int:
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
        paged = 2 * model.layers * sum(matrices) if self.config.optimizer == "paged_adamw_8bit" and not self.cpu else 0
        blocks = model.layers * (2 * eight_bit + 8 * eight_bit // 256 + 8 * small)
        vocabulary = model.parameters - model.layers * self.block - 2 * d
        return 8 * vocabulary + blocks + 16 * d, paged


# ---------------------------------------------------------------------------------------------- the two devices

CUBLAS_WORKSPACE = 2 * 32 * MIB  # PyTorch gives each thread's cuBLAS 32 MiB on a Hopper: forward and backward thread
CUDA_CONTEXT = 560 * MIB
CACHE_SHARE = 0.03


def _on_gpu(step: Step) -> Breakdown:
    peak = max(step.moments(), key=lambda moment: moment.total)
    optimizer, paged = step.optimizer_states()
    weights = 4 * step.config.model.parameters
    allocated = weights + optimizer - paged + peak.total + CUBLAS_WORKSPACE
    return Breakdown(
        weights=round(weights + peak.casts),
        gradients=round(peak.gradients),
        optimizer=optimizer,
        activations=round(peak.activations),
        logits=round(peak.logits),
        workspace=CUBLAS_WORKSPACE,
        cache=round(CACHE_SHARE * allocated),
        context=CUDA_CONTEXT,
        paged=paged,
    )


CPU_PROCESS = 430 * MIB  # interpreter, PyTorch and its libraries, after the first step of a small model
CPU_LOSS_ROWS = 256  # of a block of logits: see engine.loss, which this module doesn't import, as it loads torch


def _on_cpu(step: Step) -> Breakdown:
    """The process's resident memory; coarser than the GPU's figures, and held to few measurements.

    The loss never holds all logits: a block of them in fp32, and the output layer's gradient, 4·V·D, beside the
    embedding's own on its way into the sum of all, another 4·V·D.
    """
    c = step.config
    activations = step.saved + step.ends_saved + step.attention_at_work - step.attention_saved
    if c.gradient_checkpointing:
        activations += step.block_saved
    return Breakdown(
        weights=4 * c.model.parameters + c.model.layers * step.block_casts,
        gradients=4 * c.model.parameters + 8 * step.vocabulary,
        optimizer=step.optimizer_states()[0],
        activations=activations,
        logits=4 * CPU_LOSS_ROWS * c.model.vocabulary_size,
        workspace=0,
        cache=0,
        process=CPU_PROCESS,
    )
