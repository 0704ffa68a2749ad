"""python -m engine.train --json: a line for each step, validation and event, each once, while the run grows."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

import engine.cli.train
from engine.run import ActiveRun, list_runs

SETTINGS: dict[str, Any] = dict(
    corpus="tiny", context_length=16, batch_size=1, epochs=100, max_steps=40, threads=1, eval_every=4, sample_length=0
)
FLAGS = [word for name, value in SETTINGS.items() for word in ("--" + name.replace("_", "-"), str(value))]

pytestmark = pytest.mark.usefixtures("small_nano")


def test_lines_are_told_once_each_while_it_trains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = ActiveRun.log

    def log_slowly(self: ActiveRun, row: dict[str, Any]) -> None:
        """A look comes every half second; a validation's row, the second of its step, comes after some looks."""
        time.sleep(0.05 if "val_loss" not in row else 0.3)
        log(self, row)
        self.flush()

    monkeypatch.setattr(ActiveRun, "log", log_slowly)
    assert engine.cli.train.main([*FLAGS, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    [run] = list_runs()
    steps, validations, told = ([x for x in lines if x["kind"] == kind] for kind in ("step", "validation", "event"))
    assert lines[0]["kind"] == "run" and lines[-1]["kind"] == "end" and lines[0]["id"] == lines[-1]["id"] == run.id
    assert [line["step"] for line in steps] == list(run.metrics["step"]) == list(range(1, 41))
    assert [line["train_loss"] for line in steps] == list(run.metrics["train_loss"])
    measured = run.metrics[run.metrics["val_loss"].notna()]
    assert {line["step"]: line["val_loss"] for line in validations} == dict(
        zip(measured["step"], measured["val_loss"], strict=True)
    )
    assert [line["step"] for line in validations] == list(range(4, 41, 4))
    assert [line["message"] for line in told] == [event.message for event in run.events]
