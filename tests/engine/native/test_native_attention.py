"""engine.native.attention: equal to PyTorch's in float64, causal in every bit, the same whatever the threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.attention import fused_attention
from engine.native import attend


def case(batch: int, heads: int, length: int, size: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(batch, length, 3 * heads * size, generator=generator) * scale).requires_grad_()


def both(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Result and gradient."""
    y = attend(qkv, heads)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(y, qkv, weights)
    return y.detach(), gradient


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 5, 256, 32), (1, 2, 300, 64), (2, 3, 33, 24), (1, 1, 200, 100), (3, 2, 31, 7)]
)
def test_result_and_gradient(shape: tuple[int, int, int, int], scale: float) -> None:
    qkv = case(*shape, scale=scale)
    exact = qkv.detach().double().requires_grad_()
    y, gradient = both(qkv, shape[1])
    expected = fused_attention(exact, shape[1])
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (d_exact,) = torch.autograd.grad(expected, exact, weights.double())
    for ours, theirs in ((y, expected), (gradient, d_exact)):
        # scores of size s² are known to s²·2⁻²⁴, and so is what is made of their exponentials
        assert (ours - theirs).abs().max() <= 2e-6 * max(1.0, scale**2) * max(1.0, theirs.abs().max().item())


def test_no_bit_depends_on_what_comes_later() -> None:
    qkv = case(1, 2, 100, 16)
    other = qkv.detach().clone()
    other[:, 50:] = torch.randn(other[:, 50:].shape) * 100
    assert torch.equal(attend(qkv, 2)[:, :50], attend(other, 2)[:, :50])


def test_what_comes_later_gets_no_gradient() -> None:
    qkv = case(1, 2, 100, 16)
    (gradient,) = torch.autograd.grad(attend(qkv, 2)[:, :50].sum(), qkv)
    assert (gradient[:, 50:] == 0).all() and (gradient[:, :50] != 0).any()


def test_the_number_of_threads_decides_no_bit(threads: int) -> None:
    qkv = case(2, 3, 100, 16)
    found = both(qkv, 3)
    torch.set_num_threads(1)
    assert all(torch.equal(one, other) for one, other in zip(found, both(qkv, 3), strict=True))


def test_what_is_not_finite_stays_visible() -> None:
    qkv = case(1, 2, 100, 16)
    with torch.no_grad():
        qkv[0, 60, 0] = torch.nan  # a query of the first head
    y = attend(qkv, 2)[0]
    assert y[60, :16].isnan().all() and y[:60].isfinite().all() and y[61:].isfinite().all()
