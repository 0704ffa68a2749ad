"""Several runs beside each other."""

import streamlit as st

from app.widgets import charts, formats
from app.widgets.charts import Curve
from app.widgets.live import view_controls
from app.widgets.plot import plot
from app.widgets.run_charts import LOSS_MEANING
from app.widgets.snapshot import snapshot
from engine.run import Run


def comparison(chosen: list[Run]) -> None:
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
