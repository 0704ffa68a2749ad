"""What one training step holds on a CPU, where that differs from a GPU; see `engine.moments` for the letters.

The loss never holds all logits, and makes the gradients of the output layer on the way (`engine.loss`). Dropout's masks
have the activations' own type, autocast leaves softmax in bf16, and `sdpa` has no fused kernel with dropout.
"""

from __future__ import annotations

from functools import cached_property

from engine.moments import Moment, Step

MAPPED = 2**25  # bytes from which the C library gives a tensor pages of its own, and takes them back when it is freed


class CpuStep(Step):
    """The sizes of one training step on a CPU."""

    @property
    def mask(self) -> int:
        """Bytes of a dropout mask's value, where there is dropout."""
        return self.a if self.config.dropout > 0 else 0

    @property
    def k(self) -> int:
        """Bytes of a value that a norm keeps: of a copy in fp32."""
        return 4

    @property
    def writes_attention_out(self) -> bool:
        """Whether the attention matrix is held whole."""
        return self.config.attention_impl == "manual" or self.config.dropout > 0

    @property
    def maps_attention(self) -> bool:
        """Whether attention matrices are held whole, and large enough to have pages of their own."""
        return self.writes_attention_out and self.a * self.scores >= MAPPED

    @cached_property
    def attention_saved(self) -> int:
        """The softmax's result, a·A, and with dropout its mask and what it made of it, another 2·a·A; and T²."""
        c = self.config
        if not self.writes_attention_out:
            return 4 * c.batch_size * c.model.heads * c.model.context_length
        return (self.a + 2 * self.mask) * self.scores + c.model.context_length**2

    @cached_property
    def attention_at_work(self) -> int:
        """At the softmax: scores, masked scores and result, 3·a·A; at dropout: scores and what is kept, 4·a·A."""
        if not self.writes_attention_out:
            return self.attention_saved
        return (3 + (self.config.dropout > 0)) * self.a * self.scores

    @cached_property
    def ends_saved(self) -> int:
        """Outside the blocks: the last norm's input and the gradient of its result, 8·S; the embedding's dropout mask,
        4·S; tokens and targets."""
        return (8 + 4 * (self.config.dropout > 0)) * self.s + 24 * self.n

    @cached_property
    def vocabulary_gradients(self) -> int:
        """The output layer's and the embedding's, 4·V·D each, and those that lie there from before."""
        return 4 * self.vocabulary * (3 if self.holds_gradients else 2)

    @cached_property
    def held_gradients(self) -> int:
        """Those of the blocks that lie there from before."""
        return 4 * self.config.model.layers * self.block if self.holds_gradients else 0

    def moments(self) -> list[Moment]:
        """All moments that can be the peak, in order.

        The vocabulary's gradients are in each: a heap that has grown for activations does not shrink before the
        embedding's gradient comes.
        """
        last = self.config.model.layers - 1
        return [self.last_attention(), self.loss_forward(), self.block_backward(last), self.block_backward(0)]

    def last_attention(self) -> Moment:
        """The forward pass inside the last block's attention."""
        moment = super().last_attention()
        return Moment(moment.casts, moment.gradients + self.vocabulary_gradients, moment.activations)

    def loss_forward(self) -> Moment:
        """The loss: the last norm's result, 4·S, beside all that is saved."""
        gradients = self.held_gradients + self.vocabulary_gradients
        casts = self._casts_of(self.config.model.layers)
        return Moment(casts, gradients, self.saved + self.ends_saved + 4 * self.s)

    def block_backward(self, layer: int) -> Moment:
        """Inside the backward pass of a block, as on a GPU; a recomputed block finds no room in the gaps that others
        have left, and so counts twice."""
        c = self.config
        below = self.saved * (layer + (not c.gradient_checkpointing)) // c.model.layers
        if c.gradient_checkpointing:
            below += 2 * self.block_saved
        above = 4 * (c.model.layers - 1 - layer) * self.block
        gradients = max(self.held_gradients, above) + (4 + self.a) * 4 * c.model.width**2 + self.vocabulary_gradients
        work = max(self._mlp_backward(), self._attention_backward())
        return Moment(self._casts_of(layer) + self.block_casts, gradients, below + 4 * self.s + work)

    def _attention_backward(self) -> int:
        """Gradients of the softmax's result and input, 2·a·A; the product's operand and the perceptron are done
        with."""
        return (2 * self.a - self.mask) * self.scores - self.mlp_saved if self.writes_attention_out else 0

    def in_heap(self, moment: Moment) -> float:
        """The part of a moment that lies in the C library's heap, where freed tensors leave gaps: all of it, but where
        large attention matrices are held whole, see `engine.heap`."""
        if not self.maps_attention:
            return moment.total
        layers = 1 if self.config.gradient_checkpointing else self.config.model.layers
        mapped = self.vocabulary_gradients + (layers - 1) * self.attention_saved + self.attention_at_work
        return max(0.0, moment.total - mapped)
