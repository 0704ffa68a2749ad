"""Several runs beside each other: their curves in one chart, below it what differs and what came of it.

How one looks at them is kept in the address, so that a reload or a link shows the same.
"""

from __future__ import annotations

import streamlit as st

from app.widgets import address, comparison_samples, comparison_tables, formats
from app.widgets.chart_files import chart_files
from app.widgets.charts import AXES, View
from app.widgets.comparison_charts import MEASURES
from app.widgets.comparison_data import choice, overlay, problems, shared_rungs
from app.widgets.guard import guard
from app.widgets.plot import plot
from app.widgets.run_charts import LOSS_MEANING, PANELS
from engine.run import Run

TICK_S = 2.0  # while a chosen run trains
TABLES_S = 10.0  # the same for the tables: they take more to work out, and are read more slowly
_LOSSES = {"both": ("train", "val"), "training": ("train",), "validation": ("val",)}
_TABS = {
    "Results": comparison_tables.results,
    "Settings": comparison_tables.settings,
    "Setting against result": comparison_tables.scatter,
    "Samples": comparison_samples.samples,
}


@st.fragment  # another look at the same runs leaves the list of all runs as it is
@guard()
def comparison(chosen: list[Run]) -> None:
    """The chosen runs against each other; one alone is shown likewise. All of it grows while one of them trains."""
    column, view = _controls()
    active = _are_active(chosen)
    st.fragment(_chart, run_every=TICK_S if active else None)(chosen, active, column, view)
    st.fragment(_tables, run_every=TABLES_S if active else None)(chosen)


@guard()
def _tables(chosen: list[Run]) -> None:
    """What stands below the curves; of a tick without news nothing is worked out anew."""
    runs = choice(chosen)
    tabs = st.tabs(list(_TABS), key=address.keep("table", next(iter(_TABS)), list(_TABS)), on_change="rerun")
    for tab, draw in zip(tabs, _TABS.values(), strict=True):
        if tab.open:
            with tab:
                draw(runs)
    address.tell()


def _controls() -> tuple[str, View]:
    """What is drawn, and how."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        column = st.selectbox(
            "Curve",
            list(MEASURES),
            format_func=lambda column: MEASURES[column].title,
            width=160,
            key=address.keep("curve", next(iter(MEASURES)), list(MEASURES)),
        )
        parts = _LOSSES["both"]
        if column == "train_loss":
            parts = _LOSSES[_buttons("Losses", {name: name.capitalize() for name in _LOSSES}, "both", key="losses")]
        x = _buttons("X axis", AXES, "step", key="x")
        smoothing = st.slider(
            "Smoothing",
            0.0,
            0.99,
            step=0.01,
            width=180,
            key=address.keep("smoothing", 0.6),
            help="Weight of the past in the moving average. Of a few runs the raw line stays behind it. Validation is "
            "never smoothed, nor are learning rate and memory.",
        )
        log_x = st.toggle("Log x", key=address.keep("log_x", False))
        log_y = st.toggle("Log y", key=address.keep("log_y", False))
    address.tell()
    return column, View(x, smoothing, log_x, log_y, parts)


def _buttons(title: str, words: dict[str, str], default: str, *, key: str) -> str:
    chosen = st.segmented_control(
        title, list(words), format_func=words.get, required=True, key=address.keep(key, default, list(words))
    )
    return chosen or default


def _are_active(runs: list[Run]) -> bool:
    """Whether one of them is being trained."""
    return any(run.is_locked for run in runs)


@guard()
def _chart(chosen: list[Run], was_active: bool, column: str, view: View) -> None:
    """The curves of all runs over each other; it grows while one of them trains."""
    if _are_active(chosen) != was_active:
        st.rerun()  # the page says what can be done with them now
    runs = choice(chosen)
    rungs = shared_rungs(runs)
    meaning = LOSS_MEANING if column == "train_loss" else PANELS[column][3]
    with st.container(key="overlay"):
        height = 460 if len(runs.ids) <= 4 else 540
        plot(overlay(runs, column, view, rungs), key="plot-overlay", height=height, caption=meaning)
    title = MEASURES[column].title
    of = runs.ids[0] if len(runs.ids) == 1 else f"{len(runs.ids)}-runs"
    chart_files("overlay", title=title, file=f"{title.lower().replace(' ', '-')}-of-{of}")
    for states in runs.states:
        for problem in problems(*states[0], column, view.x):
            st.caption(f":material/warning: {formats.plain(runs.names[states[0][0].name])}: {formats.plain(problem)}")
