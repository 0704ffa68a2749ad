"""engine.linear_cuda: what it makes of its products, which stand-ins compute here; see tests/gpu/repeat.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine import cublaslt, linear_cuda
from engine.trial import why_not


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("bias_learns", [False, True])
def test_it_is_a_linear_layer(large: bool, bias_learns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def product(a: Tensor, b: Tensor) -> Tensor:
        used.append((tuple(a.shape), tuple(b.shape)))
        return a @ b

    def biased_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return product(x, weight.T) + bias

    monkeypatch.setattr(cublaslt, "is_large", lambda *_: large)
    monkeypatch.setattr(linear_cuda, "matmul", product)
    monkeypatch.setattr(linear_cuda, "biased_product", biased_product)
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 5, 8), (6, 8), (6,)))
    bias = bias if bias_learns else bias.detach()
    learns = [x, weight, bias] if bias_learns else [x, weight]
    found, wanted = linear_cuda.linear(x, weight, bias), F.linear(x, weight, bias)
    torch.testing.assert_close(found, wanted)
    g = torch.randn_like(found)
    for ours, theirs in zip(torch.autograd.grad(found, learns, g), torch.autograd.grad(wanted, learns, g), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert used == ([((10, 8), (8, 6)), ((10, 6), (6, 8)), ((6, 10), (10, 8))] if large else [])


@pytest.mark.parametrize("mistake", ["", "the second is read as it lies", "nothing is added to", "no bias"])
def test_it_is_tried_beside_pytorchs_products(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def multiply(a: Tensor, b: Tensor, out: Tensor, **options: Any) -> None:
        if mistake == "the second is read as it lies" and not b.is_contiguous():
            b = b.T.reshape(b.shape)
        value = a.float() @ b.float()
        if options.get("add") and mistake != "nothing is added to":
            value = value + out
        if options.get("epilogue") == cublaslt.BIAS and mistake != "no bias":
            value = value + options["bias"]
        out.copy_(value)

    def product(a: Tensor, b: Tensor) -> Tensor:
        multiply(a, b, out := a.new_empty(len(a), b.size(1)))
        return out

    def biased_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        multiply(x, weight.T, out := x.new_empty(len(x), len(weight)), epilogue=cublaslt.BIAS, bias=bias)
        return out

    monkeypatch.setattr(cublaslt, "multiply", multiply)
    monkeypatch.setattr(linear_cuda, "matmul", product)
    monkeypatch.setattr(linear_cuda, "biased_product", biased_product)
    device = torch.device("cpu")
    reason = why_not(lambda: linear_cuda.beside_pytorch(torch.bfloat16, device), device)
    assert reason == ("it computes something else." if mistake else "")


def test_shapes_are_known_without_a_card() -> None:
    """A compiler asks for them."""
    x, weight, bias = (torch.empty(s, dtype=torch.bfloat16, device="meta") for s in ((6, 8), (32, 8), (32,)))
    assert linear_cuda._biased_product(x, weight, bias).shape == (6, 32)
    assert linear_cuda._matmul(x.T, x).shape == (8, 8)
