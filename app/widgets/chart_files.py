"""Buttons that save a chart as PNG, SVG, or one HTML page that holds all it needs."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

_JS = Path(__file__).with_name("chart_files.js").read_text(encoding="utf-8")
_HTML = """
<div class="lab-files"><span>Save the chart as</span>
<button type="button">PNG</button><button type="button">SVG</button><button type="button">HTML</button></div>
"""
_CSS = """
.lab-files { display: flex; gap: 0.5rem; align-items: center; font-size: 0.875rem }
.lab-files span { opacity: 0.65 }
.lab-files button {
  font: inherit; color: var(--st-link-color); background: none; cursor: pointer; padding: 0.1rem 0.6rem;
  border: 1px solid var(--st-border-color); border-radius: var(--st-base-radius);
}
.lab-files button:hover, .lab-files button:focus-visible { border-color: var(--st-primary-color) }
"""


def chart_files(chart: str, *, title: str, file: str) -> None:
    """Offer a chart as files; what is zoomed into or hidden in it is so in them.

    Args:
        chart: key of the container that it is in.
        title: of the picture.
        file: its name, without the suffix.
    """
    component = st.components.v2.component("lab_files", html=_HTML, css=_CSS, js=_JS, isolate_styles=False)
    component(key=f"files-{chart}", data={"chart": chart, "title": title, "file": file})
