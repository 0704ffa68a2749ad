"""Some rows of the vocabulary's loss and their gradients, by `loss.c`; see `engine.loss`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from engine.loss import plain_piece
from engine.native.library import call, scratch


def piece(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    losses: Tensor,
    d_hidden: Tensor | None,
    d_weight: Tensor | None,
    add: bool,
) -> None:
    """As `engine.loss.plain_piece`, which tells the shapes.

    Raises:
        IndexError: a target is no row of the weights.
    """
    if not bool(((targets >= 0) & (targets < len(weight))).all()):
        raise IndexError("A target is outside of the vocabulary.")
    (tokens, width), vocabulary, threads = hidden.shape, len(weight), torch.get_num_threads()
    memory = scratch(call("loss_scratch", tokens, width, vocabulary, threads))
    contiguous = (hidden.contiguous(), weight.contiguous(), targets.long().contiguous())
    call(
        "linear_cross_entropy", tokens, width, vocabulary, *contiguous, losses, d_hidden, d_weight, add, memory, threads
    )


def beside_pytorch() -> Iterator[tuple[Tensor, Tensor]]:
    """What is computed here and by PyTorch, of a small vocabulary: losses and gradients, in pairs."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(200, 24, generator=generator), torch.randn(300, 24, generator=generator)
    targets = torch.randint(0, len(weight), (len(hidden),), generator=generator)
    found = []
    for way in (piece, plain_piece):
        losses, d_hidden, d_weight = torch.empty(len(hidden)), torch.empty_like(hidden), torch.empty_like(weight)
        way(hidden, weight, targets, losses, d_hidden, d_weight, False)
        found.append((losses, d_hidden, d_weight))
    yield from zip(*found, strict=True)
