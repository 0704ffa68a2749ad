"""Parts of a run's view: its state, its samples, its log, its checkpoints and settings. All texts are shown as text."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pandas as pd
import streamlit as st

from app.widgets import formats
from app.widgets.snapshot import Snapshot
from app.widgets.texts import texts
from engine.config import SETTINGS, TrainConfig, label
from engine.errors import LabError
from engine.files import object_in

SHOWN_SAMPLES = 5
STATES = {  # state -> colour, icon
    "preparing": ("blue", ":material/hourglass_top:"),
    "running": ("green", ":material/play_arrow:"),
    "paused": ("orange", ":material/pause:"),
    "stopped": ("gray", ":material/stop:"),
    "completed": ("blue", ":material/check:"),
    "failed": ("red", ":material/error:"),
    "interrupted": ("orange", ":material/power_off:"),
    "damaged": ("red", ":material/broken_image:"),
}


def state_badge(state: str) -> None:
    """The state in its colour."""
    colour, icon = STATES[state]
    st.badge(state, color=colour, icon=icon)


def heading(shot: Snapshot) -> None:
    """Which run it is, how it stands, and since when."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.subheader(formats.plain(shot.name), anchor=False, width="content")
        state_badge(shot.shown_state)
    st.caption(f"Run {shot.run.id} · started {formats.moment(shot.info.get('created'))}")


def samples(shot: Snapshot) -> None:
    """Generated texts as a timeline: the newest few, or one that one steps to; the same prompt at each step."""
    if shot.samples.empty:
        st.caption("The first sample appears here when it is generated.")
        return
    steps = shot.samples.step.drop_duplicates(keep="last")
    chosen = None
    if len(steps) > 1:
        with st.container(horizontal=True, vertical_alignment="center"):
            if st.toggle("Step through", key="samples-by-step", help="Otherwise the newest are shown."):
                chosen = st.select_slider("Step", steps.tolist(), key=f"sample-step-{shot.run.id}", width=420)
    if chosen is None:
        shown = shot.samples.iloc[::-1].head(SHOWN_SAMPLES)
    else:
        shown = shot.samples[shot.samples.step == chosen].tail(1)
    texts([_sample(row) for row in shown.itertuples()], key="samples")
    if chosen is None and len(shot.samples) > len(shown):
        st.caption(f"The newest {len(shown)} of {len(shot.samples):,} samples.")


def _sample(row: Any) -> dict[str, str]:
    how = "always the likeliest token" if row.temperature == 0 else f"temperature {row.temperature:g}"
    return {"heading": f"Step {row.step:,} · {how}", "prompt": row.prompt or "", "text": row.text or ""}


def log(shot: Snapshot) -> None:
    """The run's events, the newest first."""
    events = shot.events[::-1][:200]
    if not events:
        st.caption("Nothing happened yet.")
        return
    with st.container(height=_height(events), border=True):
        st.text("\n".join(f"{formats.clock(e.time)}   {e.message}" for e in events))


def _height(rows: list[Any]) -> int:
    return min(360, 48 + 26 * len(rows))


def checkpoints(shot: Snapshot) -> None:
    """All checkpoints, the newest first."""
    if not shot.checkpoints:
        st.caption("No checkpoint yet. One is saved at the end, at regular steps, and with *Save now*.")
        return
    rows = [
        {
            "step": c.step,
            "training loss": c.progress.get("train_loss"),
            "validation loss": c.progress.get("val_loss") if c.progress.get("val_step") == c.step else None,
            "size": formats.size(c.bytes) if not c.problem else formats.DASH,
            "saved": formats.moment(c.saved),
            "note": c.problem,
        }
        for c in reversed(shot.checkpoints)
    ]
    table = pd.DataFrame(rows)
    if not table.note.any():
        table = table.drop(columns="note")
    st.dataframe(table, hide_index=True, placeholder=formats.DASH, column_config=_LOSSES)


_LOSSES = {
    "training loss": st.column_config.NumberColumn(format="%.3f"),
    "validation loss": st.column_config.NumberColumn(format="%.3f"),
}


def settings(shot: Snapshot) -> None:
    """Every setting the run trains with; those that were changed from the defaults are marked."""
    try:
        config = shot.run.config
    except LabError as error:
        st.caption(formats.plain(str(error)))
        return
    requested = object_in(shot.info, "requested")
    rows = [
        {
            "setting": label(f.name),
            "value": formats.setting(getattr(config, f.name)),
            "": "changed" if f.name in requested else "",
            "what it does": SETTINGS[f.name].metadata["help"],
        }
        for f in fields(TrainConfig)
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True)


def environment(shot: Snapshot) -> None:
    """Machine and versions with which the run was started, and what last computed it."""
    recorded = object_in(shot.info, "environment")
    facts = {name: value for name, value in recorded.items() if name not in ("machine", "packages")}
    processes = {"processes": shot.info["world_size"]} if shot.info.get("world_size", 1) != 1 else {}
    versions = {name: version for name, version in object_in(recorded, "packages").items() if version}
    computed = {f"computed with: {what}": value for what, value in object_in(shot.info, "arithmetic").items()}
    rows = {**processes, **facts, **object_in(recorded, "machine"), **versions, **computed}
    if not rows:
        st.caption("The run did not record its environment.")
        return
    table = pd.DataFrame([(name.replace("_", " "), _fact(value)) for name, value in rows.items()])
    st.dataframe(table.set_axis(["what", "value"], axis=1), hide_index=True, height="content")


def _fact(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or formats.DASH
    return f"{value:.1f}" if isinstance(value, float) else str(value)
