"""The view of one run: polled every second while the run is active, drawn once when it is not."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app.widgets import actions, charts, diagnosis, formats, run_parts
from app.widgets.branch import branch_button
from app.widgets.charts import AXES, Curve, View
from app.widgets.form_fields import fill
from app.widgets.form_shortcuts import settings_of
from app.widgets.guard import guard
from app.widgets.plot import plot
from app.widgets.snapshot import Snapshot, read, snapshot
from engine.run import Run

TICK_S = 1.0

# What each curve means, from the lab's guide.
LOSS_MEANING = (
    "How surprised the model is by the next token. Flat or high: look at learning rate and data. Spikes: the learning "
    "rate is too high or the precision too coarse. Very low on a small text, or validation that rises while training "
    "falls: the model learns the text by heart."
)
PANELS = {  # column -> title, unit, format of a value, meaning
    "learning_rate": (
        "Learning rate",
        "",
        ".3e",
        "Size of a step: up during warm-up, then down along a cosine for finer and finer corrections.",
    ),
    "tokens_per_s": (
        "Throughput",
        "tokens per second",
        ",.0f",
        "Speed of training alone, validation and saving left out. Compare it between settings.",
    ),
    "grad_norm": (
        "Gradient norm",
        "",
        ".3f",
        "Length of the gradient before clipping. A steady line is healthy; a spike warns of a loss that may follow.",
    ),
    "memory_gib": (
        "Memory",
        "GiB",
        ",.2f",
        "On a GPU the most that was allocated so far, on a CPU what the process holds. The line is the estimate made "
        "before the start.",
    ),
}


def run_view(run: Run) -> None:
    """Everything about a run. Only what changes is polled, and only while it changes; what is closed is not made."""
    shot = snapshot(run)
    status = st.container()
    view = view_controls("live")
    st.fragment(_live, run_every=TICK_S if shot.is_active else None)(run, shot.is_active, status, view)
    facts = st.expander("Settings and environment", on_change="rerun", key=f"facts-{run.id}")
    if facts.open:
        with facts:
            run_parts.settings(shot)
            run_parts.environment(shot)


@guard()
def _live(run: Run, was_active: bool, status: DeltaGenerator, view: View) -> None:
    shot = snapshot(run)
    if shot.is_active != was_active:
        st.rerun()  # starts or ends the polling
    with status:
        _header(shot)
        _controls(shot)
        _outcome(shot)
        diagnosis.findings(shot)
    _charts(shot, view)
    parts = {"Samples": run_parts.samples, "Log": run_parts.log, "Checkpoints": run_parts.checkpoints}
    for tab, draw in zip(st.tabs(list(parts), on_change="rerun", key="parts"), parts.values(), strict=True):
        if tab.open:
            with tab:
                draw(shot)


def _header(shot: Snapshot) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.subheader(formats.plain(shot.name), anchor=False, width="content")
        run_parts.state_badge(shot.state)
    st.caption(f"Run {shot.run.id} · started {formats.moment(shot.info.get('created'))}")
    last, total = shot.last, shot.total_steps
    step = int(last.get("step", 0))
    left = shot.seconds_left
    ahead = f" · about {formats.duration(left)} left" if left is not None and shot.state == "running" else ""
    st.progress(min(1.0, step / total) if total else 0.0, text=f"Step {step:,} of {total:,}{ahead}")
    train, val = last.get("train_loss"), shot.last_val_loss
    with st.grid("auto", min_column_width=130, gap="small"):
        st.metric("Epoch", f"{last['epoch']:.2f}" if last else formats.DASH)
        st.metric("Tokens", formats.count(last.get("tokens")))
        st.metric("Training time", formats.duration(last.get("elapsed_s")))
        st.metric("Speed", formats.rate(last.get("tokens_per_s")))
        st.metric("Training loss", formats.loss(train))
        st.metric("Perplexity", formats.perplexity(train), help="e to the power of the loss, in training.")
        st.metric("Validation loss", formats.loss(val))
        st.metric("Perplexity, validation", formats.perplexity(val))
        memory, estimate = shot.peak_memory, shot.memory_estimate
        st.metric(
            "Peak memory",
            f"{memory:.2f} GiB" if memory else formats.DASH,
            help=f"Measured. Before the start {estimate:.2f} GiB were estimated." if estimate else "Measured.",
        )


def _controls(shot: Snapshot) -> None:
    if not shot.is_active:
        with st.container(horizontal=True):
            if shot.resume_step is not None and st.button("Resume", icon=":material/play_arrow:", type="primary"):
                actions.resume(shot.run.id)
            branch_button(shot, [c for c in shot.checkpoints if not c.problem])
            st.button("Use these settings", icon=":material/tune:", on_click=_reuse, args=(shot.run,), key="reuse")
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
        ahead = "*Branch* from a checkpoint with a lower learning rate."
    elif shot.resume_step is not None:
        ahead = f"*Resume* continues from step {shot.resume_step:,}."
    if shot.state == "failed":
        reason = str(shot.info.get("error") or "The run failed and left no reason.")
        st.error(f"{formats.plain(reason)}  \n{ahead}", icon=":material/error:")
    elif shot.state == "interrupted":
        st.warning(
            "The process that trained this run ended without a word, or the machine did. What was measured until then "
            f"is here. {ahead}",
            icon=":material/power_off:",
        )
    for problem in shot.problems:
        st.caption(f":material/warning: {formats.plain(problem)}")


def view_controls(key: str, *, parts: bool = False) -> View:
    """How to look at curves: axes, smoothing and, for several runs, which losses."""
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
        shown = ("train", "val")
        if parts:
            shown = _PARTS[
                st.segmented_control(
                    "Loss", list(_PARTS), default="Both", required=True, key=f"{key}-parts", persist_state="session"
                )
            ]
        smoothing = st.slider(
            "Smoothing",
            0.0,
            0.99,
            0.6,
            0.01,
            width=200,
            key=f"{key}-smoothing",
            persist_state="session",
            help="Weight of the past in the moving average of the training loss. The raw line stays behind it. "
            "Validation is never smoothed.",
        )
        log_x = st.toggle("Log x", key=f"{key}-log-x", persist_state="session")
        log_y = st.toggle("Log y", key=f"{key}-log-y", persist_state="session")
    return View(x or "step", smoothing, log_x, log_y, shown)


_PARTS = {"Both": ("train", "val"), "Training": ("train",), "Validation": ("val",)}


def _charts(shot: Snapshot, view: View) -> None:
    key = (shot.run.folder, shot.signature, view)
    plot(_figure(*key, "loss"), key="plot-loss", height=360, title="Loss", caption=LOSS_MEANING)
    with st.grid(2, min_column_width=420, gap="medium"):
        for column, (title, _, _, meaning) in PANELS.items():
            plot(_figure(*key, column), key=f"plot-{column}", height=230, title=title, caption=meaning)


@lru_cache(maxsize=64)
def _figure(folder: Path, signature: tuple[Any, ...], view: View, what: str) -> str:
    """A chart as JSON; made once for all tabs, and not again while nothing has changed."""
    shot = read(folder, signature)
    curve = Curve(shot.run.id, shot.name, shot.metrics)
    if what == "loss":
        return json.dumps(charts.loss_figure([curve], view, shot.rungs))
    _, unit, hover, _ = PANELS[what]
    marks = [("estimate", shot.memory_estimate)] if what == "memory_gib" and shot.memory_estimate else []
    return json.dumps(charts.line_figure(curve, what, view, unit, hover=hover, marks=marks))
