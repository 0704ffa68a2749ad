"""What a learner is promised of a first run: the loss falls, the numbers are there, a small text is learnt by heart."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from engine import TrainConfig, train
from engine.bench.train import random_state, run_steps
from engine.evaluate import evaluate
from engine.metrics import METRICS


@pytest.mark.timeout(400)
def test_the_smoke_run_falls_below_seven() -> None:
    run = train(TrainConfig(config="nano", corpus="verdict", epochs=3))
    rows = pd.read_parquet(run.folder / "metrics.parquet")  # as a person would read it
    assert list(rows.columns) == METRICS.names
    assert list(rows.step) == list(range(1, run.total_steps + 1))
    assert rows.train_loss.iloc[0] == pytest.approx(10.825, rel=0.01)
    assert rows.train_loss.iloc[-1] < 7.0
    assert rows.val_loss.iloc[-1] < 7.5
    assert rows.val_loss.isna().any(), "a validation loss stands where none was measured"
    assert rows.tokens.iloc[-1] == run.total_steps * 4 * 256
    assert rows.epoch.iloc[-1] == pytest.approx(run.total_steps * 4 / 18)
    assert (rows.elapsed_s.diff().dropna() > 0).all()
    assert (rows.memory_gib > 0).all()
    assert rows.memory_gib.is_monotonic_increasing or sys.platform != "linux"  # the most so far
    assert run.state == "completed"
    assert run.info["parameters"] == run.config.model.parameters
    assert {event.kind for event in run.events} >= {"started", "saved", "completed"}
    assert run.problems == []
    assert list(run.samples.step)[-1] == run.total_steps
    assert set(run.samples.prompt) == {"I had always thought"}


@pytest.mark.timeout(400)
def test_a_small_text_is_learnt_by_heart() -> None:
    config = TrainConfig(config="nano", corpus="tiny", epochs=40, context_length=64, batch_size=2, sample_length=0)
    rows = train(config).metrics
    assert rows.train_loss.tail(5).mean() < 1.5
    best, last = rows.val_loss.min(), rows.val_loss.dropna().iloc[-1]
    assert last > rows.train_loss.tail(5).mean() + 2, "validation should stay well above training"
    assert last >= best


def test_no_pass_keeps_rounded_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """With checkpointing those of all blocks would be held at once."""
    kept: list[bool] = []
    config = replace(TrainConfig(context_length=16, batch_size=2, precision="bf16", device="cpu"), threads=1)
    state = random_state(config)
    state.validation = state.windows.tokens[:64]
    loss = state.model.loss

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        kept.append(torch.is_autocast_cache_enabled())
        return loss(*args, **kwargs)

    monkeypatch.setattr(state.model, "loss", watched)
    run_steps(state, 1)
    evaluate(state)
    assert len(kept) > 1 and not any(kept)
