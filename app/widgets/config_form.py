"""A form made from the declarations of the settings: label, help, choices and bounds are those of `engine.config`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import Field
from typing import Any

import streamlit as st

from app.widgets import actions, formats
from app.widgets.corpus_work import corpora_in_wait, get_ready
from app.widgets.guard import guard
from engine import session
from engine.config import SETTINGS, TrainConfig, differences, flag, from_dict, label
from engine.corpora import list_corpora
from engine.errors import ConfigError, Problem
from engine.plan import Plan
from engine.start import plan_run


@st.fragment
@guard()
def config_form() -> None:
    """Ask for the settings of a run, say what it will be and what is wrong with it, and start it."""
    spots: dict[str, Any] = {}
    values = _ask_all(spots)
    waiting = corpora_in_wait(values)
    try:
        config = from_dict(values)
        plan = None if waiting else plan_run(config)[0]
    except ConfigError as error:
        _show_problems(error.problems, spots)
        plan = None
    else:
        if plan is None:
            get_ready(waiting)
        else:
            _show_plan(plan, config, spots)
    if st.button("Start", type="primary", icon=":material/play_arrow:", disabled=plan is None, key="start"):
        actions.launch(lambda: session.start(config))


def _ask_all(spots: dict[str, Any]) -> dict[str, Any]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name, f in SETTINGS.items():
        groups[f.metadata["group"]].append(name)
    values = _ask_group(groups.pop("main"), spots)
    more = st.expander("More settings", on_change="rerun", key="more-settings")
    for group, names in groups.items():
        if more.open:
            with more:
                st.markdown(f"**{group}**")
                values |= _ask_group(names, spots)
        else:  # widgets that are not there keep their values, and cost nothing
            values |= {name: st.session_state.get(f"setting-{name}", SETTINGS[name].default) for name in names}
    return values


def _ask_group(names: list[str], spots: dict[str, Any]) -> dict[str, Any]:
    values = {}
    with st.grid(4, min_column_width=200, gap="small"):
        for name in names:
            with st.container(gap="xxsmall"):
                values[name] = _ask(SETTINGS[name])
                spots[name] = st.empty()
    return values


def _ask(f: Field[Any]) -> Any:
    """One widget: its kind follows from the type of the default, the choices and the bounds."""
    meta = f.metadata
    how = dict(label=label(f.name), help=meta["help"], key=f"setting-{f.name}", persist_state="session")
    if f.name in ("corpus", "val_corpus"):
        return _ask_corpus(f, how)
    if meta["choices"]:
        return st.selectbox(options=meta["choices"], index=meta["choices"].index(f.default), **how)
    if isinstance(f.default, bool):
        return st.toggle(value=f.default, **how)
    if isinstance(f.default, str):
        return st.text_input(value=f.default, **how)
    whole = isinstance(f.default, int)
    kind = int if whole else float
    return st.number_input(
        min_value=kind(meta["minimum"]),
        max_value=kind(meta["maximum"]),
        value=f.default,
        step=1 if whole else _STEPS.get(f.name, 0.05),
        format="%d" if whole else "%g",
        **how,
    )


_STEPS = {"epochs": 1.0, "learning_rate": 0.0001}


def _ask_corpus(f: Field[Any], how: Mapping[str, Any]) -> str:
    """The corpora that are here, and those one would download to train on; PG-19's many variants are on their page."""
    corpora = [c for c in list_corpora() if c.is_here or (c.family != "PG-19" and not c.is_held_out)]
    titles = {c.name: c.title if c.is_here else f"{c.title} (to download)" for c in corpora}
    if f.default not in titles:
        titles = {f.default: "As the corpus says"} | titles
    names = list(titles)
    return st.selectbox(options=names, index=names.index(f.default), format_func=titles.get, **how)


def _show_problems(problems: list[Problem], spots: Mapping[str, Any]) -> None:
    """Each problem beside its field; and all fields that have one in a sentence, since some may be out of sight."""
    hidden = []
    for problem in problems:
        message = formats.plain(_in_words_of_the_form(problem.message))
        if problem.field in spots:
            spots[problem.field].markdown(f":small[:red[{message}]]")
        else:
            hidden.append(f"  \n{label(problem.field) if problem.field in SETTINGS else problem.field}: {message}")
    names = dict.fromkeys(label(p.field) for p in problems if p.field in spots)
    summary = f"This run cannot start yet{': see ' + ', '.join(names) if names else ''}."
    st.error(summary + "".join(hidden), icon=":material/error:")


def _in_words_of_the_form(message: str) -> str:
    """The engine's sentence with labels in place of the command line's flags."""
    for name in SETTINGS:
        message = re.sub(rf"{flag(name)}\b", label(name), message)
    is_a_name = not message.partition(" ")[0].isalpha()  # such as fp16
    return message if is_a_name else message[:1].upper() + message[1:]


def _show_plan(plan: Plan, asked: TrainConfig, spots: Mapping[str, Any]) -> None:
    """The run in numbers; and beside each field that said "choose for me" what was chosen."""
    for name, (_, chosen) in differences(asked, plan.config).items():
        if name in spots:
            spots[name].caption(f":small[chosen: {formats.plain(str(chosen))}]")
    config = plan.config
    with st.grid("auto", min_column_width=150, gap="small"):
        st.metric("Parameters", formats.short_count(config.model.parameters))
        st.metric("Steps", formats.count(plan.total_steps))
        st.metric("Tokens", formats.count(plan.tokens))
        st.metric("Steps an epoch", f"{plan.steps_per_epoch:,.4g}")
        st.metric(
            "Effective batch",
            f"{config.tokens_per_step:,} tokens",
            help=f"What one step learns from: {config.sequences_per_step:,} × {config.model.context_length:,} tokens.",
        )
