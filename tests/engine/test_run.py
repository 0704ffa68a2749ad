"""engine.run: a run is a folder; readers never raise, ids never become paths."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.config import TrainConfig
from engine.errors import RunBusyError, RunError
from engine.files import write_json
from engine.metrics import METRICS
from engine.paths import PROJECT
from engine.run import (
    ACTIVE_STATES,
    STATES,
    ActiveRun,
    Run,
    active_runs,
    list_runs,
    load_run,
    new_id,
    new_info,
    read_config,
)
from engine.start import plan_run
from engine.trash import trash_run

CONFIG = TrainConfig(corpus="tiny", context_length=32, batch_size=1, device="cpu")
PLAN = plan_run(CONFIG)[0]


def make(run_id: str = "", **facts: Any) -> ActiveRun:
    """A new run, open for writing."""
    run_id = run_id or new_id(CONFIG)
    return ActiveRun(run_id, PLAN, new_info(run_id, PLAN, **facts)).open()


def finished(run_id: str = "", state: str = "stopped") -> Run:
    run = make(run_id)
    run.set_state(state)
    run.close()
    return run.reader


def row(step: int, **values: Any) -> dict[str, Any]:
    return {"step": step, "position": step, "train_loss": 2.0, "elapsed_s": 0.1 * step} | values


@contextmanager
def trained_elsewhere(folder: Path) -> Iterator[None]:
    """Another process holds the run's lock."""
    code = (
        "import sys; from pathlib import Path; from engine.files import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1])); print(lock.acquire(), flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / "lock")], cwd=PROJECT, stdin=pipe, stdout=pipe, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "True\n"
        yield
    finally:
        process.kill()
        process.communicate()


# ------------------------------------------------------------------------------------------------ states


@pytest.mark.parametrize("state", [s for s in STATES if s != "interrupted"])
def test_a_state_is_read_as_it_was_written_while_the_lock_is_held(state: str) -> None:
    run = make()
    run.set_state(state)
    assert run.reader.state == state
    run.close()
    assert run.reader.state == ("interrupted" if state in ACTIVE_STATES else state)


def test_interrupted_is_never_written() -> None:
    run = make()
    with pytest.raises(AssertionError):
        run.set_state("interrupted")
    run.close()


def test_the_state_follows_the_process_that_trains() -> None:
    run = finished(state="running")
    assert run.state == "interrupted"
    with trained_elsewhere(run.folder):
        assert run.state == "running"
    assert run.state == "interrupted"


def test_the_runs_that_train_now_are_found_by_their_devices() -> None:
    finished()
    first = make()
    second = ActiveRun(
        "20261122-153012-second", replace(PLAN, config=replace(CONFIG, device="cuda:1")), first.reader.info
    )
    second.open()
    assert [run.id for run in active_runs()] == sorted([first.id, second.id], reverse=True)
    second.set_state("completed")  # it still holds its device, for an instant
    assert [run.id for run in active_runs()] == [first.id]
    second.close()
    first.close()
    assert first.reader.state == "interrupted" and active_runs() == []


def test_an_end_is_dated_and_a_failure_explained() -> None:
    run = make()
    assert run.reader.info["ended"] is None
    run.set_state("failed", "The disk is full.")
    run.close()
    info = run.reader.info
    assert info["error"] == "The disk is full." and info["ended"] >= info["created"]


# --------------------------------------------------------------------------------------------------- ids


@pytest.mark.parametrize(
    "run_id",
    ["../x", "..", ".", "", "/etc", "a/b", "a\\b", "a\0b", ".hidden", "-rf", "x" * 200, "a\n", "é", "~", "a b"],
)
def test_what_is_no_id_is_refused(run_id: str, runs_folder: Path) -> None:
    outside = runs_folder.parent / "x"
    outside.mkdir()
    write_json(outside / "run.json", {"state": "completed"})
    for function in (load_run, trash_run):
        with pytest.raises(RunError, match="is not the id of a run"):
            function(run_id)
    assert (outside / "run.json").exists()


def test_an_absolute_path_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {})
    with pytest.raises(RunError, match="is not the id of a run"):
        load_run(str(tmp_path))


def test_an_unknown_id_is_told() -> None:
    with pytest.raises(RunError, match="There is no run 20261122-153012-nano-tiny-7f3a"):
        load_run("20261122-153012-nano-tiny-7f3a")


def test_new_ids_are_ids_whatever_the_corpus_is_called() -> None:
    for corpus in ("tiny", "my_own_text", "x" * 64):
        run_id = new_id(TrainConfig(corpus=corpus))
        finished(run_id)
        assert load_run(run_id).id == run_id
    assert len({new_id(CONFIG) for _ in range(50)}) > 45  # within one second


