"""Pretraining: start a run, watch it, steer it."""

import streamlit as st

from app.widgets import actions
from app.widgets.checkpoint_picker import checkpoint_picker
from app.widgets.config_form import config_form
from app.widgets.formats import plain
from app.widgets.guard import guard
from app.widgets.live import run_view
from app.widgets.plot import preload
from engine.errors import RunError
from engine.run import Run, active_runs, list_runs, load_run


def chosen_run() -> Run | None:
    """The run that the address names, else the one that trains, else the newest."""
    run_id = st.query_params.get("run")
    if run_id:
        try:
            return load_run(run_id)
        except RunError as error:
            st.error(plain(str(error)))
    runs = active_runs() or list_runs()
    watched = [
        run for run in runs if run.id == st.session_state.get("watched")
    ]  # when it ends, its outcome stays in view
    return next(iter(watched or runs), None)


@st.fragment(run_every=2.0)
@guard()
def follow(shown: str, *, only: bool) -> None:
    """Go to a run that has begun elsewhere, for example in a terminal; or see that the one that is shown goes on.

    Args:
        shown: the id of the run in view, which nobody trains.
        only: whether the address names it, so that other runs are no reason to leave it.
    """
    if any(run.id == shown or not only for run in active_runs()):
        st.rerun()


st.title("Pretraining", anchor=False)
run = chosen_run()
if run is None:
    st.write("Train a small GPT from scratch. The settings below are a good first run: it takes about half a minute.")
    with st.container(border=True):
        config_form()
    preload()
else:
    st.session_state["watched"] = run.id
    st.session_state.pop("reused", None)
    # Named after the run, so that it is closed again once the new one is shown; made only while it is open.
    new = st.expander("New run", icon=":material/add:", key=f"new-run-{run.id}", on_change="rerun")
    if new.open:
        with new:
            config_form()
    again = st.expander("From a checkpoint", icon=":material/history:", key=f"again-{run.id}", on_change="rerun")
    if again.open:
        with again:
            checkpoint_picker(run.id)
    run_view(run)
    actions.details_link(run.id, "Everything about this run: checkpoints, playground, lineage, downloads")
named = "run" in st.query_params
if run is None or not (run.is_locked or (named and run.state == "completed")):
    follow(run.id if run else "", only=named and run is not None)
if run is not None and (named or run.is_locked):
    others = [other for other in active_runs() if other.id != run.id]
    for other in others:
        actions.run_link(other.id, f"Another run is training now: {other.info.get('name') or other.id}")
