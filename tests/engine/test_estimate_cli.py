"""`python -m engine.estimate`: numbers of the estimate, what would fit, and mistakes in sentences."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from engine.cli.estimate import main
from engine.config import TrainConfig
from engine.memory import GIB, estimate_memory
from engine.paths import PROJECT


def test_it_prints_the_breakdown_and_what_would_fit(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", "medium", "--batch-size", "16", "--device", "cuda", "--limit-gb", "8"]
    assert main([*options, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    expected = estimate_memory(TrainConfig(config="medium", batch_size=16), "cuda")
    assert answer["estimate_gib"]["total"] == pytest.approx(expected.total / GIB)
    assert not answer["fits"] and answer["would_fit"]
    assert all(change["total_gib"] <= 8e9 / GIB for change in answer["would_fit"])
    assert main(options) == 0
    text = capsys.readouterr().out
    assert "does not fit into the 7.45 GiB" in text and re.search(r"--config \w+   saves \d", text)


def test_processes_hold_their_gradients_besides(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", "xlarge", "--batch-size", "1", "--device", "cuda", "--limit-gb", "9"]
    assert main(options) == 0
    assert "It fits into the" in capsys.readouterr().out
    assert main([*options, "--processes", "2"]) == 0
    text = capsys.readouterr().out
    assert "each of 2 processes" in text and "It does not fit" in text
    assert main([*options, "--processes", "2", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    held = estimate_memory(TrainConfig(config="xlarge", batch_size=1), "cuda", processes=2)
    assert answer["estimate_gib"]["total"] == pytest.approx(held.total / GIB)
    assert held.gradients > 4 * TrainConfig(config="xlarge").model.parameters
    assert all(change["total_gib"] <= 9e9 / GIB for change in answer["would_fit"])


def test_without_a_limit_it_compares_with_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "small", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    on_gpu = estimate_memory(TrainConfig(config="small"), "cuda").total / GIB  # cards are no matter of the process here
    assert "It fits into the" in said and f"On a GPU it would need {on_gpu:.3f} GiB" in said


def test_all_mistakes_are_told_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--batch-size", "0", "--precision", "fp8x", "--limit-gb", "much", "--processes", "0"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in said] == ["--batch-size", "--precision", "--limit-gb", "--processes"]


def test_a_precision_that_a_cpu_does_not_train_in_is_refused_as_by_a_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for precision in ("fp16", "fp8"):
        assert main(["--precision", precision, "--device", "cpu", "--batch-size", "0", "--limit-gb", "8"]) == 2
        said = capsys.readouterr()
        assert [line.partition(":")[0] for line in said.err.splitlines()] == ["--batch-size", "--precision"]
        assert f"{precision} trains on a" in said.err and not said.out
        assert main(["--precision", precision, "--device", "cuda", "--limit-gb", "8"]) == 0  # what a card would need
        assert "nano on cuda" in capsys.readouterr().out


def test_with_device_and_limit_it_needs_no_torch() -> None:
    code = (
        "import sys; from engine.cli.estimate import main; main(['--device', 'cuda', '--limit-gb', '8']);"
        " sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, timeout=60).returncode == 0
