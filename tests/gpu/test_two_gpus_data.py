"""What `two_gpus.py` measured on two real GPUs holds its promises. To renew the numbers, run it there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine import TrainConfig
from engine.memory import GIB, estimate_memory
from engine.paths import PROJECT

RECORD = [json.loads(line) for line in (PROJECT / "tests" / "data" / "two_gpus.jsonl").read_text().splitlines()]


def found(part: str) -> dict[str, Any]:
    """What was found, by `compile`."""
    return {row["compile"]: row["found"] for row in RECORD if row["part"] == part}


@pytest.mark.parametrize(("compile", "batch_size", "ratio"), [("on", 64, 1.9), ("off", 32, 1.8)])
def test_two_are_nearly_twice_as_fast_as_one(compile: str, batch_size: int, ratio: float) -> None:
    """With small batches what the processes exchange takes a larger part of a step."""
    measured = found("throughput")[compile]
    assert measured["batch_size"] == batch_size and measured["ratio"] >= ratio


@pytest.mark.parametrize("compile", ["off", "on"])
def test_two_learn_what_one_learns_with_the_same_global_batch(compile: str) -> None:
    """In bf16: bit for bit, as both make the same sums of the same sequences. In fp32 the suite tries it on a CPU."""
    losses = found("same_losses")[compile]
    assert losses["largest_difference"] == 0
    for first, last in losses["first_and_last"]:
        assert last < first - 5


@pytest.mark.parametrize("compile", ["auto", "on"])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_resume_is_exact(optimizer: str, compile: str) -> None:
    [resumed] = [one for one in found("exact_resume")[compile] if one["optimizer"] == optimizer]
    assert resumed["steps"] and resumed["same_weights"] and resumed["largest_difference"] == 0


def test_a_killed_rank_ends_the_run_with_its_name() -> None:
    [killed] = found("killed_rank").values()
    assert killed["state"] == "failed" and killed["seconds"] < 10
    assert killed["error"].startswith("Rank 1 (") and "killed" in killed["error"]


@pytest.mark.parametrize("compile", ["off", "on"])
@pytest.mark.parametrize("processes", [1, 2])
def test_memory_is_what_was_estimated(processes: int, compile: str) -> None:
    measured = found("throughput")[compile]
    config = TrainConfig(
        config="medium", corpus="verdict", batch_size=measured["batch_size"], precision="bf16", compile=compile
    )
    estimate = estimate_memory(config, "cuda", processes=processes).peak_allocated / GIB
    assert -0.03 <= estimate / measured[("one_gib", "two_gib")[processes - 1]] - 1 <= 0.1
