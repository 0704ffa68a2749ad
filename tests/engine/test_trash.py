"""engine.trash: a deleted run is whole, here or there, until the trash is emptied; and the commands of engine.runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import trash
from engine.cli.runs import main
from engine.errors import RunError
from engine.files import FolderLock
from engine.library import list_summaries
from engine.run import list_runs, load_run
from engine.trash import empty_trash, list_trash, restore_run, trash_run
from tests.engine.test_run import finished, make, trained_elsewhere

ID = "20261122-153012-nano-tiny-7f3a"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the locks, which tell who had them last."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_deleted_run_is_gone_until_it_is_restored() -> None:
    run, other = finished(), finished()
    (run.folder / "checkpoints" / "step-000001").mkdir(parents=True)
    (run.folder / "checkpoints" / "step-000001" / "weights").write_bytes(b"12345")
    before = contents(run.folder)
    trashed = trash_run(run.id)
    assert not run.folder.exists() and [r.id for r in list_runs()] == [other.id]
    assert [summary.id for summary in list_summaries()] == [other.id]
    assert list_trash() == [trashed] and trashed.run_id == run.id and trashed.name == run_name(before)
    assert trashed.bytes == sum(map(len, before.values()))
    with pytest.raises(RunError, match="There is no run"):
        trash_run(run.id)
    assert restore_run(run.id).id == run.id
    assert list_trash() == [] and contents(run.folder) == before
    assert run.state == "stopped"


def run_name(files: dict[str, bytes]) -> str:
    return str(json.loads(files["run.json"])["name"])


def test_a_run_that_is_being_trained_is_not_deleted() -> None:
    run = make()
    with pytest.raises(RunError, match="Stop it first"):
        trash_run(run.id)
    assert run.reader.state == "preparing"
    run.close()
    elsewhere = finished()
    with trained_elsewhere(elsewhere.folder), pytest.raises(RunError, match="Stop it first"):
        trash_run(elsewhere.id)
    assert load_run(elsewhere.id).state == "stopped" and list_trash() == []
    assert not FolderLock(elsewhere.folder / "lock").is_held()


def test_what_is_left_of_a_damaged_run_can_be_deleted(runs_folder: Path) -> None:
    (runs_folder / "my-notes").mkdir()
    run = finished(ID)
    (run.folder / "run.json").write_text("{")
    assert trash_run("my-notes").name == "my-notes"
    assert trash_run(ID).name == ID
    assert list_summaries() == [] and len(list_trash()) == 2


def test_the_same_id_can_be_in_the_trash_twice() -> None:
    first = trash_run(finished(ID).id)
    run = finished(ID)
    with pytest.raises(RunError, match="there is a run with this id"):
        restore_run(first.entry)
    assert run.state == "stopped" and list_trash() == [first]
    second = trash_run(ID)
    assert list_trash() == [second, first], "the last deleted comes first"
    restore_run(ID)
    assert list_trash() == [first], "by its id, the last deleted one is restored"


def test_emptying_deletes_for_good_what_was_named_or_all(runs_folder: Path) -> None:
    one, two, three = (trash_run(finished().id) for _ in range(3))
    kept = finished()
    assert empty_trash([one.entry, "../" + kept.id]) == 1
    assert list_trash() == [three, two] and load_run(kept.id)
    assert empty_trash() == 2
    assert list_trash() == [] and os.listdir(runs_folder / ".trash") == []
    assert empty_trash() == 0


def test_emptying_follows_no_link(runs_folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "large-disk"
    finished(ID).folder.rename(elsewhere)
    (runs_folder / ID).symlink_to(elsewhere)
    trash_run(ID)
    assert empty_trash() == 1
    assert (elsewhere / "run.json").exists() and list_trash() == []


def test_an_emptying_that_was_killed_is_ended_by_the_next(runs_folder: Path) -> None:
    trash_run(finished().id)
    (runs_folder / ".trash" / ".trash-half-deleted-1").mkdir()
    assert len(list_trash()) == 1
    empty_trash()
    assert os.listdir(runs_folder / ".trash") == []


@pytest.mark.parametrize("name", ["../x", "..", "", "20261122T153012123456.../../x", f"20261122T153012123456.{ID}"])
def test_what_is_not_in_the_trash_is_not_restored(name: str, runs_folder: Path) -> None:
    outside = runs_folder.parent / "x"
    outside.mkdir()
    (runs_folder / ".trash").mkdir()
    (runs_folder / ".trash" / "foreign").mkdir()
    with pytest.raises(RunError, match="in the trash"):
        restore_run(name)
    assert list_trash() == [] and outside.exists()


@pytest.mark.parametrize("act", [trash_run, restore_run])
def test_what_the_disk_refuses_changes_nothing(
    act: Callable[[str], object], runs_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(ID)
    if act is restore_run:
        trash_run(ID)
    before = contents(runs_folder)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(RunError, match=f"Run {ID} cannot be .* Change its permissions"):
            act(ID)
    assert contents(runs_folder) == before
    assert not FolderLock(run.folder / "lock").is_held()
    act(ID)


def test_two_deletions_in_one_tick_of_the_clock_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(trash.datetime):
        times = [trash.datetime(2026, 1, 1)] * 3 + [trash.datetime(2026, 1, 2)]

        @classmethod
        def now(cls, tz: object = None) -> trash.datetime:
            return cls.times.pop(0)

    monkeypatch.setattr(trash, "datetime", Stuck)
    entries = [trash_run(finished(ID).id).entry for _ in range(2)]
    assert len(set(entries)) == 2


# ------------------------------------------------------------------------------------------------- commands


def test_the_commands_label_delete_and_restore(capsys: pytest.CaptureFixture[str]) -> None:
    finished(ID)
    for arguments in (
        ["rename", ID, "My best"],
        ["note", ID, "Why it is."],
        ["tag", ID, "paper", "wide"],
        ["tag", ID, "Wide", "--remove"],
        ["star", ID],
    ):
        assert main(arguments) == 0
    capsys.readouterr()
    assert main(["list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["notes"], row["tags"], row["starred"]) == ("My best", "Why it is.", ["paper"], True)
    assert main(["show", ID]) == 0
    assert {"tags: paper", "notes: Why it is.", "starred: yes"} <= set(capsys.readouterr().out.splitlines())
    assert main(["list"]) == 0 and capsys.readouterr().out.endswith("  My best\n")
    assert main(["delete", ID]) == 0
    assert f"restore {ID}" in capsys.readouterr().out and list_runs() == []
    assert main(["trash"]) == 0 and ID in capsys.readouterr().out
    assert main(["restore", ID]) == 0 and [run.id for run in list_runs()] == [ID]
    assert main(["star", ID, "--remove"]) == 0 and not list_summaries()[0].starred


def test_the_commands_say_what_is_wrong(capsys: pytest.CaptureFixture[str], runs_folder: Path) -> None:
    finished(ID)
    (runs_folder / "my-notes").mkdir()
    assert main(["list"]) == 0
    marked = [line for line in capsys.readouterr().out.splitlines() if line.startswith("! my-notes")]
    assert len(marked) == 1 and "no run.json" in marked[0]
    assert main(["rename", ID, "a\nb"]) == 2 and capsys.readouterr().err.startswith("name: ")
    assert main(["delete", "nothing", ID]) == 1
    assert "There is no run nothing" in capsys.readouterr().err
    assert [trashed.run_id for trashed in list_trash()] == [ID], "the other one is deleted all the same"


def test_what_an_imported_run_says_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(ID)
    evil = "\x1b]0;x\x07\u202e\r\x9b2J"
    info = run.info | {"name": evil, "notes": evil, "tags": [evil], "error": evil}
    (run.folder / "run.json").write_text(json.dumps(info))
    (run.folder / "events.jsonl").write_text(json.dumps({"time": evil, "step": 1, "kind": "saved", "message": evil}))
    assert main(["show", ID]) == main(["list"]) == main(["show", ID, "--json"]) == 0
    trash_run(ID)
    assert main(["trash"]) == 0
    said = capsys.readouterr().out
    assert "?]0;x" in said and not set(evil) - set("]0;x2J") & set(said)


def test_the_trash_is_emptied_only_after_a_yes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trash_run(finished().id)
    monkeypatch.setattr("sys.stdin.readline", lambda: "\n", raising=False)
    assert main(["trash", "--empty"]) == 0
    assert "Nothing was deleted." in capsys.readouterr().out and len(list_trash()) == 1
    assert main(["trash", "--empty", "--yes"]) == 0
    assert "Deleted for good: 1." in capsys.readouterr().out and list_trash() == []
    assert main(["trash"]) == 0 and "The trash is empty." in capsys.readouterr().out
