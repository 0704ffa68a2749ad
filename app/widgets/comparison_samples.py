"""What the chosen runs wrote at about the same step, side by side."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from app.widgets import address, formats
from app.widgets.comparison_data import Choice
from app.widgets.texts import texts
from engine.run import Run

_SIDE_BY_SIDE = (
    "<style>.st-key-side-by-side .lab-texts { grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)) }</style>"
)


def samples(runs: Choice) -> None:
    """Of each run the sample nearest to one step."""
    found = {run_id: _samples(*states[0]) for run_id, states in runs.by_id.items()}
    there = {run_id: rows for run_id, rows in found.items() if not rows.empty}
    if not there:
        st.caption("None of these runs has generated a text yet.")
        return
    steps = sorted({int(step) for rows in there.values() for step in rows.step})
    common = min(int(rows.step.max()) for rows in there.values())
    step = common
    if len(steps) > 1:
        step = st.select_slider(
            "Step, or the sample nearest to it",
            steps,
            format_func=lambda step: f"{step:,}",
            width=420,
            key=address.keep("sample_step", common, steps),
            help=f"All of these runs have come to step {common:,}.",
        )
    st.html(_SIDE_BY_SIDE)
    with st.container(key="side-by-side"):
        texts([_nearest(rows, step, runs.names[run_id]) for run_id, rows in there.items()], key="compared-samples")
    missing = [runs.names[run_id] for run_id in found if run_id not in there]
    if missing:
        st.caption(formats.plain(f"No text yet: {', '.join(missing)}."))


def _nearest(rows: pd.DataFrame, step: int, name: str) -> dict[str, str]:
    row = rows.loc[(rows.step - step).abs().idxmin()]
    how = "always the likeliest token" if row.temperature == 0 else f"temperature {row.temperature:g}"
    return {"heading": f"{name} · step {row.step:,} · {how}", "prompt": row.prompt or "", "text": row.text or ""}


@lru_cache(maxsize=64)
def _samples(folder: Path, signature: tuple[Any, ...]) -> pd.DataFrame:
    return Run(folder).samples.drop_duplicates("step", keep="last").reset_index(drop=True)
