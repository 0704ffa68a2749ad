"""engine.float8, by the function that a GPU runs: PyTorch multiplies float8 on a CPU too."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import TrainConfig, environment, float8, resume_run, train
from engine import config as config_module
from engine.cli.train import main
from engine.config import PRESETS, ModelConfig, Preset, check
from engine.memory import estimate_memory
from engine.model import GPT
from engine.moments import Step
from engine.paths import PROJECT
from engine.start import new_run
from tests.stop_at import StopAt

TINY = ModelConfig(layers=2, heads=2, width=32, context_length=32, vocabulary_size=256)


def off(x: Tensor, bits: int) -> Tensor:
    """How far each value may be from its float8, of so many bits of fraction: half of the last one, or of the smallest
    step, of which more than 2^16 lie below the largest value."""
    return x.abs() * 2.0 ** -(bits + 1) + x.abs().max() * 2.0**-17


def bound(a: Tensor, b: Tensor, a_bits: int, b_bits: int) -> Tensor:
    """How far a product of two matrices in float8 may be from the exact one, rounding to bf16 included."""
    a_off, b_off = off(a, a_bits), off(b, b_bits)
    return a_off @ b.abs() + a.abs() @ b_off + a_off @ b_off + (a @ b).abs() * 2.0**-8 + 1e-30


@pytest.mark.parametrize("rows", [32, 7])
@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_layer_and_its_gradients_are_within_the_formats_error(
    rows: int, scale: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, rows, 64) * scale).to(dtype).requires_grad_()
    weight, bias = (torch.randn(48, 64) * 0.02).requires_grad_(), torch.zeros(48, requires_grad=True)
    y = float8.linear(x, weight, bias)
    assert y.shape == (2, rows, 48) and y.dtype == torch.bfloat16
    g = torch.randn(y.shape).bfloat16() * 1e-5
    d_x, d_weight, d_bias = torch.autograd.grad(y, (x, weight, bias), g)
    assert (d_x.dtype, d_weight.dtype) == (dtype, torch.float32)
    with torch.no_grad():
        xs, gs = x.flatten(0, 1).float(), g.flatten(0, 1).float()
        for found, a, b, a_bits in (
            (y.flatten(0, 1), xs, weight.T, 3),
            (d_x.flatten(0, 1), gs, weight, 2),
            (d_weight, gs.T, xs, 2),
        ):
            assert ((found.float() - a @ b).abs() <= bound(a, b, a_bits, 3)).all()
            assert not torch.equal(found.float(), a @ b)
        assert ((d_bias - gs.sum(dim=0)).abs() <= off(gs, 2).sum(dim=0)).all()


def test_zeros_stay_zeros_and_what_is_not_finite_is_noticed() -> None:
    weight, bias = torch.randn(16, 32), torch.zeros(16)
    assert torch.equal(float8.linear(torch.zeros(16, 32), weight, bias), torch.zeros(16, 16).bfloat16())
    for bad in (math.nan, math.inf):
        x = torch.ones(16, 32)
        x[3, 4] = bad
        assert float8.linear(x, weight, bias).isnan().any()


def test_the_largest_value_fits_and_scales_round_nothing() -> None:
    for dtype in (float8.E4M3, float8.E5M2):
        for largest in (448.0, 449.0, 1.75, 57344.0, 3e-9):
            small, scale = float8.quantize(torch.tensor([[largest, -largest]]), dtype)
            assert math.log2(scale) == round(math.log2(scale))
            assert torch.finfo(dtype).max / 2.2 < small.float().abs().max() <= torch.finfo(dtype).max


def losses(how: str, steps: int = 150, **options: Any) -> list[float]:
    """Of a small model that reads the bytes of *The Verdict*."""
    torch.manual_seed(0)
    model = GPT(TINY, float8=how == "fp8", **options)
    model.initialize(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    text = torch.tensor([*(PROJECT / "corpora" / "verdict.txt").read_bytes()])
    found = []
    for _ in range(steps):
        starts = torch.randint(len(text) - TINY.context_length, (8,))
        window = torch.stack([text[at : at + TINY.context_length + 1] for at in starts])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(window[:, :-1], window[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_the_loss_curve_is_bf16s() -> None:
    """Within 0.05 nats at the median and 0.15 at every step, while the loss falls by 2.5 and more. (It ends 0.04 above:
    a width of 32 averages out little rounding.)"""
    bf16, fp8 = losses("bf16"), losses("fp8")
    assert bf16 != fp8 and bf16[0] - bf16[-1] > 2.5
    apart = sorted(abs(a - b) for a, b in zip(bf16, fp8, strict=True))
    assert apart[len(apart) // 2] < 0.05 and apart[-1] < 0.15


def test_recomputing_blocks_changes_no_bit() -> None:
    assert losses("fp8", 5, gradient_checkpointing=True) == losses("fp8", 5)


def test_it_is_compiled_in_one_piece_and_the_same() -> None:
    model = GPT(TINY, float8=True)
    model.initialize(1)
    x = torch.randn(2, 32, 32).bfloat16().requires_grad_()
    compiled = torch.compile(model.stack, backend="aot_eager", fullgraph=True, dynamic=False)
    with torch.autocast("cpu", torch.bfloat16):
        gradients = [torch.autograd.grad(run(x).float().square().sum(), x)[0] for run in (compiled, model.stack)]
    assert torch.equal(*gradients)


def saved_bytes(how: str, attention: str) -> int:
    """What a block keeps for its backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    block = GPT(TINY, float8=how == "fp8", attention_impl=attention).blocks[0]
    x = torch.randn(8, 32, 32).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = block(x)
    del y
    return sum(kept.values())


