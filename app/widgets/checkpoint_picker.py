"""Any run's checkpoint to go on from, on the page where training begins."""

from __future__ import annotations

import streamlit as st

from app.widgets import formats
from app.widgets.branch import branch_button
from app.widgets.guard import guard
from app.widgets.run_checkpoints import choose, continue_button
from app.widgets.snapshot import snapshot
from engine.checkpoint import has_checkpoints
from engine.library import Summary, list_summaries
from engine.paths import runs_dir
from engine.run import load_run


@st.fragment
@guard()
def checkpoint_picker(in_view: str) -> None:
    """Ask for a run and one of its checkpoints; it goes on exactly, or as a branch with changed settings.

    Args:
        in_view: the id of the run that the page shows, which is offered first.
    """
    runs = {run.id: run for run in list_summaries() if not run.problem and has_checkpoints(runs_dir() / run.id)}
    if not runs:
        st.caption("No run has a checkpoint yet. One is saved at the end, at regular steps, and with *Save now*.")
        return
    first = list(runs).index(in_view) if in_view in runs else 0
    run_id = st.selectbox("Run", list(runs), first, lambda i: _describe(runs[i]), key=f"picked-run-{in_view}")
    shot = snapshot(load_run(run_id))
    chosen = choose(shot.checkpoints, key=f"picked-checkpoint-{run_id}")
    with st.container(horizontal=True):
        continue_button(shot, chosen)
        if not chosen.problem:
            branch_button(shot, [chosen], key="picked-branch")


def _describe(run: Summary) -> str:
    """A run in one line: name, state, how far it went, when it began."""
    steps = f"step {formats.count(run.step)} of {formats.count(run.total_steps)}"
    return " · ".join([run.name or run.id, run.state, steps, formats.moment(run.created)])
