"""What the engine reads in a run's curves, in words: the finding, its evidence, and what to do about it."""

from __future__ import annotations

import streamlit as st

from app.widgets.formats import plain
from app.widgets.snapshot import Snapshot
from engine.config import SETTINGS, label
from engine.diagnosis import Finding

_LOOKS = {  # severity -> colour, icon
    "problem": ("red", ":material/error:"),
    "warning": ("orange", ":material/warning:"),
    "note": ("gray", ":material/info:"),
    "good": ("green", ":material/check_circle:"),
}


def findings(shot: Snapshot) -> None:
    """All findings, problems first."""
    if shot.metrics.empty:
        return
    with st.container(border=True, gap="small"):
        for finding in shot.findings:
            _finding(finding)


def _finding(finding: Finding) -> None:
    colour, icon = _LOOKS[finding.severity]
    names = [label(name) for name in finding.settings if name in SETTINGS]
    settings = f" Settings: {', '.join(names)}." if names else ""
    st.markdown(
        f":{colour}[{icon} **{plain(finding.title)}**] {plain(finding.evidence)} "
        f"{plain(finding.advice)}{plain(settings)}"
    )
