"""The charts of one run, and what each of its curves means."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.widgets import charts
from app.widgets.charts import Curve, View
from app.widgets.plot import Chart
from app.widgets.snapshot import Snapshot, read

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
        "The most since the start or the last resume: on a GPU what was allocated, on a CPU what the process held. The "
        "line is the estimate made before.",
    ),
}


def run_charts(shot: Snapshot, view: View) -> list[Chart]:
    """The loss and one chart for each of `PANELS`."""
    key = (shot.run.folder, shot.signature, view)
    return [
        Chart(_figure(*key, "loss"), 360, "Loss", LOSS_MEANING, wide=True),
        *(Chart(_figure(*key, column), 230, title, meaning) for column, (title, _, _, meaning) in PANELS.items()),
    ]


@lru_cache(maxsize=64)
def _figure(folder: Path, signature: tuple[Any, ...], view: View, what: str) -> str:
    """A chart as JSON; made once for all tabs, and not again while nothing has changed."""
    shot = read(folder, signature)
    if what == "loss":
        curve = Curve(shot.run.id, shot.name, shot.columns(*charts.loss_columns(view)))
        return json.dumps(charts.loss_figure([curve], view, shot.rungs))
    curve = Curve(shot.run.id, shot.name, shot.columns(view.x, what))
    _, unit, hover, _ = PANELS[what]
    marks = [("estimate", shot.memory_estimate)] if what == "memory_gib" and shot.memory_estimate else []
    return json.dumps(charts.line_figure(curve, what, view, unit, hover=hover, marks=marks))
