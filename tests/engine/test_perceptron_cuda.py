"""engine.perceptron_cuda: what it makes of its two products, which stand-ins compute here; see tests/gpu/repeat.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine import cublaslt, perceptron_cuda
from engine.trial import why_not


def expand_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    before = F.linear(x, weight, bias)
    return F.gelu(before, approximate="tanh"), before


def gelu_backward(d_y: Tensor, weight: Tensor, before: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward(d_y @ weight, before, approximate="tanh")  # type: ignore[no-any-return]


def test_it_is_two_layers_with_a_gelu_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptron_cuda, "expand_gelu", expand_gelu)
    monkeypatch.setattr(perceptron_cuda, "gelu_backward", gelu_backward)
    torch.manual_seed(0)
    shapes = (2, 5, 8), (32, 8), (32,), (8, 32), (8,)
    values = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    x, w1, b1, w2, b2 = values
    found = perceptron_cuda.perceptron(x, w1, b1, w2, b2)
    wanted = F.linear(F.gelu(F.linear(x, w1, b1), approximate="tanh"), w2, b2)
    torch.testing.assert_close(found, wanted)
    g = torch.randn_like(found)
    for ours, theirs in zip(torch.autograd.grad(found, values, g), torch.autograd.grad(wanted, values, g), strict=True):
        torch.testing.assert_close(ours, theirs)


def expand_silu(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    before = F.linear(x, weight, bias)
    return F.silu(before), before


def silu_backward(d_y: Tensor, weight: Tensor, before: Tensor) -> Tensor:
    return torch.ops.aten.silu_backward(d_y @ weight, before)  # type: ignore[no-any-return]


GELU = expand_gelu, gelu_backward


@pytest.mark.parametrize("width", [64, 2048])
@pytest.mark.parametrize("kernels", [GELU, (expand_silu, silu_backward), (expand_silu, gelu_backward)])
def test_it_is_tried_beside_pytorchs_layers(width: int, kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(cublaslt, "planned", asked.append)
    for name, kernel in zip(("expand_gelu", "gelu_backward"), kernels, strict=True):
        monkeypatch.setattr(perceptron_cuda, name, kernel)
    device = torch.device("cpu")
    reason = why_not(lambda: perceptron_cuda.beside_pytorch(4096, width, torch.bfloat16, device), device)
    assert reason == ("" if kernels is GELU else "it computes something else.")
    assert asked == [
        cublaslt.Shape(0, torch.bfloat16, torch.bfloat16, 4096, width, 4 * width, (False, turned), epilogue)
        for turned, epilogue in ((True, cublaslt.GELU_AUX_BIAS), (False, cublaslt.DGELU))
    ]


def test_shapes_are_known_without_a_card() -> None:
    """A compiler asks for them; and a card's driver is not loaded for it."""
    x, w1, b1, w2 = (torch.empty(s, device="meta") for s in ((6, 8), (32, 8), (32,), (8, 32)))
    hidden, before = perceptron_cuda._expanded(x, w1, b1)
    assert hidden.shape == before.shape == perceptron_cuda._gradient(x, w2, before).shape == (6, 32)
