"""Exercises: the guide's suggested runs and its four experiments, set up with one click and read when they are done."""

from collections.abc import Iterable, Mapping
from typing import Any

import streamlit as st

from app.widgets import actions, charts, corpus_work, formats, run_parts
from app.widgets.charts import Curve
from app.widgets.formats import plain
from app.widgets.guard import guard
from app.widgets.live import view_controls
from app.widgets.machine import machine
from app.widgets.plot import plot, preload
from app.widgets.snapshot import snapshot
from engine import session
from engine.config import SETTINGS, from_dict, label
from engine.corpora import find_corpus
from engine.exercises import (
    EXERCISES,
    LEARNING,
    PROGRESSION,
    Exercise,
    Setup,
    facts_of,
    mark,
    reading,
    runs_of,
    settings_for,
)
from engine.run import Run, active_runs, list_runs


def show(exercise: Exercise) -> None:
    """One exercise: its question, its runs, and what they say."""
    here = machine()
    setup = settings_for(exercise, here.device, here.threads)
    found = runs_of(exercise, list_runs())
    st.markdown(f"**{plain(exercise.question)}**")
    st.caption(f"Watch for: {plain(exercise.look_for)} {plain(setup.explanation)}")
    if exercise.without_gpu and here.device == "cpu":
        st.caption(f":material/memory_alt: Without a GPU: {plain(exercise.without_gpu)}")
    for number, action in enumerate(exercise.actions, start=1):
        st.markdown(f"{number}. {plain(action)}")
    _runs(setup, found)
    _start(exercise, setup, found)
    if found:
        _result(exercise, setup, found)


def _runs(setup: Setup, found: dict[str, Run]) -> None:
    """The runs: how far they are, and their settings."""
    first, *others = (run.settings for run in setup.runs)
    shared = {name: value for name, value in first.items() if all(name in o and o[name] == value for o in others)}
    for planned in setup.runs:
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            run = found.get(planned.role)
            if run is None:
                st.badge("not started", color="gray")
                st.markdown(plain(planned.name), width="content")
            else:
                run_parts.state_badge(snapshot(run).state)
                actions.run_link(run.id, planned.name)
            st.caption(_words(planned.settings, without=shared), width="content")
    st.caption(f"Settings{' of each' if others else ''}: {_words(shared)}")


def _words(settings: Mapping[str, Any], *, without: Iterable[str] = ()) -> str:
    """Settings as one reads them; what is turned off, and the limit that is never reached, need no words."""
    unsaid = {*without, *(["epochs"] if settings.get("max_steps") else [])}
    named = {name: value for name, value in settings.items() if name in SETTINGS and name not in unsaid}
    return plain(", ".join(f"{label(name).lower()} {value}" for name, value in named.items() if value not in (0, -1)))


def _start(exercise: Exercise, setup: Setup, found: dict[str, Run]) -> None:
    """One button for all runs that are not done yet."""
    missing = [find_corpus(name) for name in setup.missing]
    if missing:
        corpus_work.get_ready(missing, key=exercise.key)
        return
    wanted = [run for run in setup.runs if run.role not in found or snapshot(found[run.role]).state != "completed"]
    going = any(snapshot(run).is_active for run in found.values())
    again = not wanted
    words = "Run it again" if again else "Start" if len(wanted) == 1 else f"Start these {len(wanted)} runs"
    if st.button(words, key=f"go-{exercise.key}", type="secondary" if again else "primary", disabled=going):
        chosen = setup.runs if again else wanted
        series = [(from_dict(dict(run.settings)), run.name, mark(exercise, run.role)) for run in chosen]
        actions.launch(lambda: session.start_series(series))


def _result(exercise: Exercise, setup: Setup, found: dict[str, Run]) -> None:
    """The comparison, and what its numbers say once all runs are done."""
    shots = {role: snapshot(run) for role, run in found.items()}
    said = reading(exercise, {role: facts_of(run) for role, run in found.items()}, roles=[r.role for r in setup.runs])
    if any(shot.last for shot in shots.values()):
        view = view_controls(f"exercise-{exercise.key}")
        columns = charts.loss_columns(view)
        curves = [Curve(shot.run.id, role, shot.columns(*columns)) for role, shot in shots.items()]
        plot(charts.loss_figure(curves, view), key=f"plot-{exercise.key}", height=300)
    if not said.table.empty:
        st.dataframe(said.table, placeholder=formats.DASH)
        st.caption(
            "Training loss is the median of the last tenth of the steps (five at least), tokens/s that of the second "
            "half, memory the most."
        )
    if said.text:
        st.success(f"{plain(said.text)} {plain(said.meaning)}", icon=":material/school:")
        if said.limits:
            st.caption(plain(said.limits))
    for sentence in said.missing:
        st.caption(f":material/hourglass_empty: {plain(sentence)}")


@st.fragment(run_every=2.0)
@guard()
def follow(before: list[str]) -> None:
    """Draw the page anew when a run begins or ends."""
    if [run.id for run in active_runs()] != before:
        st.rerun()


st.title("Exercises", anchor=False)
st.write("Each asks a question, sets up its runs with one click, and says what their numbers mean when they are done.")
for group in (PROGRESSION, LEARNING):
    st.subheader(group, anchor=False)
    for exercise in EXERCISES:
        if exercise.group == group:
            box = st.expander(plain(exercise.title), on_change="rerun", key=f"exercise-{exercise.key}")
            if box.open:
                with box:
                    show(exercise)
follow([run.id for run in active_runs()])
preload()
