"""Plotly figures on a page, each with a title above and a sentence below.

`st.plotly_chart` makes a new chart whenever a figure's data changed: a zoom is lost at every tick, and the browser
draws everything anew on the cores that train. This component updates the charts that are there. It holds several at
once, because on a live page each element costs the browser as much as a chart.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import plotly
import streamlit as st
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from app.widgets.charts import PALETTE, Figure

# Serves plotly.js from the installed package, where plot.js loads it from.
LIBRARY = Mount("/lab/plotly", StaticFiles(directory=Path(plotly.__file__).parent / "package_data"))

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


def plots(charts: Sequence[Chart], *, key: str, follows_feed: bool = False) -> None:
    """Show several charts beside each other.

    Args:
        key: names them, so that the next ones of this name replace them in place.
        follows_feed: whether they take the charts that the feed of the page's numbers brings.
    """
    made = time.monotonic() if follows_feed else None
    _component()(key=key, data={"charts": [asdict(chart) for chart in charts], "palette": PALETTE, "made": made})


def preload() -> None:
    """Load the library on a page that has no chart yet, so that the first point of a run does not wait for it."""
    _component()(key="plot-preload", data=None)


def _component():
    return st.components.v2.component("lab_plot", html=_HTML, css=_CSS, js=_JS, isolate_styles=False)
