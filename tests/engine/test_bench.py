"""`python -m engine.bench`: what it measures is so, and its mistakes are one sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from engine.accelerate import flops_per_token
from engine.bench.watch import Segment, WatchingCost
from engine.cli.bench import main
from engine.config import TrainConfig

SMALL = ["--config", "nano", "--batch-size", "1", "--context-length", "16", "--device", "cpu", "--threads", "1"]


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_training_is_measured_beside_matrix_products(capsys: pytest.CaptureFixture[str]) -> None:
    told = answer(capsys, "train", "--seconds", "0.5", *SMALL)
    assert told["tokens_per_s"] * told["step_s"] == pytest.approx(16)
    flops = flops_per_token(TrainConfig(config="nano", context_length=16).model)
    assert told["flops"] == pytest.approx(told["tokens_per_s"] * flops)
    assert told["utilization"] == pytest.approx(told["flops"] / told["matmul_flops"])
    assert 0 < told["utilization"] < 1
    assert 0 < told["first_step_s"] <= told["warm_up_s"]
    assert told["config"]["precision"] == "fp32" and told["config"]["compile"] == "auto"
    assert told["computed_with"]["PyTorch"] == torch.__version__ and told["lacking"] == []


def test_memory_is_measured_in_a_fresh_process(capsys: pytest.CaptureFixture[str]) -> None:
    told = answer(capsys, "memory", *SMALL)
    assert told["measured_gib"] == pytest.approx(told["estimate_gib"], rel=0.25)


def test_tokenizing_is_measured_beside_tiktoken(capsys: pytest.CaptureFixture[str]) -> None:
    told = answer(capsys, "tokenize", "--seconds", "0.5")
    assert told["tokens"] > 4000 and told["utilization"] > 0
    assert main(["tokenize", "--corpus", "nothing-of-this-name"]) != 0
    assert "nothing-of-this-name" in capsys.readouterr().err


def test_watching_is_held_against_the_paces_before_and_after() -> None:
    paces = ((False, 1000.0), (True, 855.0), (False, 800.0), (True, 900.0), (False, 1000.0))
    cost = WatchingCost(tuple(Segment(watched, pace, 1.0, 0.0, 0.0) for watched, pace in paces))
    assert cost.ratios == (0.95, 1.0) and cost.ratio == pytest.approx(0.975)
    assert cost.drift == (0.8, 1.25)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "--batch-size", "0", "--dropout", "7"], ("batch_size", "dropout")),
        (["train", "--device", "cuda:7"], ("does not exist",)),
        (["train", "--device", "cuda:7", "--batch-size", "0"], ("does not exist", "batch_size")),
        (["memory", "--precision", "fp16", "--device", "cpu"], ("fp16",)),
    ],
)
def test_wrong_settings_are_told_together(words: list[str], says: tuple[str, ...], capsys: Any) -> None:
    assert main(words) == 2
    complaint = capsys.readouterr().err
    assert "Traceback" not in complaint
    for word in says:
        assert word in complaint or word.replace("_", "-") in complaint


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "x"])
def test_seconds_are_a_number_above_zero(seconds: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--seconds", seconds])
    assert stopped.value.code == 2