# ---------------------------------------------------------------------------------------------- listing


def test_runs_are_listed_newest_first() -> None:
    ids = ["20261122-153012-nano-tiny-7f3a", "20261122-153011-nano-tiny-ffff", "20251122-153012-nano-tiny-0000"]
    for run_id in reversed(ids):
        finished(run_id)
    assert [run.id for run in list_runs()] == ids


def test_foreign_folders_are_no_runs(runs_folder: Path) -> None:
    run = finished()
    (runs_folder / "my-notes").mkdir()
    (runs_folder / "file.txt").write_text("x")
    for name in (".trash-abc-1", "with blank"):
        (runs_folder / name).mkdir()
        write_json(runs_folder / name / "run.json", {"state": "completed"})
    assert [r.id for r in list_runs()] == [run.id]


def test_no_folder_of_runs_is_no_runs(runs_folder: Path) -> None:
    runs_folder.rmdir()
    assert list_runs() == []


# ----------------------------------------------------------------------------------------------- damage

READ: dict[str, Callable[[Run], Any]] = {
    "state": lambda run: run.state,
    "repr": repr,
    "total_steps": lambda run: run.total_steps,
    "metrics": lambda run: len(run.metrics),
    "samples": lambda run: len(run.samples),
    "events": lambda run: run.events,
    "checkpoints": lambda run: run.checkpoints,
    "signature": lambda run: run.signature,
    "problems": lambda run: run.problems,
}


@pytest.mark.parametrize("content", ["", "{", "null", "[]", '{"state": "running', '{"state": ["x"]}', "{}"])
@pytest.mark.parametrize("what", READ)
def test_no_reader_raises_because_run_json_is_damaged(what: str, content: str) -> None:
    run = finished()
    (run.folder / "run.json").write_text(content)
    READ[what](run)
    assert [r.id for r in list_runs()] == [run.id]
    assert run.state == "interrupted"


@pytest.mark.parametrize("value", [None, "x", [1], {}])
def test_a_strange_number_of_steps_does_not_raise(value: Any) -> None:
    run = finished()
    write_json(run.folder / "run.json", run.info | {"total_steps": value})
    assert run.total_steps == 0


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_run_json_is_named(content: str) -> None:
    run = finished()
    assert run.problems == []
    (run.folder / "run.json").write_text(content)
    assert run.problems == ["run.json is missing or damaged."]
    with pytest.raises(RunError, match=r"run\.json is missing or damaged"):
        _ = run.config


def test_a_config_out_of_range_is_told() -> None:
    run = finished()
    info = run.info
    info["config"] |= {"batch_size": -1}
    write_json(run.folder / "run.json", info)
    with pytest.raises(RunError, match="batch_size"):
        _ = run.config


def test_a_setting_of_another_version_is_ignored() -> None:
    run = finished()
    info = run.info
    info["config"] |= {"a_setting_of_the_future": 1}
    write_json(run.folder / "run.json", info)
    assert run.config == PLAN.config


def test_damaged_tables_and_checkpoints_are_problems_and_not_errors() -> None:
    run = finished()
    (run.folder / "metrics" / "000001.parquet").write_bytes(b"torn")
    (run.folder / "samples.parquet").write_bytes(b"")
    (run.folder / "checkpoints" / "step-000005").mkdir(parents=True)
    words = "\n".join(run.problems)
    assert len(run.problems) == 3
    assert all(name in words for name in ("000001.parquet", "samples.parquet", "step-000005"))
    assert len(run.metrics) == 0


