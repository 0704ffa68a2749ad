"""What `grid.py` measured on a real GPU holds its promises. To renew the numbers, run it there."""

from __future__ import annotations

import json
import statistics
from typing import Any

import pytest

from engine.paths import PROJECT

RECORD = json.loads((PROJECT / "tests" / "data" / "h100_grid.json").read_text())
GRID: list[dict[str, Any]] = RECORD["grid"]
AXES = ("precision", "optimizer", "attention_impl", "gradient_checkpointing")


def row(config: str, *values: Any) -> dict[str, Any]:
    [found] = [r for r in GRID if r["config"] == config and tuple(r[axis] for axis in AXES) == values]
    return found


def test_every_combination_was_trained_to_its_end() -> None:
    assert len({tuple(r[axis] for axis in ("config", *AXES)) for r in GRID}) == 2 * 3 * 3 * 2 * 2
    assert {r["state"] for r in GRID} == {"completed"}
    for r in GRID:
        assert len(r["train_loss"]) == RECORD["steps"][r["config"]]
        assert r["train_loss"][-1] < r["train_loss"][0] - 1, r


def follows(mine: dict[str, Any], reference: dict[str, Any], within: float) -> bool:
    """Close at nearly every step and at the end; single steps may jump in one and not in the other."""
    apart = [abs(a - b) for a, b in zip(mine["train_loss"], reference["train_loss"], strict=True)]
    return statistics.median(apart) <= within and apart[-1] <= within


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_follows_fp32(precision: str) -> None:
    for r in GRID:
        if r["precision"] == precision:
            assert follows(r, row(r["config"], "fp32", *(r[axis] for axis in AXES[1:])), within=0.1), r


def test_attention_and_checkpointing_do_not_change_the_curve() -> None:
    for r in GRID:
        assert follows(r, row(r["config"], r["precision"], r["optimizer"], "sdpa", False), within=0.05), r


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_what_saves_memory_does(precision: str) -> None:
    for attention in ("sdpa", "manual"):
        plain = row("medium", precision, "adamw", attention, False)
        assert row("medium", precision, "adamw", attention, True)["peak_gib"] < 0.8 * plain["peak_gib"]
    fused = row("medium", precision, "adamw", "sdpa", False)
    assert fused["peak_gib"] < 0.8 * row("medium", precision, "adamw", "manual", False)["peak_gib"]


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
def test_8_bit_moments_follow_32_bits_and_need_less(optimizer: str) -> None:
    for r in GRID:
        if r["optimizer"] == optimizer:
            reference = row(r["config"], r["precision"], "adamw", *(r[axis] for axis in AXES[2:]))
            assert follows(r, reference, within=0.1), r
            assert r["peak_gib"] < reference["peak_gib"]


def test_a_stopped_run_goes_on_as_if_it_had_not_been() -> None:
    assert len(RECORD["resume"]) == 9
    for r in RECORD["resume"]:
        assert r["largest_difference"] <= 1e-5, r
        first, last = r["saved"][0], r["saved"][-1]
        assert 18 <= first <= 25 and last == RECORD["steps"]["nano"], r  # a GPU may be some steps ahead of the wish


@pytest.mark.parametrize("how", ["off", "on"])
def test_it_does_so_compiled_and_not(how: str) -> None:
    rows = [r for r in RECORD["compile"] if r["compile"] == how]
    assert {r["precision"] for r in rows} == {"fp32", "bf16"}
    assert all(r["largest_difference"] == 0 and r["stopped_at"] < RECORD["steps"]["nano"] for r in rows)


def test_another_compilation_on_the_way_changes_a_loss_by_rounding_alone() -> None:
    assert {(r["before"], r["after"]) for r in RECORD["switched"]} == {("off", "on"), ("on", "off"), ("off", "auto")}
    assert all(r["largest_difference"] <= 0.005 for r in RECORD["switched"])
    (replayed,) = [r for r in RECORD["switched"] if r["after"] == "auto"]
    assert replayed["largest_difference"] == 0  # a short run is only replayed, which changes nothing at all


def test_a_loss_that_is_not_finite_never_reaches_the_weights() -> None:
    assert {r["optimizer"] for r in RECORD["non_finite"]} == {"adamw", "adamw_8bit", "paged_adamw_8bit"}
    for r in RECORD["non_finite"]:
        assert r["weights_untouched"]
        assert (r["state"], r["step"]) == ("failed", 8)
        assert r["says"].startswith("At step 8 the loss was no finite number")
