"""engine.attention_cuda: its kernels by Triton's interpreter, where Triton is; on a card, tests/gpu/repeat.py."""

from __future__ import annotations

import math

import pytest

from tests.triton_interpreter import printed_numbers

SHAPES = [(1, 77, 2, 16), (1, 128, 1, 16), (2, 130, 1, 32), (1, 1, 1, 16)]


def errors() -> None:
    """Print |found - exact| / |exact| of the gradient for each shape."""
    import torch

    from engine.attention import manual_attention
    from engine.attention_cuda import gradient

    for batch, time, heads, size in SHAPES:
        torch.manual_seed(0)
        qkv = torch.randn(batch, time, 3 * heads * size, requires_grad=True)
        g = torch.randn(batch, time, heads * size)
        y = manual_attention(qkv, heads)
        (exact,) = torch.autograd.grad(y, qkv, g)
        q, k, _ = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in qkv.detach().chunk(3, dim=2))
        future = torch.ones(time, time, dtype=torch.bool).triu(1)
        log_sums = (q @ k.transpose(-2, -1) / math.sqrt(size)).masked_fill(future, -torch.inf).logsumexp(dim=-1)
        found = gradient(qkv.detach(), y.detach(), log_sums, g, heads)
        print(float((found - exact).norm() / exact.norm()))


def test_its_gradient_is_the_formulas() -> None:
    found = printed_numbers(errors)
    assert len(found) == len(SHAPES) and max(found) < 1e-6


@pytest.mark.parametrize(("dtype", "time"), [("float32", 5), ("bfloat16", 1)])
def test_what_it_cannot_do_pytorch_does(dtype: str, time: int) -> None:
    """Before its first step a team of processes trains on one position in fp32, and a prompt may be a single token."""
    pytest.importorskip("triton")
    import torch

    from engine.attention import fused_attention
    from engine.attention_cuda import own_attention

    qkv = torch.randn(2, time, 3 * 2 * 16, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    assert torch.equal(own_attention(qkv, 2), fused_attention(qkv, 2))


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_it_is_tried_beside_pytorchs(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    import torch

    from engine import attention_cuda
    from engine.attention import fused_attention
    from engine.trial import why_not

    monkeypatch.setattr(attention_cuda, "own_attention", lambda *given: factor * fused_attention(*given))
    device = torch.device("cpu")
    reason = why_not(lambda: attention_cuda.beside_pytorch(32, torch.bfloat16, device), device)
    assert reason == ("" if factor == 1 else "it computes something else.")
