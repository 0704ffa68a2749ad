"""engine.attention_cuda: its kernels by Triton's interpreter, where Triton is; on a card, tests/gpu/repeat.py."""

from __future__ import annotations

import math

import pytest

from tests.triton_interpreter import printed_numbers

SHAPES = [(1, 77, 2, 16), (1, 128, 1, 16), (2, 130, 1, 32), (1, 1, 1, 16)]
COPIED = [(1, 128, 1, 64), (2, 256, 2, 64)]  # where Hopper's unit for copying reads and writes


def errors() -> None:
    """Print |found - exact| / |exact| of the gradient for each shape, and of its sum over positions."""
    import torch

    from engine.attention import manual_attention
    from engine.attention_cuda import gradient

    for batch, time, heads, size in SHAPES + COPIED:
        copied = (batch, time, heads, size) in COPIED
        torch.manual_seed(0)
        qkv = torch.randn(batch, time, 3 * heads * size, requires_grad=True)
        g = torch.randn(batch, time, heads * size)
        y = manual_attention(qkv, heads)
        (exact,) = torch.autograd.grad(y, qkv, g)
        q, k, _ = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in qkv.detach().chunk(3, dim=2))
        future = torch.ones(time, time, dtype=torch.bool).triu(1)
        log_sums = (q @ k.transpose(-2, -1) / math.sqrt(size)).masked_fill(future, -torch.inf).logsumexp(dim=-1)
        found = gradient(qkv.detach(), y.detach(), log_sums, g, heads, copied)
        for ours, theirs in zip(found, (exact, exact.sum(dim=(0, 1))), strict=True):
            print(float((ours - theirs).norm() / theirs.norm()))


def test_its_gradient_is_the_formulas() -> None:
    found = printed_numbers(errors)
    assert len(found) == 2 * len(SHAPES + COPIED) and max(found) < 1e-6


@pytest.mark.parametrize(("factor", "of_bias"), [(1.0, 1.0), (1.1, 1.0), (1.0, 1.1), (1.0, 0.0)])
def test_it_is_tried_beside_pytorchs(factor: float, of_bias: float, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    import torch
    from torch import Tensor

    from engine import attention_cuda
    from engine.attention import fused_attention
    from engine.trial import why_not

    def attend(qkv: Tensor, bias: Tensor, heads: int) -> Tensor:
        nothing = of_bias * (bias - bias.detach())  # but for its gradient
        return factor * fused_attention(qkv + nothing.to(qkv.dtype), heads)

    monkeypatch.setattr(attention_cuda, "own_attention", attend)
    device = torch.device("cpu")
    reason = why_not(lambda: attention_cuda.beside_pytorch(32, torch.bfloat16, device), device)
    assert reason == ("" if (factor, of_bias) == (1, 1) else "it computes something else.")


def test_shapes_are_known_without_a_card() -> None:
    """A compiler asks for them."""
    pytest.importorskip("triton")
    import torch

    from engine import attention_cuda

    qkv, bias = torch.empty(2, 5, 3 * 32, dtype=torch.bfloat16, device="meta"), torch.empty(3 * 32, device="meta")
    y, log_sums = attention_cuda._shapes(qkv, bias, 2)
    d_qkv, d_bias = attention_cuda._backward_shapes(qkv, y, log_sums, y, 2)
    assert (y.shape, log_sums.shape, d_qkv.shape, d_bias.shape) == ((2, 5, 32), (2, 2, 5), qkv.shape, bias.shape)
    assert (y.dtype, log_sums.dtype, d_bias.dtype) == (torch.bfloat16, torch.float32, torch.float32)


def test_blocks_are_copied_where_the_card_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where a sequence's last block would reach into the next one, nor for other heads than it was made for."""
    pytest.importorskip("triton")
    import torch

    from engine.attention_cuda import _can_copy

    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert [_can_copy(*kind, device) for kind in ((1024, 64), (1000, 64), (1024, 128))] == [True, False, False]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert not _can_copy(1024, 64, device)


@pytest.mark.parametrize("mistake", [0.0, 0.1])
def test_copying_is_tried_too(mistake: float, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    import torch
    from torch import Tensor

    from engine import attention_cuda
    from engine.attention import fused_attention
    from engine.trial import why_not

    def gradient(
        qkv: Tensor, y: Tensor, log_sums: Tensor, g: Tensor, heads: int, copied: bool
    ) -> tuple[Tensor, Tensor]:
        return (1 + mistake * copied) * qkv, qkv.sum(dim=(0, 1))

    monkeypatch.setattr(
        attention_cuda, "own_attention", lambda qkv, bias, heads: fused_attention(qkv + bias - bias.detach(), heads)
    )
    monkeypatch.setattr(attention_cuda, "causal_attention", lambda qkv, bias, heads: (qkv, qkv))
    monkeypatch.setattr(attention_cuda, "gradient", gradient)
    monkeypatch.setattr(attention_cuda, "_can_copy", lambda time, *_: time % 128 == 0)
    device = torch.device("cpu")
    reason = why_not(lambda: attention_cuda.beside_pytorch(64, torch.float32, device), device)
    assert reason == ("it computes something else." if mistake else "")
