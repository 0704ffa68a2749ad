"""Plotly figures on a page, each with a title above and a sentence below.

`st.plotly_chart` makes a new chart whenever a figure's data changed: a zoom is lost at every tick, and the browser
draws everything anew on the cores that train. This component updates the charts that are there. It holds several at
once, because on a live page each element costs the browser as much as a chart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import plotly
import streamlit as st
from streamlit.components import v1

from app.widgets.charts import PALETTE, Figure

# Serves plotly.js from the installed package, under the address that plot.js loads it from.
v1.declare_component("plotly", path=str(Path(plotly.__file__).parent / "package_data"))

_JS = Path(__file__).with_name("plot.js").read_text(encoding="utf-8")
_HTML = '<div class="lab-charts"></div>'
_CSS = """
.lab-charts { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)) }
.lab-chart { margin: 0; min-width: 0 }
.lab-chart.lab-wide { grid-column: 1 / -1 }
.lab-chart h5 { font-size: 1rem; font-weight: 600; margin: 0; padding: 0 0 0.25rem }
.lab-chart p { opacity: 0.65; font-size: 0.875rem; margin: 0.25rem 0 0 }
.lab-chart > p:empty, .lab-chart > h5:empty { display: none }
"""


@dataclass(frozen=True)
class Chart:
    """A figure and what stands around it.

    Attributes:
        figure: of `charts`, as JSON; the same once more costs the browser nothing.
        height: of the chart, in pixels.
        title, caption: plain text.
        wide: whether it takes a row to itself.
    """

    figure: str
    height: int
    title: str = ""
    caption: str = ""
    wide: bool = False


def plot(figure: Figure | str, *, key: str, height: int, title: str = "", caption: str = "") -> None:
    """Show a figure, or its JSON; `key` names the chart, so that the next one of this name replaces it in place."""
    text = figure if isinstance(figure, str) else json.dumps(figure)
    plots([Chart(text, height, title, caption, wide=True)], key=key)


def plots(
    charts: Sequence[Chart] | None, *, key: str, version: float = 0, on_lost: Callable[[], None] | None = None
) -> None:
    """Show several charts beside each other.

    Args:
        charts: None when those that were shown as `version` still hold: next to nothing is sent then.
        key: names them, so that the next ones of this name replace them in place.
        version: of the charts.
        on_lost: called when the browser does not have the charts of this version.
    """
    data: dict[str, Any] = {"version": version}
    if charts is not None:
        data |= {"charts": [asdict(chart) for chart in charts], "palette": PALETTE}
    _component()(key=key, data=data, on_lost_change=on_lost or _nothing)


def preload() -> None:
    """Load the library on a page that has no chart yet, so that the first point of a run does not wait for it."""
    _component()(key="plot-preload", data=None, on_lost_change=_nothing)


def _nothing() -> None:
    pass


def _component():
    return st.components.v2.component("lab_plot", html=_HTML, css=_CSS, js=_JS, isolate_styles=False)
