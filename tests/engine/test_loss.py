"""engine.loss: the last layer and its cross-entropy in one, equal to the plain formula in float64."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from engine import native
from engine.config import ModelConfig, TrainConfig
from engine.kernels import choose_kernels
from engine.loss import ROWS, Piece, linear_cross_entropy, plain_piece, plain_rows
from engine.loss_cuda import plain_multiply, plain_scale
from engine.model import GPT
from engine.optimizer import build_optimizer
from tests.native_here import needs_native

by_both = pytest.mark.parametrize(
    "piece", [pytest.param(plain_piece, id="PyTorch"), pytest.param(native.piece, id="C", marks=needs_native)]
)


def case(rows: int, width: int = 8, words: int = 37, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(rows, width, generator=g) * scale).requires_grad_()
    weight = torch.randn(words, width, generator=g).requires_grad_()
    return hidden, weight, torch.randint(words, (rows,), generator=g)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients in float64."""
    h, w = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    loss = F.cross_entropy(h @ w.T, targets, reduction="sum")
    (loss * factor).backward()
    assert h.grad is not None and w.grad is not None
    return loss.detach(), h.grad, w.grad


def check(piece: Piece, hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    loss = linear_cross_entropy(hidden, weight, targets, piece)
    (loss / 3).backward()
    expected, d_hidden, d_weight = plain(hidden, weight, targets, factor=1 / 3)
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden.grad, d_hidden.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight.grad, d_weight.float(), rtol=1e-4, atol=1e-4)


@by_both
@pytest.mark.parametrize("rows", [1, 2, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS, 3 * ROWS + 7])
def test_loss_and_gradients_for_any_number_of_rows(piece: Piece, rows: int) -> None:
    check(piece, *case(rows))


@by_both
@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 60), st.integers(0, 1000))
def test_loss_and_gradients_for_any_shape(piece: Piece, rows: int, width: int, words: int, seed: int) -> None:
    check(piece, *case(rows, width, words, seed=seed))


@by_both
def test_the_blocks_memory_is_shared_by_different_vocabularies(piece: Piece) -> None:
    for words in (37, 1000, 3, 37):
        check(piece, *case(20, words=words))


@by_both
@pytest.mark.parametrize("around", [-300.0, -60.0, 60.0, 300.0])
def test_logits_that_are_all_far_from_zero(piece: Piece, around: float) -> None:
    """exp of them is beyond fp32; the loss only sees their differences."""
    hidden, weight, targets = case(50)
    with torch.no_grad():
        hidden[::2, 0], weight[:, 0] = around, 1.0
    check(piece, hidden, weight, targets)


@by_both
def test_a_target_that_is_far_below_logits_below_zero(piece: Piece) -> None:
    """Its exponential is no number that fp32 holds in full, though its probability would be."""
    for around, at_target in ((-44.0, -103.0), (-45.0, -103.3), (-15.0, -86.0)):
        hidden, weight = torch.ones(1, 1, requires_grad=True), torch.full((100, 1), around)
        weight[3] = at_target
        check(piece, hidden, weight.requires_grad_(), torch.tensor([3]))


@by_both
def test_logits_whose_rounding_alone_is_beyond_exp(piece: Piece) -> None:
    """A second product may round them otherwise than the first, by hundreds."""
    g = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 1024, generator=g) * 3e3 for n in (48, 5000))
    targets = torch.randint(5000, (48,), generator=g)
    loss = linear_cross_entropy(hidden, weight, targets, piece)
    assert loss.item() == pytest.approx(plain(hidden, weight, targets)[0].item(), rel=1e-5)


@by_both
@pytest.mark.parametrize("scale", [1e-6, 30.0, 1e3, 1e5])
def test_extreme_logits(piece: Piece, scale: float) -> None:
    hidden, weight, targets = case(50, scale=scale)
    loss = linear_cross_entropy(hidden, weight, targets, piece)
    loss.backward()
    expected, d_hidden, d_weight = plain(hidden, weight, targets)
    assert loss.isfinite() and hidden.grad is not None and weight.grad is not None
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-5, atol=1e-5)
    # a logit of size s is known to s·2⁻²⁴, and so is the probability that is made from it
    tolerance = max(1e-5, scale * 1e-5)
    torch.testing.assert_close(hidden.grad.double(), d_hidden, rtol=1e-4, atol=tolerance)
    torch.testing.assert_close(weight.grad.double(), d_weight, rtol=1e-4, atol=tolerance * max(1.0, scale))


@by_both
def test_a_hopeless_target_costs_its_distance_and_a_sure_one_nothing(piece: Piece) -> None:
    hidden = torch.tensor([[1000.0], [-1000.0]])
    weight = torch.tensor([[1.0], [-1.0]])
    assert linear_cross_entropy(hidden[:1], weight, torch.tensor([1]), piece).item() == 2000.0
    assert linear_cross_entropy(hidden, weight, torch.tensor([0, 1]), piece).item() == 0.0


