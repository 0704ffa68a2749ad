"""engine.labels: what people say about a run is kept beside what the trainer writes, and neither harms the other."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine.cli.runs import main
from engine.errors import ConfigError, RunError
from engine.files import write_json
from engine.labels import MAX_NAME, MAX_NOTES, MAX_TAG, MAX_TAGS, read_labels, write_labels
from engine.run import ActiveRun, Run, new_id, new_info
from tests.engine.test_run import CONFIG, PLAN, finished, row


def test_labels_win_over_what_the_run_was_started_with() -> None:
    run = finished()
    write_labels(run.folder, {"name": " Best so far ", "tags": ["wide", "Wide", " paper ", ""], "starred": True})
    write_labels(run.folder, {"notes": "Two\r\nlines,\ta tab, 👩‍🔬 and Übung."})
    info = run.info
    assert (info["name"], info["tags"], info["starred"]) == ("Best so far", ["wide", "paper"], True)
    assert info["notes"] == "Two\nlines,\ta tab, 👩‍🔬 and Übung."
    assert info["state"] == "stopped" and run.config == PLAN.config
    write_labels(run.folder, {"starred": False, "tags": [], "notes": ""})
    assert (run.info["name"], run.info["tags"], run.info["starred"], run.info["notes"]) == (
        "Best so far",
        [],
        False,
        "",
    )


def test_a_trainer_that_rewrites_its_run_loses_no_label() -> None:
    run_id = new_id(CONFIG)
    run = ActiveRun(run_id, PLAN, new_info(run_id, PLAN, name="As started")).open()
    run.log(row(1))
    before = run.reader.signature
    write_labels(run.folder, {"name": "As renamed"})
    assert run.reader.signature != before, "nobody who watches would see the new name"
    run.log(row(2))
    run.set_state("completed")
    run.close()
    assert run.reader.info["name"] == "As renamed" and run.reader.info["progress"]["step"] == 2
    write_labels(run.folder, {"starred": True})
    ActiveRun(run_id, PLAN, run.reader.info).open().close()  # a resume writes what it has read
    write_labels(run.folder, {"name": "Again", "starred": False})
    assert run.reader.info["name"] == "Again" and run.reader.info["starred"] is False


def test_two_who_change_labels_at_once_lose_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    run = finished()
    tags = [f"tag-{number}" for number in range(16)]
    with ThreadPoolExecutor(16) as people:
        done = [people.submit(main, ["tag", run.id, tag]) for tag in tags]
        done += [people.submit(write_labels, run.folder, {label: "Mine"}) for label in ("name", "notes")]
        assert [future.result() for future in done] == [0] * len(tags) + [None] * 2
    info = run.info
    assert (info["name"], info["notes"], sorted(info["tags"])) == ("Mine", "Mine", sorted(tags))


TOO_MUCH: dict[str, Any] = {
    "name": "x" * (MAX_NAME + 1),
    "notes": "x" * (MAX_NOTES + 1),
    "tags": [str(number) for number in range(MAX_TAGS + 1)],
    "starred": "yes",
}


def test_all_problems_are_told_together_and_nothing_is_written() -> None:
    run = finished()
    with pytest.raises(ConfigError) as caught:
        write_labels(run.folder, TOO_MUCH)
    assert [problem.field for problem in caught.value.problems] == list(TOO_MUCH)
    assert f"at most {MAX_NAME}" in str(caught.value) and "at most 4,000" in str(caught.value)
    assert not (run.folder / "labels.json").exists()


@pytest.mark.parametrize("sign", ["\0", "\x1b", "\x7f", "\ud800", "\u202e", "\u2066"])
@pytest.mark.parametrize("label", ["name", "notes", "tags"])
def test_what_no_one_can_see_is_refused(label: str, sign: str) -> None:
    run = finished()
    text = f"a{sign}b"
    with pytest.raises(ConfigError, match=rf"U\+{ord(sign):04X}"):
        write_labels(run.folder, {label: [text] if label == "tags" else text})
    assert read_labels(run.folder) == {}


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("name", ""),
        ("name", " \t"),
        ("name", "two\nlines"),
        ("name", "\u200b\u200d \ufeff"),
        ("name", "\u3164"),
        ("tags", ["x" * (MAX_TAG + 1)]),
        ("tags", "text"),
        ("name", 7),
    ],
)
def test_what_is_no_label_is_refused(label: str, value: Any) -> None:
    run = finished()
    with pytest.raises(ConfigError):
        write_labels(run.folder, {label: value})
    assert not (run.folder / "labels.json").exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", "null", '{"name": 7, "tags": "x", "starred": 1, "state": "paused"}']
)
def test_damaged_labels_harm_no_run(content: str) -> None:
    run = finished()
    before = run.info
    (run.folder / "labels.json").write_text(content)
    assert run.info == before and run.state == "stopped" and run.problems == []
    write_labels(run.folder, {"starred": True})
    assert json.loads((run.folder / "labels.json").read_text()) == {"starred": True}


def test_one_damaged_label_costs_no_other() -> None:
    run = finished()
    write_json(run.folder / "labels.json", {"name": "Kept", "tags": ["x", 7], "notes": "a\u0000"})
    assert read_labels(run.folder) == {"name": "Kept"}


def test_a_run_whose_run_json_is_damaged_keeps_its_labels() -> None:
    run = finished()
    write_labels(run.folder, {"name": "Mine"})
    (run.folder / "run.json").write_text("{")
    assert Run(run.folder).info == {"name": "Mine"} and run.state == "interrupted"
    with pytest.raises(RunError, match="missing or damaged"):
        _ = run.config


def test_a_folder_that_is_gone_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be used"):
        write_labels(tmp_path / "gone", {"starred": True})
