"""The view of one run. What stands around numbers and curves is drawn by Streamlit, now and then."""

from __future__ import annotations

from functools import partial

import streamlit as st

from app.widgets import actions, feed, formats, run_parts, would_fit
from app.widgets.branch import branch_button
from app.widgets.charts import AXES, View
from app.widgets.form_fields import fill
from app.widgets.form_shortcuts import settings_of
from app.widgets.guard import guard
from app.widgets.numbers import clicked_setting, numbers
from app.widgets.plot import plots
from app.widgets.run_charts import run_charts
from app.widgets.snapshot import Snapshot, snapshot
from engine.config import SETTINGS
from engine.run import Run


def run_view(run: Run) -> None:
    """Everything about a run. While it goes on, the browser asks for numbers and curves: see `feed`."""
    shot = snapshot(run)
    run_parts.heading(shot)
    if not shot.is_damaged:
        _controls(shot)
    _outcome(shot)
    status = st.container()
    view = view_controls("live")
    with status:
        numbers(shot, feed=feed.about(shot, view), on_setting=partial(_reuse_at, run))
    plots(run_charts(shot, view), key="plots", follows_feed=True)
    st.fragment(_parts)(shot)
    facts = st.expander("Settings and environment", on_change="rerun", key=f"facts-{run.id}")
    if facts.open:
        with facts:
            run_parts.settings(shot)
            run_parts.environment(shot)


@guard()
def _parts(shot: Snapshot) -> None:
    parts = {"Samples": run_parts.samples, "Log": run_parts.log, "Checkpoints": run_parts.checkpoints}
    for tab, draw in zip(st.tabs(list(parts), on_change="rerun", key="parts"), parts.values(), strict=True):
        if tab.open:
            with tab:
                draw(shot)


def _controls(shot: Snapshot) -> None:
    if not shot.is_active:
        with st.container(horizontal=True):
            if shot.resume_step is not None and st.button("Resume", icon=":material/play_arrow:", type="primary"):
                actions.resume(shot.run.id)
            branch_button(shot, [c for c in shot.checkpoints if not c.problem])
            if st.button("Use these settings", icon=":material/tune:", on_click=_reuse, args=(shot.run,), key="reuse"):
                st.rerun()  # the form is outside of this fragment
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        waiting_for = _asked(shot)
        for what, label, icon in _STEER:
            if what == ("pause" if shot.state == "paused" else "resume"):
                continue
            st.button(
                label,
                key=f"steer-{what}",
                icon=f":material/{icon}:",
                type="primary" if what == "resume" else "secondary",
                disabled=shot.state == "preparing" or waiting_for in (what, "stop"),
                on_click=_ask,
                args=(shot, what),
            )
        if waiting_for:
            st.caption(_WAITING[waiting_for])


def _reuse(run: Run) -> None:
    """Open the form of a new run with what was asked for in this one."""
    fill(settings_of(run))
    st.session_state[f"new-run-{run.id}"] = True
    st.session_state["reused"] = run.id  # the page of a run goes to that form


def _reuse_at(run: Run) -> None:
    """The same, where the field of the setting that was clicked is in sight."""
    _reuse(run)
    if SETTINGS[clicked_setting()].metadata["group"] != "main":
        st.session_state["more-settings"] = True


_STEER = (
    ("resume", "Resume", "play_arrow"),
    ("pause", "Pause", "pause"),
    ("save", "Save now", "save"),
    ("stop", "Stop and save", "stop"),
)
_WAITING = {
    "pause": "Pausing after this step …",
    "resume": "Going on …",
    "save": "Saving after this step …",
    "stop": "Stopping and saving after this step …",
}
_ENDS = ("stopped", "completed", "failed", "resumed")  # answer every wish, or make it void
_ANSWERS = {"pause": "paused", "resume": "unpaused", "save": "saved", "stop": "stopped"}


def _ask(shot: Snapshot, what: str) -> None:
    events_before = len(shot.run.events)  # counted first: the answer may come at once
    actions.steer(shot.run.id, what)
    st.session_state["asked"] = (shot.run.id, what, events_before)


def _asked(shot: Snapshot) -> str | None:
    """What this tab asked of the run and what its log does not yet answer."""
    run_id, what, events_before = st.session_state.get("asked", ("", "", 0))
    if run_id != shot.run.id or any(e.kind in (_ANSWERS[what], *_ENDS) for e in shot.events[events_before:]):
        return None
    return what


def _outcome(shot: Snapshot) -> None:
    """Why a run is over, and what to do about it."""
    ahead = "It left no checkpoint, so it cannot be resumed; start a new run."
    if shot.info.get("diverged"):
        has_checkpoint = any(not checkpoint.problem for checkpoint in shot.checkpoints)
        ahead = f"{'*Branch* from a checkpoint' if has_checkpoint else 'Start a new run'} with a lower learning rate."
    elif shot.resume_step is not None:
        ahead = f"*Resume* continues from step {shot.resume_step:,}."
    if shot.is_damaged:
        st.error(
            "The run.json of this run is missing or damaged, so its settings and its state are not known. Put it back "
            "from a backup, or delete the run on the Runs page. What else its folder holds is shown here.",
            icon=":material/broken_image:",
        )
    elif shot.state == "failed":
        reason = str(shot.info.get("error") or "The run failed and left no reason.")
        st.error(f"{formats.plain(reason)}  \n{ahead}", icon=":material/error:")
        would_fit.after_failure(shot)
    elif shot.state == "interrupted":
        st.warning(
            "The process that trained this run ended without a word, or the machine did. What was measured until then "
            f"is here. {ahead}",
            icon=":material/power_off:",
        )
    for problem in shot.problems:
        if not (shot.is_damaged and problem.startswith("run.json")):  # told above
            st.caption(f":material/warning: {formats.plain(problem)}")


def view_controls(key: str) -> View:
    """How to look at curves: axes and smoothing."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        names = list(AXES)
        x = st.segmented_control(
            "X axis",
            names,
            default="step",
            format_func=AXES.get,
            required=True,
            key=f"{key}-x",
            persist_state="session",
        )
        smoothing = st.slider(
            "Smoothing",
            0.0,
            0.99,
            0.6,
            0.01,
            width=150,
            key=f"{key}-smoothing",
            persist_state="session",
            help="Weight of the past in the moving average of the training loss. The raw line stays behind it. "
            "Validation is never smoothed.",
        )
        log_x = st.toggle("Log x", key=f"{key}-log-x", persist_state="session")
        log_y = st.toggle("Log y", key=f"{key}-log-y", persist_state="session")
    return View(x or "step", smoothing, log_x, log_y)
