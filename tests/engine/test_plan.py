"""engine.plan: how long a run is, and what stands for "choose for me"."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import PRESETS, TrainConfig
from engine.data import count_windows, split
from engine.errors import ConfigError
from engine.plan import cautions, learning_rate, make_plan, too_small_for, windows_by_preset


def refusal(tokens: int, **settings: Any) -> tuple[str, str]:
    with pytest.raises(ConfigError) as caught:
        make_plan(TrainConfig(**settings), tokens, 0)
    (problem,) = caught.value.problems
    return problem.field, problem.message


def test_steps_of_the_first_run() -> None:
    """nano on The Verdict: 4,630 tokens make 18 windows of 256, and 3 epochs of batches of 4 are 14 steps."""
    plan = make_plan(TrainConfig(), 4630, 515)
    assert (plan.windows, plan.total_steps, plan.tokens, plan.steps_per_epoch) == (18, 14, 14 * 4 * 256, 4.5)


@given(
    epochs=st.floats(0.001, 50),
    tokens=st.integers(100, 10_000),
    batch_size=st.integers(1, 3),
    accumulation=st.integers(1, 3),
)
def test_the_run_covers_its_epochs_and_not_a_step_more(
    epochs: float, tokens: int, batch_size: int, accumulation: int
) -> None:
    config = TrainConfig(epochs=epochs, batch_size=batch_size, grad_accum_steps=accumulation, context_length=8)
    plan = make_plan(config, tokens, 0)
    wanted = epochs * count_windows(tokens, 8)
    per_step = batch_size * accumulation
    assert plan.total_steps * per_step >= wanted - 1e-5 * per_step
    assert plan.total_steps == 1 or (plan.total_steps - 1) * per_step < wanted


def test_whole_epochs_are_whole_in_spite_of_rounding() -> None:
    config = TrainConfig(epochs=0.1 * 3, batch_size=1, context_length=10)  # 0.30000000000000004
    assert make_plan(config, 101, 0).total_steps == 3


@given(st.integers(1, 10_000))
def test_max_steps_is_a_limit_and_no_target(limit: int) -> None:
    config = TrainConfig(max_steps=limit)
    assert make_plan(config, 4630, 515).total_steps == min(limit, 14)


def test_nothing_is_left_to_choose_in_a_plan() -> None:
    config = make_plan(TrainConfig(), 4630, 515, device="cuda:0", precision="bf16").config
    assert (config.device, config.precision, config.context_length) == ("cuda:0", "bf16", 256)
    assert config.learning_rate > 0 and config.warmup_steps > 0
    assert min(config.eval_every, config.eval_batches, config.sample_every, config.save_every) > 0


def test_what_was_chosen_is_kept() -> None:
    chosen = TrainConfig(
        context_length=32,
        learning_rate=0.01,
        warmup_steps=0,
        eval_every=-1,
        eval_batches=3,
        sample_every=7,
        save_every=-1,
        device="cpu",
        precision="bf16",
    )
    assert make_plan(chosen, 4630, 515, device="cuda:0", precision="fp32").config == chosen


def test_a_plan_of_a_plan_is_the_same_plan() -> None:
    plan = make_plan(TrainConfig(epochs=30), 4630, 515)
    assert make_plan(plan.config, 4630, 515) == plan


@pytest.mark.parametrize("preset", PRESETS)
def test_automatic_learning_rates(preset: str) -> None:
    tokens = 100 * PRESETS[preset].context_length + 1
    long = make_plan(TrainConfig(config=preset, batch_size=1), tokens, 0).config
    short = make_plan(TrainConfig(config=preset, batch_size=1, max_steps=10), tokens, 0).config
    assert long.learning_rate == PRESETS[preset].learning_rate
    assert short.learning_rate == pytest.approx(3 * long.learning_rate)
    assert 1 <= short.warmup_steps < 10 and 1 <= long.warmup_steps <= 200


@pytest.mark.parametrize("steps", [1, 2, 14, 49, 50, 135, 1000, 100_000])
def test_automatic_intervals_give_points_from_the_start_and_never_too_many(steps: int) -> None:
    config = make_plan(TrainConfig(batch_size=1, context_length=1, max_steps=steps, epochs=1e5), 200_000, 0).config
    assert 1 <= config.eval_every <= max(1, math.ceil(steps / 10))
    assert 1 <= config.sample_every <= max(1, math.ceil(steps / 5))
    assert config.eval_every <= 500 and config.sample_every <= 1000 and 100 <= config.save_every <= 1000


@given(peak=st.floats(1e-6, 1), warmup=st.integers(0, 200), extra=st.integers(1, 2000), fraction=st.floats(0, 1))
def test_the_learning_rate_rises_to_its_peak_and_falls_to_a_tenth(
    peak: float, warmup: int, extra: int, fraction: float
) -> None:
    total = warmup + extra
    config = TrainConfig(learning_rate=peak, warmup_steps=warmup)
    rates = [learning_rate(config, step, total) for step in range(total + 1)]
    assert max(rates) == pytest.approx(peak)
    assert rates[warmup] == pytest.approx(peak)
    assert rates[-1] == pytest.approx(peak / 10)
    assert all(a < b for a, b in pairwise(rates[:warmup]))
    assert all(a >= b for a, b in pairwise(rates[warmup:]))
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)


def test_the_first_step_of_a_warm_up_already_moves() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_steps=4)
    assert [learning_rate(config, step, 100) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_half_way_down_the_cosine() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_steps=10)
    assert learning_rate(config, 60, 110) == pytest.approx(0.55)


def test_a_context_longer_than_the_text() -> None:
    field, message = refusal(200, context_length=256)
    assert field == "context_length"
    assert "256" in message and "200" in message and "--context-length" in message


def test_a_context_as_long_as_the_text_lacks_the_last_target() -> None:
    assert refusal(256, context_length=256, batch_size=1)[0] == "context_length"
    assert make_plan(TrainConfig(context_length=256, batch_size=1), 257, 0).windows == 1


def test_a_batch_larger_than_the_text() -> None:
    field, message = refusal(4630, batch_size=10, grad_accum_steps=2)
    assert field == "batch_size"
    assert "10 × 2 = 20" in message and "4,630" in message and "18" in message and "--batch-size" in message


# ------------------------------------------------------------------------------------------------ small corpora


@given(tokens=st.integers(0, 3_000_000), whole=st.booleans())
def test_windows_by_preset_are_those_a_run_would_have(tokens: int, whole: bool) -> None:
    text = np.empty(tokens, dtype=np.uint16)
    train = len(text) if whole else len(split(text, TrainConfig().val_fraction)[0])
    for name, windows in windows_by_preset(tokens, whole=whole).items():
        try:
            plan = make_plan(TrainConfig(config=name, batch_size=1, grad_accum_steps=1), train, 0)
        except ConfigError:
            assert windows == 0
        else:
            assert plan.windows == windows


@given(tokens=st.integers(0, 60_000), whole=st.booleans())
def test_a_corpus_is_too_small_for_a_preset_exactly_when_a_run_is_refused(tokens: int, whole: bool) -> None:
    train = tokens if whole else tokens - round(tokens * 0.1)
    refused = []
    for name in PRESETS:
        try:
            make_plan(TrainConfig(config=name), train, 0)
        except ConfigError:
            refused.append(name)
    sentence = too_small_for(tokens, whole=whole)
    assert (sentence == "") == (refused == [])
    if refused:
        assert sentence.startswith(f"Too small for {', '.join(refused)}: ")
        assert f"the training part has {train:,}." in sentence and "\n" not in sentence


def test_the_numbers_of_a_corpus_that_is_too_small() -> None:
    assert too_small_for(1000).startswith("Too small for ")
    assert "a step takes 4 × 256 tokens or more and one to predict last, and the training part has 900." in (
        too_small_for(1000)
    )
    assert "nano" not in too_small_for(1025, whole=True) and "nano" in too_small_for(1024, whole=True)
    assert too_small_for(10_000_000) == ""


def test_what_is_allowed_but_hardly_meant_is_said() -> None:
    def said(**settings: Any) -> dict[str, str]:
        return {c.field: c.message for c in cautions(make_plan(TrainConfig(**settings), 4630, 515), cores=2)}

    assert said() == said(warmup_steps=14, threads=2) == {}  # 14 steps in all
    assert said(warmup_steps=15, threads=3).keys() == {"warmup_steps", "threads"}
    assert "ends after 14 steps" in said(warmup_steps=15)["warmup_steps"]
