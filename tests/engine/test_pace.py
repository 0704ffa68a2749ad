"""engine.pace: which earlier run tells the speed of a new one, and what is measured when none does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import pace
from engine.config import TrainConfig, to_dict
from engine.errors import OutOfMemoryError, RunBusyError
from engine.model import GPT
from engine.pace import measure_pace, pace_of_earlier_runs
from engine.run import device_lock, list_runs
from engine.start import plan_run

CONFIG = TrainConfig(context_length=64, batch_size=2, device="cpu", precision="fp32", threads=2)


def add_run(
    folder: Path,
    number: int,
    rate: float,
    device: str = "This CPU",
    seconds: float = 10.0,
    steps: int = 20,
    **changes: Any,
) -> None:
    run = folder / f"20261122-15301{number}-nano-verdict-000{number}"
    run.mkdir()
    info = {
        "name": f"Run {number}",
        "config": to_dict(CONFIG) | changes,
        "environment": {"machine": {"device_name": device}},
        "progress": {"tokens": int(rate * seconds), "elapsed_s": seconds, "step": steps},
        "parent": None,
    }
    (run / "run.json").write_text(json.dumps(info))


def test_the_most_similar_run_on_this_device_is_asked(runs_folder: Path) -> None:
    add_run(runs_folder, 1, 1000.0)
    add_run(runs_folder, 2, 1500.0, batch_size=8)
    add_run(runs_folder, 3, 9000.0, device="Another")
    add_run(runs_folder, 4, 8000.0, config="small")
    add_run(runs_folder, 5, 7000.0, seconds=0.5)
    add_run(runs_folder, 6, 20.0, seconds=30.0, steps=3)  # mostly its validation
    found = pace_of_earlier_runs(CONFIG, list_runs(), "This CPU")
    assert found is not None and found.whole
    assert found.tokens_per_s == pytest.approx(1000) and found.basis == "the pace of run Run 1"


def test_what_differs_is_told(runs_folder: Path) -> None:
    add_run(runs_folder, 1, 1500.0, batch_size=8, attention_impl="manual")
    found = pace_of_earlier_runs(CONFIG, list_runs(), "This CPU")
    assert found is not None and found.basis == "the pace of run Run 1, which had another batch size, attention"


def test_several_processes_tell_nothing_of_one(runs_folder: Path) -> None:
    add_run(runs_folder, 1, 1000.0)
    add_run(runs_folder, 2, 1900.0)
    newest = list_runs()[0]
    (newest.folder / "run.json").write_text(json.dumps(newest.info | {"world_size": 2}))
    found = pace_of_earlier_runs(CONFIG, list_runs(), "This CPU")
    assert found is not None and found.tokens_per_s == pytest.approx(1000)


def test_no_run_and_damaged_runs_tell_nothing(runs_folder: Path) -> None:
    assert pace_of_earlier_runs(CONFIG, list_runs(), "This CPU") is None
    for number, text in enumerate(("{}", "[]", '{"config": 3, "environment": 4, "progress": "x"}')):
        folder = runs_folder / f"20261122-15301{number}-nano-verdict-000{number}"
        folder.mkdir()
        (folder / "run.json").write_text(text)
    assert pace_of_earlier_runs(CONFIG, list_runs(), "This CPU") is None


def test_steps_are_measured_and_nothing_is_written(runs_folder: Path) -> None:
    plan = plan_run(CONFIG)[0]
    found = measure_pace(plan, seconds=0.1)
    assert 10 < found.tokens_per_s < 1e7 and not found.whole
    assert found.seconds(plan) == pytest.approx(plan.tokens / found.tokens_per_s)
    assert list_runs() == []


def test_a_device_that_is_busy_is_not_measured() -> None:
    lock = device_lock("cpu")
    lock.acquire(note="20261122-153012-nano-verdict-7f3a")
    try:
        with pytest.raises(RunBusyError, match="A run is training on this device now"):
            measure_pace(plan_run(CONFIG)[0])
    finally:
        lock.release()


def test_memory_that_runs_out_is_told_with_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(*args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.empty(2**50, dtype=torch.uint8)  # a petabyte

    monkeypatch.setattr(GPT, "loss", loss)
    with pytest.raises(OutOfMemoryError, match=r"^Memory ran out on cpu\. By the estimate these would fit: ") as caught:
        measure_pace(plan_run(replace(CONFIG, batch_size=64))[0])
    assert caught.value.would_fit
    lock = device_lock("cpu")
    assert lock.acquire(note="")
    lock.release()


def test_every_decisive_setting_exists() -> None:
    assert set(pace._DECISIVE) <= to_dict(CONFIG).keys()
