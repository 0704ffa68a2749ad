"""engine.native.loss: what is its own; that its results are right, `tests/engine/test_loss.py` asks of every way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.native import piece


def case(rows: int, width: int, words: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    hidden, weight = (torch.randn(n, width, generator=generator) for n in (rows, words))
    return hidden * scale, weight, torch.randint(words, (rows,), generator=generator)


def found(hidden: Tensor, weight: Tensor, targets: Tensor) -> list[Tensor]:
    """Losses and both gradients."""
    results = [torch.empty(len(hidden)), torch.empty_like(hidden), torch.empty_like(weight)]
    piece(hidden, weight, targets, *results, False)
    return results


def exactly(hidden: Tensor, weight: Tensor, targets: Tensor) -> list[Tensor]:
    """The same by PyTorch in float64."""
    exact = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    losses = F.cross_entropy(exact[0] @ exact[1].T, targets, reduction="none")
    return [losses.detach(), *torch.autograd.grad(losses.sum(), exact)]


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (33, 160, 50257), (70, 200, 3000), (512, 24, 1000), (95, 401, 145), (5, 8, 144)]
)
def test_losses_and_gradients(shape: tuple[int, int, int], scale: float) -> None:
    """Of several tiles of the vocabulary and panels of tokens, and of parts of them."""
    hidden, weight, targets = case(*shape, scale=scale)
    for ours, theirs in zip(found(hidden, weight, targets), exactly(hidden, weight, targets), strict=True):
        assert (ours - theirs).norm() <= 3e-6 * max(1.0, scale) * max(1.0, theirs.norm().item())


def test_logits_that_grow_along_the_vocabulary() -> None:
    """Each tile has larger ones than those before, so all that was summed up shrinks again and again."""
    hidden, weight, targets = case(40, 16, 2000)
    weight += torch.arange(2000)[:, None] / 100 * hidden.mean(0).sign()
    for ours, theirs in zip(found(hidden, weight, targets), exactly(hidden, weight, targets), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


def test_the_number_of_threads_decides_no_bit(threads: int) -> None:
    parts = case(200, 40, 3000)
    results = found(*parts)
    torch.set_num_threads(1)
    assert all(torch.equal(one, other) for one, other in zip(results, found(*parts), strict=True))


def test_without_gradients_losses_are_the_same() -> None:
    hidden, weight, targets = case(50, 24, 1000)
    losses = torch.empty(50)
    piece(hidden, weight, targets, losses, None, None, False)
    assert torch.equal(losses, found(hidden, weight, targets)[0])


def test_the_weights_gradient_is_added() -> None:
    hidden, weight, targets = case(50, 24, 1000)
    _, d_hidden, d_weight = found(hidden, weight, targets)
    total = torch.ones_like(weight)
    piece(hidden, weight, targets, torch.empty(50), d_hidden, total, True)
    assert torch.equal(total, 1 + d_weight)


def test_a_first_tile_without_a_finite_logit() -> None:
    hidden, weight, targets = torch.full((40, 2), 2e38), torch.zeros(400, 2), torch.full((40,), 399)
    weight[:200] = -1
    losses, d_hidden, _ = found(hidden, weight, targets)
    torch.testing.assert_close(losses, torch.full((40,), 200.0).log())
    assert d_hidden.isfinite().all()


def test_more_threads_than_panels_of_tokens() -> None:
    parts = case(40, 24, 1000)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        results = found(*parts)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(results, found(*parts), strict=True))


@pytest.mark.parametrize("target", [-1, 1000, 2**40])
def test_a_target_outside_of_the_vocabulary_is_an_error(target: int) -> None:
    hidden, weight, targets = case(50, 24, 1000)
    targets[7] = target
    with pytest.raises(IndexError, match="outside"):
        found(hidden, weight, targets)


@pytest.mark.parametrize("where", ["hidden", "weight"])
def test_what_is_not_finite_stays_visible(where: str) -> None:
    """A broken row of weights is in all sums."""
    hidden, weight, targets = case(50, 24, 1000)
    (hidden if where == "hidden" else weight)[3, 0] = torch.nan
    losses = found(hidden, weight, targets)[0]
    assert losses[3].isnan() and (losses.isnan().all() if where == "weight" else losses.isnan().sum() == 1)
