"""What `repeat.py` found on a real GPU holds its promises. To renew the record, run it there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.arithmetic import OWN_VERSION
from engine.cublaslt import parts_of
from engine.kernels import VERSION
from engine.paths import PROJECT

RECORD = [json.loads(line) for line in (PROJECT / "tests" / "data" / "h100_repeat.jsonl").read_text().splitlines()]
ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # the most that one value errs by when it is rounded


def found(part: str) -> list[dict[str, Any]]:
    return [row["found"] for row in RECORD if row["part"] == part]


@pytest.mark.parametrize(("part", "count"), [("attention", 12), ("products", 8), ("perceptron", 6), ("norm", 8)])
def test_kernels_err_by_rounding_and_repeat(part: str, count: int) -> None:
    rows = found(part)
    assert len(rows) == count and {row["dtype"] for row in rows} == {*ROUNDING}
    for row in rows:
        assert row["alike"], row
        assert 0 < max(row["error"].values()) < ROUNDING[row["dtype"]], row


def test_kernels_were_tried_at_contexts_with_and_without_a_rest() -> None:
    contexts = {row["shape"][1] for row in found("attention")}
    assert any(context % 128 == 0 for context in contexts) and any(context % 16 for context in contexts)
    assert {row["shape"][3] for row in found("attention")} >= {32, 64, 128}


def test_products_are_pytorchs_bit_for_bit_but_where_a_long_sum_is_cut_otherwise() -> None:
    for row in found("products"):
        rows, inner, outer = row["shape"]
        cut = parts_of(outer, rows, inner, 132) is not None
        assert set(row["as_pytorchs"]) == {"y", "d_x", "d_bias"} | (set() if cut else {"d_weight"}), row
    assert len({"d_weight" in row["as_pytorchs"] for row in found("products")}) == 2


def test_embeddings_err_by_rounding_and_repeat_however_often_a_token_comes() -> None:
    rows = found("embedding")
    assert {(row["tokens"], row["dtype"]) for row in rows} == {
        (how, dtype) for how in ("alike", "as in text", "one") for dtype in ("bfloat16", "float32")
    }
    for row in rows:
        assert row["alike"], row
        assert max(row["error"].values()) < (ROUNDING["bfloat16"] if row["dtype"] == "bfloat16" else 1e-6), row


def test_the_loss_repeats() -> None:
    rows = found("loss")
    assert len(rows) == 3 and all(row["alike"] for row in rows)
    assert max(row["error"]["loss"] for row in rows) < 1e-4
    assert max(max(row["error"].values()) for row in rows) < ROUNDING["bfloat16"]


def test_resumed_runs_are_the_unbroken_ones_bit_for_bit() -> None:
    rows = found("runs")
    assert len(rows) == 14
    for row in rows:
        assert row["losses_equal"] and row["norms_equal"] and row["weights_equal"], row
        assert row["arithmetic"][OWN_VERSION] == str(VERSION), row
    kinds = {(row["config"], row["compile"], bool(row.get("dropout"))) for row in rows}
    assert kinds >= {("nano", "auto", False)} | {("medium", c, d) for c in ("off", "on") for d in (False, True)}
    assert max(row["batch_size"] for row in rows if row["config"] == "medium") == 64
    assert any(row.get("gradient_checkpointing") for row in rows)
    assert any(row.get("grad_accum_steps", 1) > 1 for row in rows)
    assert any(row.get("attention_impl") == "manual" for row in rows)
    assert {row["precision"] for row in rows} == {"bf16", "fp16", "fp32", "fp8"}
    assert {row["config"] for row in rows} == {"nano", "medium", "large"}
