"""Buttons with changes of settings that would fit into memory: below the form, and below a run that memory ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import streamlit as st

from app.widgets import formats
from app.widgets.form_fields import fill
from app.widgets.form_shortcuts import settings_of
from app.widgets.formats import plain
from app.widgets.snapshot import Snapshot
from engine.config import SETTINGS, label
from engine.run import Run


def offer(
    changes: Sequence[tuple[Mapping[str, Any], int]], take: Callable[[Mapping[str, Any]], None], *, key: str
) -> bool:
    """A button for each change; returns whether one was pressed.

    Args:
        changes: settings, name -> value, and the bytes they save by the estimate.
        take: called with the settings of the pressed one, before the page is drawn anew.
        key: begins the keys of the buttons.
    """
    if not changes:
        return False
    pressed = False
    with st.container(horizontal=True, gap="small"):
        for number, (settings, saving) in enumerate(changes):
            words = ", ".join(f"{label(name)} {formats.setting(value)}" for name, value in settings.items())
            pressed |= st.button(
                f"{plain(words)} · saves {formats.size(saving)}",
                key=f"{key}-{number}",
                on_click=take,
                args=(dict(settings),),
            )
    return pressed


def after_failure(shot: Snapshot) -> None:
    """For a run that ran out of memory: its settings with one change each, for a new run."""
    noted = shot.info.get("would_fit") if shot.state == "failed" else None
    if isinstance(noted, list):
        changes = [(change["settings"], change["saving"]) for change in noted if _is_change(change)]
        if offer(changes, partial(new_run_like, shot.run), key="run-fit"):
            st.rerun()  # the form is outside of the run's fragment


def _is_change(value: Any) -> bool:
    """Whether it is what the engine writes; a folder may come from elsewhere."""
    if not isinstance(value, dict):
        return False
    settings = value.get("settings")
    return isinstance(settings, dict) and settings.keys() <= SETTINGS.keys() and isinstance(value.get("saving"), int)


def new_run_like(run: Run, changes: Mapping[str, Any]) -> None:
    """Open the form of a new run with what was asked for in this one, and some settings changed."""
    fill(settings_of(run) | changes)
    st.session_state[f"new-run-{run.id}"] = True
    st.session_state["reused"] = run.id  # from the page of the run, go to the form
