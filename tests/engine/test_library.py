"""engine.library: one row for each folder, whatever is in it, and hardly any work while nothing changes."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from engine import library
from engine.errors import RunError
from engine.files import write_json
from engine.labels import MAX_TAGS, write_labels
from engine.library import Summary, list_summaries, summary_of
from tests.engine.test_run import finished, make, row, trained_elsewhere
from tests.many_runs import make_many_runs


def only() -> Summary:
    (summary,) = list_summaries()
    return summary


def test_a_row_says_what_the_run_has_come_to() -> None:
    run = make(name="Mine", notes="Why", parent={"run": "20261122-153012-parent", "step": 40, "changes": {}})
    for step, loss in ((1, 3.0), (2, 2.0), (3, 2.5)):
        run.log(row(step, val_loss=loss, tokens=step * 32, tokens_per_s=100.0))
    run.set_state("completed")
    run.close()
    write_labels(run.folder, {"tags": ["paper"], "starred": True})
    assert only() == Summary(
        id=run.id,
        state="completed",
        name="Mine",
        notes="Why",
        tags=("paper",),
        starred=True,
        config="nano",
        corpus="tiny",
        step=3,
        total_steps=run.plan.total_steps,
        tokens=96,
        train_loss=2.0,
        val_loss=2.5,
        best_val_loss=2.0,
        tokens_per_s=100.0,
        elapsed_s=pytest.approx(0.3),
        created=run.reader.info["created"],
        parent="20261122-153012-parent",
        parent_step=40,
    )
    assert summary_of(run.id) == only()


def test_what_was_not_measured_is_none() -> None:
    run = finished()
    summary = only()
    assert (summary.step, summary.tokens) == (0, 0)
    assert summary.train_loss is summary.val_loss is summary.best_val_loss is summary.tokens_per_s is None
    assert summary.parent == "" and summary.name == run.info["name"] and not summary.problem


def test_the_state_follows_the_process_that_trains_though_no_file_changes() -> None:
    run = finished(state="running")
    assert only().state == "interrupted" and not only().is_active
    with trained_elsewhere(run.folder):
        assert only().state == "running" and only().is_active
    assert only().state == "interrupted"


def test_every_change_is_seen(runs_folder: Path) -> None:
    run = finished()
    assert only().state == "stopped"
    write_json(run.folder / "run.json", run.info | {"state": "failed"})
    assert only().state == "failed"
    write_labels(run.folder, {"name": "a"})
    assert only().name == "a"
    write_labels(
        run.folder, {"name": "b"}
    )  # as large, perhaps in the same tick of the clock: another file all the same
    assert only().name == "b"
    (run.folder / "labels.json").unlink()
    assert only().name == run.info["name"]
    run.folder.rename(runs_folder / "moved")
    assert only().id == "moved"
    assert list(library._cache) == [str(runs_folder / "moved")], "rows of folders that are gone stay in memory"


BROKEN: dict[str, Any] = {
    "empty": ("", "damaged"),
    "torn": ('{"state": "run', "damaged"),
    "a list": ("[1]", "damaged"),
    "an empty object": ("{}", "damaged"),
    "another program's": ('{"name": "x"}', "config and state cannot be read"),
    "odd values": ('{"state": ["x"], "config": 3, "progress": [1]}', "config and progress and state"),
    "bytes": (b"\xff\xfe\x00", "damaged"),
}


@pytest.mark.parametrize(("content", "says"), BROKEN.values(), ids=list(BROKEN))
def test_a_damaged_run_is_one_row_with_a_sentence(content: str | bytes, says: str) -> None:
    run = finished("20261122-153012-broken")
    sound = finished("20261122-153013-sound")
    (run.folder / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    first, second = list_summaries()
    assert (first.id, first.problem) == (sound.id, "")
    assert second.id == run.id and says in second.problem and second.problem.endswith(".")
    assert second.state == "interrupted"


def test_foreign_folders_are_rows_and_files_are_not(runs_folder: Path) -> None:
    (runs_folder / "my-notes").mkdir()
    (runs_folder / "two words").mkdir()
    write_json(runs_folder / "two words" / "run.json", {"state": "completed"})
    (runs_folder / ".trash").mkdir()
    (runs_folder / "file.txt").write_text("x")
    os.mkdir(os.fsencode(runs_folder) + b"/latin-\xe9")
    rows = {summary.id: summary.problem for summary in list_summaries()}
    assert set(rows) == {"my-notes", "two words", "latin-?"}
    assert "no run.json" in rows["my-notes"] and "not the id of a run" in rows["two words"]
    with pytest.raises(RunError, match="There is no run my-notes"):
        summary_of("my-notes")


def test_a_run_that_is_just_beginning_is_no_broken_one(runs_folder: Path) -> None:
    folder = runs_folder / "20261122-153012-new"
    folder.mkdir()
    with trained_elsewhere(folder):
        assert list_summaries() == []
    assert "no run.json" in only().problem


def test_values_that_fit_no_table_are_left_out() -> None:
    run = finished()
    info = run.info
    info["name"], info["tags"] = "half \ud83d", ["a", 7, "\udc00"]
    info["progress"] = {"step": 10**400, "tokens": True, "train_loss": "3", "val_loss": [1], "elapsed_s": 1e300}
    text = json.dumps(info).replace('"progress": {', '"progress": {"best_val_loss": NaN, "tokens_per_s": Infinity, ')
    (run.folder / "run.json").write_text(text)
    summary = only()
    numbers = [value for value in dataclasses.asdict(summary).values() if isinstance(value, int | float)]
    assert numbers == [False, run.total_steps]  # the star, and the planned steps
    assert (summary.name, summary.tags, summary.problem) == ("half ?", ("a", "?"), "")


def test_of_countless_tags_as_many_are_listed_as_a_run_can_have() -> None:
    run = finished()
    (run.folder / "run.json").write_text(json.dumps(run.info | {"tags": [str(n) for n in range(100_000)]}))
    assert only().tags == tuple(str(n) for n in range(MAX_TAGS))  # a page draws each


def test_a_folder_that_may_not_be_read_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished()

    def refuse(path: str) -> None:  # as the system does, though not to root, who may run these tests
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(library, "_file_key", refuse)
    assert only().id == run.id and "Change its permissions" in only().problem


def test_no_folder_of_runs_is_no_rows(runs_folder: Path) -> None:
    runs_folder.rmdir()
    assert list_summaries() == []


def test_five_hundred_runs_are_listed_at_once_and_again_at_no_cost(
    runs_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = make_many_runs(runs_folder, 500, rows=2)
    read: list[Path] = []
    real = library._read
    monkeypatch.setattr(library, "_read", lambda folder: read.append(folder) or real(folder))
    started = time.process_time()
    assert [summary.id for summary in list_summaries()] == ids[::-1]
    first = time.process_time() - started
    assert len(read) == 500
    started = time.process_time()
    list_summaries()
    again = time.process_time() - started
    assert len(read) == 500, "a folder was read again though nothing changed"
    print(f"\n500 runs: {first * 1000:.0f} ms, then {again * 1000:.1f} ms")
    assert first < 1 and again < 0.05
    write_labels(runs_folder / ids[7], {"starred": True})
    assert list_summaries()[-8].starred and len(read) == 501
