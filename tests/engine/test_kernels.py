"""engine.kernels: which kernels a model trains with. What the GPU's compute, tests/gpu/repeat.py holds to float64."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from engine import kernels, loss_cuda
from engine import model as model_module
from engine.attention import fused_attention, manual_attention
from engine.config import ModelConfig
from engine.loss import plain_rows
from engine.model import GPT

CPU = torch.device("cpu")
TINY = ModelConfig(layers=2, heads=2, width=32, context_length=16, vocabulary_size=64)


def other(*_: Any) -> Any:
    """A kernel."""


def of_blocks(model: GPT) -> list[tuple[Any, Any]]:
    return [(block.attention.attend, block.fused_perceptron) for block in model.blocks]  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_trains_with_pytorchs_own(dtype: torch.dtype) -> None:
    assert kernels.attention_kernel(32, 0.0, CPU, dtype) is fused_attention
    assert kernels.perceptron_kernel(64, 32, CPU, dtype) is None


def test_a_card_without_triton_trains_with_pytorchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)  # importing it fails
    monkeypatch.delitem(sys.modules, "engine.attention_cuda", raising=False)
    with pytest.warns(UserWarning, match="Triton cannot be used here, so attention takes longer"):
        assert kernels.attention_kernel(32, 0.0, torch.device("cuda"), torch.bfloat16) is fused_attention


def test_its_loss_is_computed_in_several_passes_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "engine.loss_triton", raising=False)
    with pytest.warns(UserWarning, match="Triton cannot compile here, so the loss takes longer"):
        assert loss_cuda._rows.__wrapped__() is plain_rows


def test_own_attention_has_no_dropout() -> None:
    assert kernels.attention_kernel(32, 0.1, torch.device("cuda"), torch.bfloat16) is fused_attention


def test_what_was_asked_for_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """`manual` attention is not replaced, nor are layers that multiply in 8 bits."""
    monkeypatch.setattr(model_module, "attention_kernel", lambda *_: other)
    monkeypatch.setattr(model_module, "perceptron_kernel", lambda *_: other)
    models = [GPT(TINY), GPT(TINY, attention_impl="manual"), GPT(TINY, float8=True)]
    for model in models:
        model.use_kernels(CPU, torch.bfloat16, 4)
    assert [of_blocks(model) for model in models] == [
        [(other, other)] * 2,
        [(manual_attention, other)] * 2,
        [(other, None)] * 2,
    ]


def test_a_models_weights_do_not_depend_on_its_kernels() -> None:
    plain, replaced = GPT(TINY), GPT(TINY)
    replaced.blocks[0].fused_perceptron = other  # type: ignore[union-attr]
    assert list(plain.state_dict()) == list(replaced.state_dict())
