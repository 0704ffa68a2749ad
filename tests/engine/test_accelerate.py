"""engine.accelerate: which runs are compiled and replayed; the GPU's part is tests/gpu/grid.py's."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine import native
from engine.accelerate import Recorder, builds_native, compiles, flops_per_token, records
from engine.config import PRESETS, ModelConfig, TrainConfig
from engine.plan import make_plan

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_flops_are_those_of_the_formula() -> None:
    """medium: 6·(12·12·768² + 50,257·768) + 12·12·768·1,024, worked out by hand."""
    assert flops_per_token(TrainConfig(config="medium").model) == 6 * (84_934_656 + 38_597_376) + 113_246_208


@pytest.mark.parametrize("preset", PRESETS)
def test_flops_follow_from_the_shapes_of_the_matrices(preset: str) -> None:
    from engine.model import GPT

    config = TrainConfig(config=preset, context_length=64).model
    small = ModelConfig(config.layers, config.heads, config.width, 64, vocabulary_size=101)
    with torch.device("meta"):
        model = GPT(small)
    matrices = sum(w.numel() for name, w in model.named_parameters() if w.dim() == 2 and "position" not in name)
    attention = 12 * small.layers * small.width * small.context_length
    assert flops_per_token(small) == 6 * matrices + attention


@pytest.mark.parametrize(
    ("changes", "card"),
    [
        ({"precision": "fp16"}, (9, 0)),
        ({"precision": "fp32"}, (9, 0)),
        ({"attention_impl": "manual"}, (9, 0)),
        ({"dropout": 0.1}, (9, 0)),
        ({}, (8, 0)),
    ],
)
def test_what_has_fewer_kernels_of_ours_is_compiled_sooner(
    changes: dict[str, Any], card: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = SimpleNamespace(multi_processor_count=132, major=card[0], minor=card[1])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    settings: dict[str, Any] = {"config": "medium", "precision": "bf16", "batch_size": 64, "epochs": 10**6}
    config = TrainConfig(**(settings | {"max_steps": 10_000} | changes))
    assert compiles(make_plan(config, 10**6, 0), GPU)
    properties.major, properties.minor = 9, 0
    assert not compiles(make_plan(TrainConfig(**settings, max_steps=10_000), 10**6, 0), GPU)


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(multi_processor_count=132, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


@pytest.mark.parametrize(
    ("preset", "precision", "batch_size", "passes", "saved_s", "compile_s"),
    [
        ("medium", "bf16", 64, 1, 0.00052, 25),
        ("medium", "bf16", 64, 2, 0.00104, 25),
        ("medium", "fp8", 64, 1, 0.166, 25),
        ("nano", "bf16", 4, 1, 0.0001, 12),
    ],
)
def test_runs_are_compiled_by_themselves_when_they_gain_more_than_it_takes(
    preset: str, precision: str, batch_size: int, passes: int, saved_s: float, compile_s: float, h100: None
) -> None:
    """Seconds that a step gained on an H100, and about those that it took to compile there."""
    config = TrainConfig(
        config=preset, precision=precision, batch_size=batch_size, grad_accum_steps=passes, epochs=10**6
    )
    worth = round(compile_s / saved_s)  # steps
    plans = [make_plan(replace(config, max_steps=round(share * worth)), 10**6, 0) for share in (0.75, 1.25)]
    assert [compiles(plan, GPU) for plan in plans] == [False, True]


def test_a_choice_decides_what_is_compiled(h100: None) -> None:
    config = TrainConfig(config="medium", batch_size=8, epochs=10**6)
    short, long = (make_plan(replace(config, max_steps=steps), 10**6, 0) for steps in (10, 100_000))
    assert [compiles(plan, GPU) for plan in (short, long)] == [False, True]
    assert not compiles(long, CPU)
    assert compiles(replace(short, config=replace(config, compile="on")), GPU)
    assert not compiles(replace(long, config=replace(config, compile="off")), GPU)


def test_a_cpus_kernels_are_compiled_for_runs_that_gain_more_than_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of nano with two threads takes 0.3 s at best, of which they save 15 % at least."""
    config = TrainConfig(precision="fp32", threads=2, epochs=10**6)
    worth = round(0.6 / (0.15 * 1024 * flops_per_token(config.model) / 2e11))
    assert 8 < worth < 20
    monkeypatch.setattr(native, "suits", lambda: True)
    short, long = (make_plan(replace(config, max_steps=worth + more), 10**6, 0) for more in (-2, 2))
    assert [builds_native(plan, CPU) for plan in (short, long)] == [False, True]
    for changes in ({"compile": "off"}, {"precision": "bf16"}):
        assert not builds_native(replace(long, config=replace(long.config, **changes)), CPU)
    assert not builds_native(long, GPU)
    on = replace(short, config=replace(short.config, compile="on"))
    assert builds_native(on, CPU)
    monkeypatch.setattr(native, "suits", lambda: False)
    assert not builds_native(long, CPU)
    assert builds_native(on, CPU)  # who asks for it is told why it cannot be


def test_steps_are_recorded_on_a_gpu_unless_turned_off() -> None:
    config = TrainConfig()
    assert records(config, GPU) and not records(config, CPU)
    assert not records(replace(config, compile="off"), GPU)
    assert not records(replace(config, gradient_checkpointing=True, dropout=0.1), GPU)


def test_a_recorder_that_is_off_does_the_work_each_time() -> None:
    recorder, done = Recorder(enabled=False), []
    for step in range(10):
        recorder.begin_step()
        recorder.run("piece", lambda step=step: done.append(step))  # type: ignore[misc]
    assert done == list(range(10)) and not recorder.recording
