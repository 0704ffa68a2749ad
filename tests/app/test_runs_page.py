"""The Runs page: find, choose, label, delete and restore runs; a broken folder is a marked row."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from app.widgets import run_table
from app.widgets.formats import plain
from app.widgets.run_filters import Filters
from app.widgets.run_order import NEWEST, ORDERS, in_order
from engine import session
from engine.files import FolderLock
from engine.labels import write_labels
from engine.library import Summary, list_summaries
from engine.run import device_lock, list_runs, load_run
from engine.trash import list_trash, trash_run
from tests.app.test_pages import DONE, OTHER, Make, Open, expect_sound, texts

THIRD = "20261122-153014-small-wikitext2-0003"
ABSENT = "20990101-000000-nano-verdict-ffff"


@pytest.fixture
def three(make_run: Make) -> None:
    """A, B and C, of which C is the newest."""
    config = json.loads((make_run(DONE, name="A", notes="The first try") / "run.json").read_text())["config"]
    make_run(OTHER, name="B", state="failed", tags=["paper"])
    make_run(THIRD, name="C", config=config | {"config": "small", "corpus": "wikitext2"})


def names(page: AppTest) -> list[str]:
    """The rows of the table."""
    return list(page.dataframe[0].value.name)


def button(page: AppTest, label: str) -> object:
    (found,) = [b for b in page.button if b.label == label]
    return found


def press(page: AppTest, label: str) -> AppTest:
    page = button(page, label).click().run()
    expect_sound(page)
    return page


def shown(page: AppTest) -> list[str]:
    """The chosen ids, as the address tells them."""
    told = page.query_params["runs"]  # a text, or a list of one when the page set it
    return [run_id for run_id in (told if isinstance(told, str) else "".join(told)).split(",") if run_id]


def test_runs_are_listed_with_what_was_measured(open_page: Open, three: None) -> None:
    page = open_page("runs")
    expect_sound(page)
    table = page.dataframe[0].value
    assert names(page) == ["C", "B", "A"]  # the newest first
    assert list(table["training loss"]) == pytest.approx([5.7] * 3)
    assert list(table.state) == ["completed", "failed", "completed"]
    assert table["best validation"].isna().all(), "it was not measured in these runs"
    assert "problem" not in table.columns
    assert "3 runs." in texts(page)


def test_columns_sort_as_what_they_are() -> None:
    runs = [
        Summary("a", elapsed_s=59.0, created="2026-03-28T12:00:00Z", tags=("x",), parent="p", parent_step=40),
        Summary("b", elapsed_s=3600.0, created="2026-06-30T12:00:00Z", step=1000),  # in summer time
        Summary("c", elapsed_s=1e14, created="no date"),
    ]
    table = run_table.table_of(runs)
    assert str(table["training time"].dtype).startswith("timedelta") and table["training time"].is_monotonic_increasing
    assert str(table["started"].dtype).startswith("datetime") and table["started"].isna().tolist() == [
        False,
        False,
        True,
    ]
    assert table["steps"].tolist()[1] == 1000 and table["training loss"].isna().all()
    assert table["parent"].tolist()[0] == "p @ 40"


@pytest.mark.parametrize("order", ORDERS)
def test_runs_without_a_value_come_last_in_every_order(order: str) -> None:
    low = Summary("20261122-2", "completed", "a", config="medium", corpus="tiny", created="2026-03-28T12:00:00Z")
    high = Summary("20261122-3", "stopped", "B", config="nano", corpus="verdict", created="2026-06-30T12:00:00Z")
    numbers = ("step", "tokens", "train_loss", "val_loss", "best_val_loss", "tokens_per_s", "elapsed_s")
    low, high = (dataclasses.replace(run, **dict.fromkeys(numbers, at)) for run, at in ((low, 9.0), (high, 10.0)))
    bare = Summary("20261122-1", name="c", problem="Broken.")
    most_first = order in (NEWEST, "tokens/s", "training time", "tokens", "steps")
    assert in_order([high, low, bare], order) == ([high, low, bare] if most_first else [low, high, bare])


@pytest.mark.parametrize(("page", "loads"), [("runs", False), ("run", True)])
def test_the_list_does_not_share_the_machine_with_loading_torch(
    open_page: Open, monkeypatch: pytest.MonkeyPatch, page: str, loads: bool
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(session, "warm_up", lambda: loaded.append(page))
    st.cache_resource.clear()  # it is done once a process
    open_page(page)
    assert bool(loaded) == loads
    st.cache_resource.clear()


def test_without_runs_the_page_leads_to_a_first_one(open_page: Open) -> None:
    page = open_page("runs")
    expect_sound(page)
    assert "There is no run yet" in texts(page)
    assert not page.dataframe


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (Filters(), "ab"),
        (Filters(words=("first",)), "a"),  # of the note
        (Filters(words=("verdict", "two")), "b"),  # all words, of corpus and name
        (Filters(words=("paper",)), "b"),
        (Filters(words=("id-a",)), "a"),
        (Filters(words=("ÜBUNG".casefold(),)), "b"),
        (Filters(words=("nothing",)), ""),
        (Filters(states=("failed", "stopped")), "b"),
        (Filters(states=("completed",)), ""),
        (Filters(states=("damaged",)), "a"),
        (Filters(presets=("small",), corpora=("verdict",)), "b"),
        (Filters(presets=("nano",), corpora=("verdict",)), ""),
        (Filters(tags=("paper", "wide")), "b"),
    ],
)
def test_filters(filters: Filters, found: str) -> None:
    runs = [
        Summary("id-a", "completed", "One", "The first try", config="nano", corpus="tiny", problem="Broken."),
        Summary("id-b", "failed", "Two, Übung", tags=("paper",), config="small", corpus="verdict"),
    ]
    assert "".join(run.id[-1] for run in runs if filters.match(run)) == found


def test_a_search_finds_and_can_be_taken_back(open_page: Open, three: None) -> None:
    page = open_page("runs")
    page.text_input(key="runs-search").set_value("FIRST try").run()
    assert names(page) == ["A"] and "1 of 3 runs" in texts(page)
    assert "1 chosen is not in this list" in texts(page), "the newest stays chosen though it is not listed"
    assert button(page, "Delete").disabled, "nobody deletes what the list hides"
    page.multiselect(key="runs-states").set_value(["failed"]).run()
    assert "No run matches" in texts(page)
    press(page, "Show all runs")
    assert names(page) == ["C", "B", "A"]
    page.multiselect(key="runs-tags").set_value(["paper"]).run()
    assert names(page) == ["B"]


def test_the_address_keeps_search_and_filters(open_page: Open, three: None) -> None:
    page = open_page("runs")
    assert not {"runs-search", "runs-states"} & set(page.query_params)
    page.text_input(key="runs-search").set_value("first & try").run()
    page.multiselect(key="runs-states").set_value(["failed", "completed"]).run()
    told = {name: "".join(page.query_params[name]) for name in ("runs-search", "runs-states")}
    assert told == {"runs-search": "first & try", "runs-states": "failed,completed"}
    again = open_page("runs", **told)
    assert again.text_input(key="runs-search").value == "first & try"
    assert again.multiselect(key="runs-states").value == ["failed", "completed"]
    odd = open_page("runs", **{"runs-states": "failed,nonsense,", "runs-tags": "%2C"})
    assert odd.multiselect(key="runs-states").value == ["failed"] and odd.multiselect(key="runs-tags").value == []
    page.button(key="clear-filters").click().run()
    assert not {"runs-search", "runs-states"} & set(page.query_params)


def test_a_filter_that_a_link_names_twice_is_chosen_once(open_page: Open, three: None) -> None:
    page = open_page("runs", **{"runs-presets": "nano,nano"})
    assert page.multiselect(key="runs-presets").value == ["nano"]


def test_the_address_keeps_the_choice(open_page: Open, three: None) -> None:
    page = open_page("runs", runs=f"{OTHER},{DONE}")
    expect_sound(page)
    assert not page.warning
    assert {"Choose none", "Delete"} <= {b.label for b in page.button}
    assert button(page, "Open").disabled, "only one run can be opened"
    press(page, "Choose none")
    assert shown(page) == [] and button(page, "Delete").disabled


@pytest.mark.parametrize("foreign", ["../../etc", ABSENT, "<script>", "..", "x" * 500, "`*a*`"])
def test_unknown_runs_of_a_link_are_told_in_one_sentence(open_page: Open, three: None, foreign: str) -> None:
    page = open_page("runs", runs=f"{foreign},{DONE},,also-not-here")
    expect_sound(page)
    [warning] = page.warning
    assert (
        plain(foreign[:80]) in warning.value and plain("also-not-here") in warning.value and DONE not in warning.value
    )
    assert not button(page, "Open").disabled, "the one that is here is chosen"


def test_the_newest_run_is_chosen_at_first(open_page: Open, three: None) -> None:
    page = open_page("runs")
    assert page.text_input(key=next(t.key for t in page.text_input if t.label == "Name")).value == "C"


def test_a_run_gets_name_note_and_tags(open_page: Open, three: None) -> None:
    page = open_page("runs", runs=DONE)
    fields = {field.label: field for kind in (page.text_input, page.text_area, page.multiselect) for field in kind}
    assert "paper" in fields["Tags"].options, "a tag of another run is offered"
    fields["Name"].set_value("A *new* name")
    fields["Note"].set_value("Why\nso")
    fields["Tags"].set_value(["paper"])
    press(page, "Save")
    assert names(page) == ["C", "B", "A *new* name"]
    assert list_summaries()[-1].tags == ("paper",) and list_summaries()[-1].notes == "Why\nso"


def test_what_is_saved_while_somebody_renames_the_run_is_kept_and_so_is_the_name(open_page: Open, three: None) -> None:
    page = open_page("runs", runs=DONE)
    page.text_area[0].set_value("Typed long ago")
    write_labels(load_run(DONE).folder, {"name": "From a terminal"})
    press(page, "Save")
    run = list_summaries()[-1]
    assert (run.name, run.notes) == ("From a terminal", "Typed long ago")


def test_labels_that_cannot_be_are_told_together(open_page: Open, three: None) -> None:
    page = open_page("runs", runs=DONE)
    fields = {field.label: field for kind in (page.text_input, page.text_area) for field in kind}
    fields["Name"].set_value("  ")
    fields["Note"].set_value("a\x07b")
    press(page, "Save")
    [error] = page.error
    assert "Name must not be empty" in error.value and "U\\+0007" in error.value
    assert list_summaries()[-1].name == "A"


def test_the_order_stays_through_a_search_and_in_the_address(open_page: Open, three: None) -> None:
    page = open_page("runs")
    page.selectbox(key="runs-order").set_value("name").run()
    assert names(page) == ["A", "B", "C"]
    page.text_input(key="runs-search").set_value("verdict").run()
    expect_sound(page)
    assert names(page) == ["A", "B"]
    told = "".join(page.query_params["runs-order"])
    assert names(open_page("runs", **{"runs-order": told})) == ["A", "B", "C"]


def test_starred_runs_come_first(open_page: Open, three: None) -> None:
    page = press(open_page("runs", runs=DONE), "Star")
    assert names(page) == ["A", "C", "B"] and page.dataframe[0].value["★"].tolist() == ["★", "", ""]
    press(page, "Remove star")
    assert names(page) == ["C", "B", "A"]


def test_a_deletion_can_be_undone(open_page: Open, three: None) -> None:
    page = press(open_page("runs", runs=f"{THIRD},{DONE}"), "Delete")
    assert names(page) == ["B"] and "2 runs are in the trash" in texts(page)
    assert shown(page) == [] and not page.warning, "the address names the deleted runs still"
    press(page, "Undo")
    assert names(page) == ["C", "B", "A"] and shown(page) == [THIRD, DONE]
    assert list_trash() == [] and "in the trash" not in texts(page)


@pytest.mark.parametrize("state", ["running", "stopped"])  # the second: a resume that has just taken the lock
def test_a_run_that_is_being_trained_is_not_deleted(open_page: Open, make_run: Make, state: str) -> None:
    lock = FolderLock(make_run(DONE, state=state) / "lock")
    assert lock.acquire()
    try:
        page = open_page("runs")
        assert button(page, "Delete").disabled == (state == "running")
        if state == "stopped":
            press(page, "Delete")
            assert "Stop it first" in page.error[0].value and shown(page) == [DONE]
            page.run()
            assert not page.error, "a refusal is told once"
        assert names(page) == ["Run 1"]
    finally:
        lock.release()


def test_the_page_comes_to_rest_while_a_run_trains(open_page: Open, make_run: Make) -> None:
    """It is drawn anew at its ticks alone; a page that asked for more would never be through."""
    locks = (FolderLock(make_run(DONE, state="running") / "lock"), device_lock("cpu"))
    assert all(lock.acquire(DONE) for lock in locks)
    try:
        page = open_page("runs")
        assert names(page) == ["Run 1"] and not page.exception
        page.button(key="import-run").click().run()  # a dialog stays open when the page is drawn anew
        assert len(page.get("file_uploader")) == 1
        assert len(page.run().get("file_uploader")) == 1
    finally:
        for lock in locks:
            lock.release()


def test_the_trash_restores_and_is_emptied(open_page: Open, three: None) -> None:
    for run_id in (DONE, OTHER, THIRD):
        trash_run(run_id)
    page = open_page("runs")
    assert "There is no run yet" in texts(page)
    assert [expander.label for expander in page.expander] == ["Trash"]
    page.session_state["trash-expander"] = True
    page.run()
    assert list(page.dataframe[0].value.name) == ["C", "B", "A"]
    assert button(page, "Restore").disabled
    page.session_state[f"trash-{hash(tuple(list_trash()))}"] = {"selection": {"rows": [2]}}
    page.run()
    press(page, "Restore")
    assert names(page) == ["A"] and shown(page) == [DONE]
    page.session_state["empty"] = True
    page.run()
    assert "2 runs for good" in texts(page) and len(list_trash()) == 2
    press(page, "Delete for good")
    assert list_trash() == [] and [run.id for run in list_runs()] == [DONE]


@pytest.mark.parametrize("content", ["{", "[1]", "{}", '{"state": 7, "config": 3, "progress": [1]}', None])
def test_a_broken_folder_is_one_marked_row(open_page: Open, make_run: Make, folders: Path, content: str | None) -> None:
    make_run(OTHER, name="Sound")
    broken = folders / "runs" / DONE
    broken.mkdir()
    if content is not None:
        (broken / "run.json").write_text(content)
    page = open_page("runs", runs=f"{DONE},{OTHER}")
    expect_sound(page)
    table = page.dataframe[0].value
    assert list(table.state) == ["completed", "⚠ damaged"]
    assert table.problem[1] and f"{plain(DONE)}: {plain(table.problem[1])}" in texts(page)
    page.multiselect(key="runs-states").set_value(["damaged"]).run()
    assert list(page.dataframe[0].value.id) == [DONE]
    press(page, "Delete 1 of 2")  # the other one is not listed, so it is not meant
    assert not broken.exists() and len(list_trash()) == 1
    assert shown(page) == [OTHER] and [run.id for run in list_runs()] == [OTHER]


def test_a_folder_with_a_foreign_name_is_shown_and_left_alone(open_page: Open, make_run: Make, folders: Path) -> None:
    make_run(DONE)
    (folders / "runs" / "two words").mkdir()
    page = open_page("runs", runs="two words")
    expect_sound(page)
    assert button(page, "Delete").disabled and button(page, "Star").disabled
    assert "no run.json" in texts(page).replace("\\", "")


def test_a_name_is_shown_as_text(open_page: Open, make_run: Make) -> None:
    make_run(DONE, name="<b>*x*</b> \ud83d")
    page = press(open_page("runs"), "Delete")
    assert plain("<b>*x*</b>") in texts(page)


def test_ticking_rows_chooses_runs_and_tells_the_address(open_page: Open, three: None) -> None:
    page = open_page("runs")
    key = f"runs-table-{hash(((THIRD, OTHER, DONE), page.session_state['runs-table']))}"
    page.session_state[key] = {"selection": {"rows": [0, 2]}}
    page.run()
    expect_sound(page)
    assert shown(page) == [THIRD, DONE]
