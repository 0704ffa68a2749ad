"""The background thread: one at a time, steered by anyone, and gone without a trace in the numbers."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from engine import TrainConfig, session
from engine.errors import ConfigError, RunBusyError, RunError
from engine.paths import PROJECT
from engine.run import Run, list_runs, load_run

CONFIG = TrainConfig(
    config="nano", corpus="tiny", epochs=10_000, batch_size=1, context_length=32, sample_length=0, eval_every=-1
)

pytestmark = pytest.mark.usefixtures("small_nano")


@pytest.fixture(autouse=True)
def quiet_session(runs_folder: Path) -> Iterator[None]:
    yield
    run = session.active_run()
    if run:
        with suppress(RunError):  # it has just ended
            session.request(run.id, "stop")
        assert session.wait(30)


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def step_of(run: Run) -> int:
    rows = run.metrics
    return int(rows.step.iloc[-1]) if len(rows) else 0


def test_a_run_is_paused_saved_resumed_and_stopped() -> None:
    run = load_run(session.start(CONFIG))
    until(lambda: run.state == "running" and step_of(run) >= 2)
    session.request(run.id, "pause")
    until(lambda: run.state == "paused")
    paused_at = step_of(run)
    elapsed = run.metrics.elapsed_s.iloc[-1]
    session.request(run.id, "save")
    until(lambda: [c.step for c in run.checkpoints] == [paused_at])
    time.sleep(1.5)
    assert step_of(run) == paused_at
    session.request(run.id, "resume")
    until(lambda: run.state == "running" and step_of(run) > paused_at)
    rows = run.metrics.set_index("step")
    assert rows.elapsed_s[paused_at + 1] - elapsed < 1.4, "the pause was counted as training time"
    session.request(run.id, "stop")
    assert session.wait(30)
    assert run.state == "stopped"
    assert run.checkpoints[-1].step == step_of(run)
    assert session.active_run() is None
    assert not run.is_locked


def test_a_second_start_is_refused_and_names_the_first() -> None:
    first = session.start(CONFIG)
    with pytest.raises(RunBusyError) as refusal:
        session.start(CONFIG)
    assert refusal.value.run_id == first
    assert [run.id for run in list_runs()] == [first], "the refused start left something behind"


def test_a_run_of_another_process_is_refused_seen_and_steered() -> None:
    command = [sys.executable, "-m", "engine.train", "--corpus", "tiny", "--epochs", "10000", "--batch-size", "1"]
    command += ["--context-length", "32", "--sample-length", "0", "--json"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        until(lambda: bool(list_runs()) and step_of(list_runs()[0]) >= 1, 60)
        run = list_runs()[0]
        assert run.state == "running"
        with pytest.raises(RunBusyError) as refusal:
            session.start(CONFIG)
        assert refusal.value.run_id == run.id
        session.request(run.id, "pause")
        until(lambda: run.state == "paused")
        session.request(run.id, "stop")
        assert process.wait(30) == 0
    assert run.state == "stopped"
    with pytest.raises(RunError, match="not being trained"):
        session.request(run.id, "pause")


def test_wrong_settings_are_told_together_and_leave_nothing_behind() -> None:
    with pytest.raises(ConfigError) as refusal:
        session.start(replace(CONFIG, corpus="nowhere", batch_size=0, learning_rate=7.0))
    assert {problem.field for problem in refusal.value.problems} >= {"batch_size", "learning_rate"}
    assert list_runs() == []
    assert session.active_run() is None


def test_leaving_the_process_stops_and_saves() -> None:
    code = (
        "import time; from engine import TrainConfig, session\n"
        "from engine.run import load_run\n"
        "config = TrainConfig(corpus='tiny', epochs=10000, batch_size=1, context_length=32, sample_length=0)\n"
        "run = load_run(session.start(config))\n"
        "while len(run.metrics) < 2: time.sleep(0.05)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, timeout=90)
    run = list_runs()[0]
    assert run.state == "stopped"
    assert run.checkpoints[-1].step == step_of(run) >= 2


def test_a_series_runs_one_after_the_other_and_says_what_it_belongs_to() -> None:
    short = replace(CONFIG, max_steps=2)
    series = [(short, name, {"exercise": {"key": "smoke", "role": name}}) for name in ("one", "two")]
    first = session.start_series(series)
    assert load_run(first).info["name"] == "one"
    until(lambda: [run.state for run in list_runs()] == ["completed", "completed"], 60)
    assert sorted(run.info["exercise"]["role"] for run in list_runs()) == ["one", "two"]


def test_a_run_that_is_stopped_ends_its_series() -> None:
    first = session.start_series([(CONFIG, "one", {}), (replace(CONFIG, max_steps=2), "two", {})])
    until(lambda: step_of(load_run(first)) >= 1)
    session.request(first, "stop")
    assert session.wait(30)
    time.sleep(0.5)
    assert [run.state for run in list_runs()] == ["stopped"]
