"""Ways to fill the form at once: settings for a purpose, or those of an earlier run."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app.widgets.form_fields import DEFAULTS, fill
from app.widgets.machine import machine
from engine.config import SETTINGS
from engine.environment import GIB
from engine.files import object_in
from engine.recipes import RECIPES, Machine
from engine.run import Run, list_runs, load_run

_OFFERED = 30  # runs to take settings from


def last_settings() -> dict[str, Any]:
    """What was asked for when the newest run was started; {} when there is none."""
    runs = list_runs()
    return settings_of(runs[0]) if runs else {}


def settings_of(run: Run) -> dict[str, Any]:
    """What the person asked for, without what was then chosen for them."""
    requested = object_in(run.info, "requested")
    return {name: requested[name] for name in SETTINGS if name in requested}


def shortcuts() -> None:
    """Buttons for the recipes and a list of runs."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        for number, recipe in enumerate(RECIPES):
            st.button(recipe.title, key=f"recipe-{number}", help=recipe.description, on_click=_cook, args=(number,))
        runs = list_runs()[:_OFFERED]
        if runs:
            names = {run.id: f"{run.info.get('name') or run.id} ({run.id[-4:]})" for run in runs}
            st.selectbox(
                "Settings of a run",
                list(names),
                index=None,
                format_func=lambda run_id: names.get(run_id, run_id),
                placeholder="Settings of a run …",
                label_visibility="collapsed",
                width=260,
                key="settings-of",
                on_change=_copy,
            )


def _cook(number: int) -> None:
    recipe = RECIPES[number]
    values = {name: st.session_state.get(f"setting-{name}", default) for name, default in DEFAULTS.items()}
    here = machine()
    fill(recipe.apply(values, Machine(here.device, here.device_memory_gib * GIB)))


def _copy() -> None:
    run_id = st.session_state.get("settings-of")
    if run_id:
        fill(settings_of(load_run(run_id)))
        st.session_state["settings-of"] = None
