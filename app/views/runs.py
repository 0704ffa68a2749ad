"""Runs: find runs, name and star them, delete them, and lay them over each other."""

from collections.abc import Container, Sequence

import streamlit as st

from app.widgets import actions
from app.widgets.choice import choose, chosen_ids
from app.widgets.comparison import comparison
from app.widgets.deletion import delete_button, deletion_notice, trash
from app.widgets.formats import plain
from app.widgets.guard import guard
from app.widgets.import_run import import_run
from app.widgets.run_filters import all_tags, clear_filters, run_filters
from app.widgets.run_labels import label_form, star_button
from app.widgets.run_order import in_order, run_order
from app.widgets.run_table import run_table
from app.widgets.snapshot import snapshot
from engine.library import Summary, list_summaries
from engine.run import active_runs, load_run

COMPARED = 50  # runs at most; a chart of more shows nothing
TOLD = 3  # damaged folders that are explained below the table
TICK_S = 4.0  # seconds between looks at the runs that train


@guard()
def find(chosen: list[str]) -> None:
    """Search, filters, the table and its buttons. A search, or a tick while a run trains, draws these alone: what is
    chosen stays as it is below."""
    runs = list_summaries()
    filters = run_filters(runs)
    found = {run.id for run in filter(filters.match, runs)}
    with st.container(horizontal=True, vertical_alignment="center"):
        _tell_count(len(found), len(runs), len(set(chosen) - found))
        order = run_order()
    shown = in_order((run for run in runs if run.id in found), order)
    if not shown:
        st.write("No run matches.")
        st.button("Show all runs", icon=":material/filter_alt_off:", on_click=clear_filters, key="clear-filters")
    ticked = run_table(shown, chosen) if shown else []
    now = [run.id for run in runs if run.id in ticked or (run.id in chosen and run.id not in found)]
    if now != chosen:
        choose(now, in_table=True)
        st.rerun()
    _tell_problems(shown)
    act_on([run for run in runs if run.id in chosen], found)


def _tell_count(shown: int, all_runs: int, unseen: int) -> None:
    count = f"{shown:,} of {all_runs:,} runs" if shown < all_runs else f"{shown:,} run{'s' * (shown != 1)}"
    hidden = f" {unseen:,} chosen {'is' if unseen == 1 else 'are'} not in this list." if unseen else ""
    how = " Choose rows on the left to compare them." if shown > 1 else ""
    st.caption(f"{count}.{how}{hidden}")


def _tell_problems(shown: Sequence[Summary]) -> None:
    """A sentence for each of the first few folders that are not whole runs; the table has one for each of them."""
    broken = [run for run in shown if run.problem]
    for run in broken[:TOLD]:
        st.caption(f":material/warning: {plain(run.id)}: {plain(run.problem)}")
    if len(broken) > TOLD:
        st.caption(f":material/warning: {len(broken) - TOLD:,} more folders are damaged; the table says how.")


def act_on(chosen: Sequence[Summary], listed: Container[str]) -> None:
    """Open, resume, star, delete; what is not in the list is not deleted.

    Args:
        chosen: all of them.
        listed: ids of the runs in the table.
    """
    one = load_run(chosen[0].id) if len(chosen) == 1 and not chosen[0].problem else None
    with st.container(horizontal=True):
        if st.button("Open", icon=":material/open_in_new:", type="primary", disabled=one is None) and one:
            actions.open_run(one.id)
        can_resume = one is not None and snapshot(one).resume_step is not None
        if st.button("Resume", icon=":material/play_arrow:", disabled=not can_resume) and one:
            actions.resume(one.id)
        star_button([run for run in chosen if not run.problem])
        delete_button(chosen, listed)
        if len(chosen) > 1 and st.button("Choose none", icon=":material/deselect:", key="choose-none"):
            choose([])
            st.rerun()


def look_at(chosen: Sequence[Summary], everything: Sequence[Summary]) -> None:
    """The curves of the chosen runs, and what people say of one."""
    sound = [load_run(run.id) for run in chosen if not run.problem]
    if len(chosen) == len(sound) == 1:
        with st.expander("Name, note and tags", icon=":material/edit:", key=f"edit-{sound[0].id}"):
            label_form(chosen[0], all_tags(everything))
    if len(sound) > COMPARED:
        st.caption(f"The first {COMPARED} of the {len(sound):,} chosen runs are compared.")
    if sound:
        comparison(sound[:COMPARED])


@st.fragment(run_every=TICK_S)
@guard()
def follow(before: list[str]) -> None:
    """Draw the page anew when a run begins or ends, wherever that is: only then, as that starts all other ticks anew.

    Args:
        before: ids of the runs that trained when the page was drawn.
    """
    if [run.id for run in active_runs()] != before:
        st.rerun()


with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
    st.title("Runs", anchor=False, width="content")
    import_run()
runs = list_summaries()
chosen = chosen_ids(runs)
active = [run.id for run in active_runs()]
deletion_notice()
if runs:
    st.fragment(find, run_every=TICK_S if active else None)(chosen)
    look_at([run for run in runs if run.id in chosen], runs)
else:
    st.write("There is no run yet. A smoke run takes about half a minute:")
    st.page_link("views/home.py", label="Start on Home", icon=":material/rocket_launch:")
trash()
follow(active)