@pytest.mark.parametrize("attention", ["sdpa", "manual"])
def test_the_estimate_counts_what_is_kept_in_8_bits(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module, "PRESETS", PRESETS | {"nano": Preset(2, 2, 32, 32, 1e-2, "")})
    config = TrainConfig(batch_size=8, attention_impl=attention, precision="bf16")
    bf16, fp8 = Step(config), Step(replace(config, precision="fp8"))
    expected = bf16.block_saved + bf16.block_casts - fp8.block_saved - fp8.block_casts
    assert saved_bytes("bf16", attention) - saved_bytes("fp8", attention) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_multiplied_so_and_needs_less_than_in_bf16(preset: str) -> None:
    config = TrainConfig(config=preset, batch_size=16, precision="fp8")
    assert check(config) == []
    assert estimate_memory(config, "cuda").total < estimate_memory(replace(config, precision="bf16"), "cuda").total


def test_a_width_that_is_no_multiple_of_16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module, "PRESETS", PRESETS | {"nano": Preset(2, 2, 40, 32, 1e-2, "")})
    assert [p.field for p in check(TrainConfig(precision="fp8"))] == ["precision"]
    assert check(TrainConfig(precision="bf16")) == []


def test_without_a_card_that_has_it_it_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--precision", "fp8", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "fp8 trains on a GPU only" in said and "Traceback" not in said


def test_an_older_card_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Old Card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(environment.ConfigError, match="Old Card has no fp8"):
        environment.resolve_device("cuda", "fp8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert environment.resolve_device("cuda", "fp8") == ("cuda:0", "fp8")


def test_a_stopped_run_goes_on_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module, "PRESETS", PRESETS | {"nano": Preset(2, 2, 32, 16, 1e-2, "quick")})
    monkeypatch.setattr(environment, "has_fp8", lambda device: True)
    config = TrainConfig(batch_size=2, max_steps=8, device="cpu", threads=1, dropout=0.1, precision="fp8")
    config = replace(config, eval_every=2, sample_every=-1, sample_length=3)
    whole, run = train(config), new_run(config)
    stopped = resume_run(train(config, run, StopAt(4)).id)
    resumed = train(stopped.config, stopped)
    for column in ("train_loss", "grad_norm"):
        assert list(resumed.metrics[column]) == list(whole.metrics[column])
    assert whole.metrics.val_loss.dropna().tolist() == resumed.metrics.val_loss.dropna().tolist()
    assert len(whole.metrics) == 8
