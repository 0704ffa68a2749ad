"""engine.attention: both ways are the formula, for whatever shape; the GPU's own kernel is tests/gpu/repeat.py's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from engine.attention import Attend, fused_attention, manual_attention


def written_out(qkv: Tensor, heads: int) -> Tensor:
    """Position by position and head by head."""
    batch, time, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    size = width // heads
    out = torch.zeros(batch, time, width, dtype=qkv.dtype)
    for b in range(batch):
        for h in range(heads):
            q, k, v = (qkv[b, :, part * width + h * size : part * width + (h + 1) * size] for part in range(3))
            for t in range(time):
                weights = torch.softmax(torch.stack([q[t] @ k[s] / math.sqrt(size) for s in range(t + 1)]), dim=0)
                out[b, t, h * size : (h + 1) * size] = weights @ v[: t + 1]
    return out


@pytest.mark.parametrize("attend", [manual_attention, fused_attention])
@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (1, 1, 1, 8), (1, 9, 2, 5)])
def test_it_is_the_formula(attend: Attend, shape: tuple[int, int, int, int]) -> None:
    batch, time, heads, size = shape
    torch.manual_seed(0)
    qkv = torch.randn(batch, time, 3 * heads * size, dtype=torch.float64)
    torch.testing.assert_close(attend(qkv, heads, 0.0), written_out(qkv, heads), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("attend", [manual_attention, fused_attention])
def test_dropout_drops_weights_and_scales_the_rest(attend: Attend) -> None:
    """Of equal scores and values of 1 the mean is 1; the first position keeps its one weight, doubled, or nothing."""
    torch.manual_seed(0)
    qkv = torch.cat([torch.zeros(4000, 8, 8), torch.ones(4000, 8, 4)], dim=2)
    y = attend(qkv, 1, 0.5)
    assert y.mean() == pytest.approx(1, abs=0.02)
    assert set(y[:, 0, 0].tolist()) == {0.0, 2.0}
