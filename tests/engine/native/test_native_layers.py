"""engine.native.layers: products, linear layers and perceptrons, equal to PyTorch's in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from engine.native import layers, linear, multiply, perceptron

sizes = st.one_of(st.integers(1, 60), st.integers(180, 400))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(ours: Tensor, exact: Tensor) -> None:
    """Within what sums of fp32 of such a length may round."""
    assert ours.shape == exact.shape
    assert (ours - exact).abs().max() <= 3e-6 * max(1.0, exact.abs().max().item())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes, sizes, sizes, st.booleans(), st.booleans())
def test_products_of_all_shapes_and_layouts(rows: int, depth: int, columns: int, left: bool, right: bool) -> None:
    a = numbers(depth, rows, seed=1).T if left else numbers(rows, depth, seed=1)
    b = numbers(columns, depth, seed=2).T if right else numbers(depth, columns, seed=2)
    sums = torch.empty(rows) if left else None
    close(multiply(a, b, sums=sums), a.double() @ b.double())
    if sums is not None:
        close(sums, a.double().sum(1))


def test_bias_and_gelu_and_its_derivative_come_with_the_product() -> None:
    x, w, bias = numbers(50, 33), numbers(33, 70, seed=1), numbers(70, seed=2)
    before, activated = x.double() @ w.double() + bias, torch.empty(50, 70)
    close(multiply(x, w, bias=bias), before)
    exact = before.requires_grad_()
    (slope,) = torch.autograd.grad(F.gelu(exact, approximate="tanh").sum(), exact)
    close(multiply(x, w, bias=bias, activated=activated), slope)
    close(activated, F.gelu(before, approximate="tanh"))
    factor = numbers(50, 70, seed=3)
    close(multiply(x, w, factor=factor), (x.double() @ w.double()) * factor)


@pytest.mark.parametrize("value", [-1e4, -90.0, -20.0, -1e-6, 0.0, 1e-6, 20.0, 90.0, 1e4])
def test_gelu_far_from_zero(value: float) -> None:
    x, one = torch.full((1, 1), value), torch.ones(1, 1)
    activated = torch.empty(1, 1)
    slope = multiply(x, one, activated=activated)
    exact = x.double().requires_grad_()
    y = F.gelu(exact, approximate="tanh")
    y.backward()
    assert exact.grad is not None
    torch.testing.assert_close(activated.double(), y.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(slope.double(), exact.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (7,), (3, 5)])
def test_layers_and_all_their_gradients(shape: tuple[int, ...]) -> None:
    parts = [numbers(*shape, 24), numbers(96, 24, seed=1), numbers(96, seed=2), numbers(24, 96, seed=3)]
    parts = [part.requires_grad_() for part in [*parts, numbers(24, seed=4)]]
    x, w1, b1, *_ = parts
    exact = [part.detach().double().requires_grad_() for part in parts]
    ex, ew1, eb1, ew2, eb2 = exact
    hidden = F.gelu(F.linear(ex, ew1, eb1), approximate="tanh")
    for ours, theirs, count in (
        (linear(x, w1, b1), F.linear(ex, ew1, eb1), 3),
        (perceptron(*parts), F.linear(hidden, ew2, eb2), 5),
    ):
        weights = numbers(*ours.shape, seed=9)
        close(ours, theirs)
        found = torch.autograd.grad((ours * weights).sum(), parts[:count])
        wanted = torch.autograd.grad((theirs * weights).sum(), exact[:count], retain_graph=True)
        for mine, other in zip(found, wanted, strict=True):
            close(mine, other)


def test_few_rows_without_gradients_are_pytorchs_and_many_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """To pack the weights for some rows takes longer than the product. Samples are drawn with few."""
    used: list[int] = []
    own = layers.multiply
    monkeypatch.setattr(
        layers, "multiply", lambda left, *rest, **more: used.append(len(left)) or own(left, *rest, **more)
    )
    w, b = numbers(8, 24), numbers(8, seed=1)
    for rows in (1, layers.FEW - 1, layers.FEW):
        with torch.no_grad():
            close(linear(numbers(rows, 24), w, b), F.linear(numbers(rows, 24).double(), w.double(), b.double()))
    assert used == [layers.FEW]
    linear(numbers(5, 24), w, b)
    assert used == [layers.FEW, 5]
    assert linear(numbers(1, 24)[:0], w, b).shape == (0, 8)


def test_what_cannot_be_told_to_c_is_refused() -> None:
    a, b, apart = numbers(6, 6), numbers(6, 6), numbers(12)[::2]
    for arguments in ({"bias": apart}, {"sums": torch.empty(6)}):  # sums are of a transpose
        with pytest.raises(AssertionError):
            multiply(a, b, **arguments)
    with pytest.raises(AssertionError):
        multiply(numbers(6, 12)[:, ::2], b)


def test_a_tensor_that_is_not_contiguous() -> None:
    x, w, b = numbers(5, 24, 3).transpose(1, 2).requires_grad_(), numbers(8, 24, seed=1), numbers(8, seed=2)
    y = linear(x, w, b)
    close(y, F.linear(x.double(), w.double(), b.double()))
    (d_x,) = torch.autograd.grad(y.transpose(0, 1), x, torch.ones(3, 5, 8))
    close(d_x, w.double().sum(0).expand(5, 3, 24))


def test_the_number_of_threads_decides_no_bit(threads: int) -> None:
    a, b = numbers(500, 300), numbers(300, 200, seed=1)
    found = [multiply(a, b), multiply(a.T, a), multiply(b.T, b)]
    torch.set_num_threads(1)
    for one, other in zip(found, [multiply(a, b), multiply(a.T, a), multiply(b.T, b)], strict=True):
        assert torch.equal(one, other)


def test_what_is_not_finite_stays_visible() -> None:
    a, b = numbers(20, 30), numbers(30, 40, seed=1)
    a[3, 4] = torch.nan
    found = multiply(a, b, activated=(activated := torch.empty(20, 40)))
    for result in (found, activated):
        assert result[3].isnan().all() and result[:3].isfinite().all() and result[4:].isfinite().all()
