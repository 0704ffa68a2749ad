"""The form of a new run: its settings, what the run will be, what is wrong with it, and the start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app.widgets import actions, formats
from app.widgets.corpus_work import corpora_in_wait, get_ready
from app.widgets.form_fields import ask_all, fill, in_words_of_the_form, is_untouched
from app.widgets.form_outlook import memory, outlook
from app.widgets.form_shortcuts import last_settings, shortcuts
from app.widgets.guard import guard
from app.widgets.machine import machine
from engine import session
from engine.config import SETTINGS, TrainConfig, command, differences, label
from engine.errors import ConfigError, Problem
from engine.plan import Plan, cautions
from engine.start import device_problems, plan_run, read_settings


@st.fragment
@guard()
def config_form() -> None:
    """Ask for the settings of a run, say what it will be and what is wrong with it, and start it."""
    if is_untouched():
        fill(last_settings())
    shortcuts()
    spots: dict[str, Any] = {}
    values = ask_all(spots)
    waiting = corpora_in_wait(values)
    config = plan = None
    try:
        config = read_settings(values)
        problems = device_problems(values) if waiting else []
        plan = None if waiting else plan_run(config)[0]
    except ConfigError as error:
        problems = error.problems
    if problems:
        _show_problems(problems, spots)
    if plan is not None:
        _show_choices(plan, config, spots)
        _show_cautions(cautions(plan, machine().threads), spots)
        outlook(plan, config)
    elif config is not None:
        if waiting:
            get_ready(waiting, key="form")
        memory(config)
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Start", type="primary", icon=":material/play_arrow:", disabled=plan is None, key="start"):
            actions.launch(lambda: session.start(config))
        if plan is not None:
            with st.popover("Copy as command", icon=":material/terminal:"):
                st.code(command(config), language="bash", wrap_lines=True)


def _show_problems(problems: list[Problem], spots: Mapping[str, Any]) -> None:
    """Each problem beside its field; and all fields that have one in a sentence, since some may be out of sight."""
    hidden = []
    for problem in problems:
        message = formats.plain(in_words_of_the_form(problem.message))
        if problem.field in spots:
            spots[problem.field].markdown(f":small[:red[{message}]]")
        else:
            hidden.append(f"  \n{label(problem.field) if problem.field in SETTINGS else problem.field}: {message}")
    names = dict.fromkeys(label(p.field) for p in problems if p.field in spots)
    summary = f"This run cannot start yet{': see ' + ', '.join(names) if names else ''}."
    st.error(summary + "".join(hidden), icon=":material/error:")


def _show_cautions(found: list[Problem], spots: Mapping[str, Any]) -> None:
    """Each beside its field, or below the fields when it is out of sight."""
    for caution in found:
        message = formats.plain(in_words_of_the_form(caution.message))
        if caution.field in spots:
            spots[caution.field].markdown(f":small[:orange[{message}]]")
        else:
            st.warning(f"{label(caution.field)}: {message}", icon=":material/warning:")


def _show_choices(plan: Plan, asked: TrainConfig, spots: Mapping[str, Any]) -> None:
    """Beside each field that said "choose for me", what was chosen."""
    for name, (_, chosen) in differences(asked, plan.config).items():
        if name in spots:
            spots[name].caption(f":small[chosen: {formats.plain(str(chosen))}]")
