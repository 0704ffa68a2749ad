"""Runs: find runs, lay their losses over each other, open, resume or delete them."""

import streamlit as st

from app.widgets import actions, charts, formats
from app.widgets.charts import Curve
from app.widgets.live import LOSS_MEANING, view_controls
from app.widgets.plot import plot
from app.widgets.run_table import run_table
from app.widgets.snapshot import snapshot
from engine.run import Run, list_runs


def act_on(chosen: list[Run]) -> None:
    """Open, resume, delete."""
    shots = [snapshot(run) for run in chosen]
    one = shots[0] if len(shots) == 1 else None
    with st.container(horizontal=True):
        if st.button("Open", icon=":material/open_in_new:", type="primary", disabled=one is None) and one:
            actions.show_run(one.run.id)
        can_resume = one is not None and one.resume_step is not None
        if st.button("Resume", icon=":material/play_arrow:", disabled=not can_resume) and one:
            actions.resume(one.run.id)
        active = any(shot.is_active for shot in shots)
        why = "A run that is being trained cannot be deleted. Stop it first." if active else None
        if st.button("Delete …", icon=":material/delete:", disabled=active or not shots, help=why):
            actions.confirm_deletion([shot.run.id for shot in shots], [shot.name for shot in shots])


def overlay(chosen: list[Run]) -> None:
    """The losses of the chosen runs in one chart."""
    st.subheader("Loss", anchor=False)
    view = view_controls("overlay", parts=True)
    shots = [snapshot(run) for run in chosen]
    twice = {shot.name for shot in shots if [other.name for other in shots].count(shot.name) > 1}
    curves = [
        Curve(shot.run.id, f"{shot.name} ({shot.run.id[-4:]})" if shot.name in twice else shot.name, shot.metrics)
        for shot in shots
    ]
    ladders = {shot.rungs for shot in shots}
    rungs = ladders.pop() if len(ladders) == 1 else ()  # of one corpus, or they would mean different things
    plot(charts.loss_figure(curves, view, rungs), key="plot-overlay", height=440, caption=LOSS_MEANING)
    for shot in shots:
        for problem in shot.problems:
            st.caption(f":material/warning: {formats.plain(shot.name)}: {formats.plain(problem)}")


st.title("Runs", anchor=False)
runs = list_runs()
if runs:
    st.caption("Choose rows on the left to compare their losses.")
    chosen = run_table(runs)
    act_on(chosen)
    if chosen:
        overlay(chosen)
else:
    st.write("There is no run yet. A smoke run takes about half a minute:")
    st.page_link("views/home.py", label="Start on Home", icon=":material/rocket_launch:")
