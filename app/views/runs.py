"""Runs: find runs, lay their losses over each other, open, resume or delete them."""

import streamlit as st

from app.widgets import actions
from app.widgets.comparison import comparison
from app.widgets.import_run import import_run
from app.widgets.run_table import run_table
from app.widgets.snapshot import snapshot
from engine.run import Run, list_runs


def act_on(chosen: list[Run]) -> None:
    """Open, resume, delete."""
    shots = [snapshot(run) for run in chosen]
    one = shots[0] if len(shots) == 1 else None
    with st.container(horizontal=True):
        if st.button("Open", icon=":material/open_in_new:", type="primary", disabled=one is None) and one:
            actions.open_run(one.run.id)
        can_resume = one is not None and one.resume_step is not None
        if st.button("Resume", icon=":material/play_arrow:", disabled=not can_resume) and one:
            actions.resume(one.run.id)
        active = any(shot.is_active for shot in shots)
        why = "A run that is being trained cannot be deleted. Stop it first." if active else None
        if st.button("Delete …", icon=":material/delete:", disabled=active or not shots, help=why):
            actions.confirm_deletion([shot.run.id for shot in shots], [shot.name for shot in shots])


st.title("Runs", anchor=False)
import_run()
runs = list_runs()
if runs:
    st.caption("Choose rows on the left to compare their losses.")
    chosen = run_table(runs)
    act_on(chosen)
    if chosen:
        comparison(chosen)
else:
    st.write("There is no run yet. A smoke run takes about half a minute:")
    st.page_link("views/home.py", label="Start on Home", icon=":material/rocket_launch:")
