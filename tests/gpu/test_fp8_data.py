"""What `fp8.py` measured on a real GPU holds its promises. To renew the numbers, run it there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.paths import PROJECT

RECORD = [json.loads(line) for line in (PROJECT / "tests" / "data" / "h100_fp8.jsonl").read_text().splitlines()]


def found(part: str) -> list[dict[str, Any]]:
    return [row["found"] for row in RECORD if row["part"] == part]


def test_the_cards_products_err_like_the_cpus() -> None:
    [error] = found("product_error")
    assert 0.03 < error["y"] < 0.05 and 0.04 < error["d_x"] < 0.07 and 0.04 < error["d_weight"] < 0.07


def test_resume_is_exact() -> None:
    assert {row["compile"]: row["largest_difference"] for row in found("resume")} == {"off": 0, "on": 0}


def test_the_curve_is_bf16s() -> None:
    """Over 150 steps in which the loss falls by nine nats; where it falls fastest, bf16 and fp32 part by as much."""
    rows = found("curves")
    assert {(row["config"], row["compile"]) for row in rows} == {
        (p, c) for p in ("nano", "medium") for c in ("off", "on")
    }
    for row in rows:
        apart = row["fp8_bf16"]
        assert apart["median"] < 0.1 and apart["largest"] < 0.25 and apart["last"] < 0.15, row["config"]
        curve = row["train_loss"]["fp8"]
        assert len(curve) == 150 and curve[-1] < curve[0] - 9


@pytest.mark.parametrize("compile", ["off", "on"])
def test_it_needs_less_memory_than_bf16_and_what_was_estimated(compile: str) -> None:
    rows = {row["precision"]: row for row in found("speed") if row["compile"] == compile}
    assert rows["fp8"]["peak_gib"] < 0.9 * rows["bf16"]["peak_gib"]
    for row in rows.values():
        assert -0.03 < row["estimate_gib"] / row["peak_gib"] - 1 < 0.1
