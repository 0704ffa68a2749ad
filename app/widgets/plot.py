"""A Plotly figure on a page, with a title above and a sentence below.

`st.plotly_chart` makes a new chart whenever a figure's data changed: a zoom is lost at every tick, and the browser
draws everything anew on the cores that train. This component updates the chart that is there.
"""

from __future__ import annotations

import json
from pathlib import Path

import plotly
import streamlit as st
from streamlit.components import v1

from app.widgets.charts import PALETTE, Figure

# Serves plotly.js from the installed package, under the address that plot.js loads it from.
v1.declare_component("plotly", path=str(Path(plotly.__file__).parent / "package_data"))

_JS = Path(__file__).with_name("plot.js").read_text(encoding="utf-8")
_HTML = '<div class="lab-chart"><h5></h5><div class="lab-plot"></div><p></p></div>'
_CSS = """
.lab-chart h5 { font-size: 1rem; font-weight: 600; margin: 0; padding: 0 0 0.25rem }
.lab-chart p { opacity: 0.65; font-size: 0.875rem; margin: 0.25rem 0 0 }
.lab-chart > p:empty, .lab-chart > h5:empty { display: none }
"""


def plot(figure: Figure | str, *, key: str, height: int, title: str = "", caption: str = "") -> None:
    """Show a figure.

    Args:
        figure: of `charts`, or its JSON; the same once more costs the browser nothing.
        key: names the chart, so that the next figure of this name replaces it in place.
        height: of the chart, in pixels.
        title, caption: plain text.
    """
    text = figure if isinstance(figure, str) else json.dumps(figure)
    data = {"figure": text, "palette": PALETTE, "height": height, "title": title, "caption": caption}
    _component()(key=key, data=data)


def preload() -> None:
    """Load the library on a page that has no chart yet, so that the first point of a run does not wait for it."""
    _component()(key="plot-preload", data=None)


def _component():
    return st.components.v2.component("lab_plot", html=_HTML, css=_CSS, js=_JS, isolate_styles=False)