@by_both
def test_what_is_not_finite_stays_visible(piece: Piece) -> None:
    hidden, weight, targets = case(3)
    with torch.no_grad():
        hidden[1, 0] = float("nan")
    assert not linear_cross_entropy(hidden, weight, targets, piece).isfinite()


def test_no_gradient_work_when_none_is_wanted() -> None:
    """The gradient of the weights is one product a block: without it, no tensor of their shape is made."""
    hidden, weight, targets = case(2 * ROWS)
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        loss = linear_cross_entropy(hidden, weight, targets)
    assert not loss.requires_grad
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["aten::mm"] == 2  # the logits of two blocks
    assert "aten::addmm_" not in counts
    torch.testing.assert_close(loss.double(), plain(hidden, weight, targets)[0], rtol=1e-5, atol=1e-5)


def test_nothing_of_the_size_of_all_logits_is_made() -> None:
    hidden, weight, targets = case(8 * ROWS, words=500)
    linear_cross_entropy(hidden, weight, targets)  # this thread's block exists now
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        linear_cross_entropy(hidden, weight, targets)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < ROWS * 500 * 4


@by_both
def test_threads_do_not_disturb_each_other(piece: Piece) -> None:
    cases = [case(3 * ROWS, seed=seed) for seed in range(4)]
    results: dict[int, float] = {}

    def work(i: int) -> None:
        for _ in range(20):
            results[i] = linear_cross_entropy(*cases[i], piece=piece).item()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, expected in enumerate(cases):
        assert results[i] == pytest.approx(plain(*expected)[0].item(), rel=1e-5)


@by_both
def test_gradients_add_up_over_several_calls(piece: Piece) -> None:
    """Gradient accumulation: two halves give the gradient of the whole."""
    hidden, weight, targets = case(100)
    linear_cross_entropy(hidden[:50], weight, targets[:50], piece).backward()
    linear_cross_entropy(hidden[50:], weight, targets[50:], piece).backward()
    _, d_hidden, d_weight = plain(hidden, weight, targets)
    torch.testing.assert_close(hidden.grad, d_hidden.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight.grad, d_weight.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("by_c", [False, pytest.param(True, marks=needs_native)])
def test_fifty_steps_follow_the_plain_loss(by_c: bool) -> None:
    """Two copies of nano, one with all logits held at once, stay within 1e-5 nats of each other; also if all that the
    other computes in C is."""
    config = ModelConfig(6, 5, 160, 32)
    ours, plainly = GPT(config), GPT(config)
    ours.use_kernels(choose_kernels(TrainConfig(), torch.float32, torch.device("cpu"), builds_native=by_c))
    windows = torch.randint(50257, (50, 4, 33), generator=torch.Generator().manual_seed(0)) % 300  # few words recur
    models = (ours, plainly)
    for model in models:
        model.initialize(0)
    optimizers = [build_optimizer(model, "adamw", learning_rate=1e-3, weight_decay=0.1) for model in models]
    for window in windows:
        tokens, targets = window[:, :-1], window[:, 1:]
        losses = (
            ours.loss(tokens, targets),
            F.cross_entropy(plainly(tokens).flatten(0, 1), targets.flatten()),
        )
        assert abs(losses[0].item() - losses[1].item()) < 1e-5
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert losses[0].item() < 6.5  # something was learnt


def test_rows_in_plain_operations_have_the_formulas_loss_and_gradient() -> None:
    logits = torch.randn(7, 24, generator=torch.Generator().manual_seed(2))
    targets = torch.arange(7)
    wanted = logits[:, :19].double().requires_grad_()
    expected = F.cross_entropy(wanted, targets, reduction="none")
    expected.sum().backward()
    losses = torch.empty(7)
    plain_rows(logits, targets, losses, 19, True)
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-6, atol=1e-6)
    assert wanted.grad is not None
    torch.testing.assert_close(logits[:, :19].double(), wanted.grad, rtol=1e-6, atol=1e-6)
    assert (logits[:, 19:] == 0).all()


def test_plain_products_overwrite_or_add() -> None:
    a, b = torch.randn(5, 7, generator=torch.Generator().manual_seed(3)), torch.eye(7)[:, :4]
    out = torch.full((5, 4), torch.nan)
    plain_multiply(a, b, out)
    torch.testing.assert_close(out, a[:, :4])
    plain_multiply(a, b, out, add=True)
    torch.testing.assert_close(out, 2 * a[:, :4])


def test_a_gradients_factor_is_not_rounded_to_its_dtype() -> None:
    """1 / 12,288 in bf16 is off by 1 / 512, for all gradients alike."""
    values = torch.ones(3, dtype=torch.bfloat16) * 12288
    plain_scale(values, torch.full((), 1 / 12288))
    assert values.tolist() == [1, 1, 1]
    values = torch.ones(3) * 3
    plain_scale(values, torch.full((), 1 / 3))
    torch.testing.assert_close(values, torch.ones(3))