def test_a_run_that_vanishes_while_it_is_watched_does_not_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there when it is looked for, and gone a moment later."""
    run = finished()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", lambda _: True)
        for path in run.folder.iterdir():
            if path.is_file():
                path.unlink()
        signature = run.signature
    assert isinstance(signature, tuple)


# ----------------------------------------------------------------------------------------------- events


def test_events_come_back_in_order() -> None:
    run = make()
    run.log(row(3))
    for kind in ("started", "saved"):
        run.event(kind, f"It {kind}. Übung\u2028\n")
    run.event("stopped", "At another step.", step=9)
    events = run.reader.events
    run.close()
    assert [(e.kind, e.step) for e in events] == [("started", 3), ("saved", 3), ("stopped", 9)]
    assert events[0].message == "It started. Übung\u2028\n"


def test_a_torn_line_costs_no_other_event() -> None:
    run = make()
    run.event("started", "first")
    path = run.folder / "events.jsonl"
    with path.open("a") as file:
        file.write('{"time": "2026-11-22T15:3')  # a process killed in mid-write
    run.event("saved", "second")
    run.close()
    assert [e.message for e in run.reader.events] == ["first", "second"]


@pytest.mark.parametrize(
    "line", ["", "[]", "1", "null", '{"time": 1}', '{"time":"", "step":Infinity, "kind":"", "message":""}']
)
def test_a_foreign_line_is_left_out(line: str) -> None:
    run = finished()
    (run.folder / "events.jsonl").write_text(line + "\n")
    assert run.events == []


# ---------------------------------------------------------------------------------------------- writing


def test_what_is_logged_is_read_by_others() -> None:
    run = make(name="My run", notes="Why not")
    run.log(row(1))
    run.log(row(2, val_loss=1.5, train_loss=float("nan")))
    run.flush()
    metrics = run.reader.metrics
    run.close()
    assert list(metrics.columns) == METRICS.names
    assert metrics["step"].tolist() == [1, 2]
    assert metrics["val_loss"].isna().tolist() == [True, False]
    assert (metrics["time"].dt.tz is not None) and metrics["time"].is_monotonic_increasing
    assert run.progress["train_loss"] is None and run.progress["best_val_loss"] == 1.5
    assert (run.reader.info["name"], run.reader.info["notes"]) == ("My run", "Why not")


def test_the_best_validation_loss_is_remembered() -> None:
    run = make()
    for step, loss in enumerate([3.0, 2.0, float("nan"), 2.5], start=1):
        run.log(row(step, val_loss=loss))
    run.close()
    assert (run.progress["best_val_loss"], run.progress["best_val_step"], run.progress["val_loss"]) == (2.0, 2, 2.5)


def test_the_signature_tells_news_and_nothing_else() -> None:
    run = make()
    seen = [run.reader.signature]
    for act in (
        lambda: run.log(row(1)),
        lambda: run.event("saved", "x"),
        lambda: run.set_state("paused"),
        lambda: run.log_sample({"step": 1, "prompt": "a", "text": "b"}),
        run.close,
    ):
        act()
        assert run.reader.signature not in seen
        seen.append(run.reader.signature)
        _ = run.reader.metrics, run.reader.samples, run.reader.events
        assert run.reader.signature == seen[-1]


def test_one_run_at_a_time_on_a_device(runs_folder: Path) -> None:
    first = make()
    before = sorted(os.listdir(runs_folder))
    with pytest.raises(RunBusyError, match=first.id) as caught:
        make()
    assert caught.value.run_id == first.id
    assert sorted(os.listdir(runs_folder)) == before  # nothing is left of the second
    first.set_state("stopped")
    first.close()
    make().close()


def test_a_run_is_trained_by_one_process() -> None:
    run = finished()
    before = run.info
    with trained_elsewhere(run.folder), pytest.raises(RunBusyError, match="already being trained"):
        ActiveRun(run.id, PLAN, run.info).open()
    assert run.info == before
    make().close()  # the device was given back


# ----------------------------------------------------------------------------------- requests


@pytest.mark.parametrize("what", ["pause", "resume", "save", "stop"])
def test_a_request_reaches_the_trainer_once(what: str) -> None:
    run = make()
    assert run.take_request() is None
    run.reader.request(what)
    assert (run.take_request(), run.take_request()) == (what, None)
    run.close()


def test_no_request_hides_another() -> None:
    run = make()
    run.reader.request("stop")
    time.sleep(0.02)
    run.reader.request("save")
    assert [run.take_request(), run.take_request(), run.take_request()] == ["stop", "save", None]
    run.close()


def test_a_foreign_request_does_nothing() -> None:
    run = make()
    (run.folder / "request-delete.json").write_text("{}")
    assert run.take_request() is None
    run.close()


def test_nobody_can_be_asked_when_nobody_trains() -> None:
    run = finished()
    with pytest.raises(RunError, match="not being trained"):
        run.request("stop")
    assert not list(run.folder.glob("request*"))


def test_an_old_request_does_not_stop_the_next_start() -> None:
    run = make()
    run.reader.request("stop")
    run.set_state("stopped")
    run.close()
    again = ActiveRun(run.id, PLAN, run.reader.info).open()
    assert again.take_request() is None
    again.close()


def test_settings_that_cannot_be_used_are_told_in_one_sentence() -> None:
    with pytest.raises(RunError) as refused:
        read_config({"batch_size": 0, "epochs": "many"}, "a")
    sentence = str(refused.value)
    assert "epochs: " in sentence and "; batch_size: " in sentence
    assert "\n" not in sentence and sentence.count(".") == 2  # that of run.json, and its own
