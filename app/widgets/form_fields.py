"""The fields of the form, made from the declarations of the settings: label, help, choices and bounds are those of
`engine.config`. What they hold can be read and replaced as a whole.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import Field
from typing import Any

import streamlit as st

from engine.config import SETTINGS, TrainConfig, flag, label, to_dict
from engine.corpora import list_corpora

DEFAULTS = to_dict(TrainConfig())


def fill(values: Mapping[str, Any]) -> None:
    """Put settings into the fields; those not named get their defaults. Call it before the fields are drawn."""
    for name, default in DEFAULTS.items():
        value = values.get(name, default)
        whole = type(value) is int and abs(value) < 2**53
        fits = type(value) is type(default) or (isinstance(default, float) and whole)
        st.session_state[f"setting-{name}"] = type(default)(value) if fits else default


def change(values: Mapping[str, Any]) -> None:
    """Put some settings into their fields and leave the others as they are. Call it before the fields are drawn."""
    for name, value in values.items():
        st.session_state[f"setting-{name}"] = value


def is_untouched() -> bool:
    """Whether nothing has been put into the fields yet."""
    return not any(f"setting-{name}" in st.session_state for name in SETTINGS)


def in_words_of_the_form(message: str) -> str:
    """The engine's sentence with labels in place of the command line's flags."""
    for name in SETTINGS:
        message = re.sub(rf"{flag(name)}\b", label(name), message)
    is_a_name = not message.partition(" ")[0].isalpha()  # such as fp16
    return message if is_a_name else message[:1].upper() + message[1:]


def ask_all(spots: dict[str, Any]) -> dict[str, Any]:
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


def _ask(f: Field[Any], key: str = "", value: Any = None) -> Any:
    """One widget: its kind follows from the type of the default and the choices.

    A number is taken out of its bounds too, for the engine to say what is wrong: a field with bounds would show such a
    number in red and keep the one before, which a start would then take.
    """
    meta = f.metadata
    value = f.default if value is None else value
    how = dict(label=label(f.name), help=meta["help"], key=key or f"setting-{f.name}", persist_state="session")
    is_set = how["key"] in st.session_state  # Streamlit wants a value from one side only
    if f.name in ("corpus", "val_corpus"):
        return _ask_corpus(f, how, value, is_set)
    if meta["choices"]:
        return st.selectbox(options=meta["choices"], index=0 if is_set else meta["choices"].index(value), **how)
    if isinstance(f.default, bool):
        return st.toggle(**how, **({} if is_set else {"value": value}))
    if isinstance(f.default, str):
        return st.text_input(**how, **({} if is_set else {"value": value}))
    whole = isinstance(f.default, int)
    kind = int if whole else float
    return st.number_input(
        **({} if is_set else {"value": kind(value)}),
        step=1 if whole else _STEPS.get(f.name, 0.05),
        format="%d" if whole else "%g",
        **how,
    )


_STEPS = {"epochs": 1.0, "learning_rate": 0.0001}


def _ask_corpus(f: Field[Any], how: Mapping[str, Any], value: str, is_set: bool) -> str:
    """The corpora that are here, and those one would download to train on; PG-19's many variants are on their page."""
    corpora = [c for c in list_corpora() if c.is_here or (c.family != "PG-19" and not c.is_held_out)]
    titles = {c.name: c.title if c.is_here else f"{c.title} (to download)" for c in corpora}
    if f.default not in titles:
        titles = {f.default: "As the corpus says"} | titles
    chosen = st.session_state.get(how["key"], value)
    titles.setdefault(chosen, chosen)  # a corpus that is gone has no title
    names = list(titles)
    return st.selectbox(options=names, index=0 if is_set else names.index(value), format_func=titles.get, **how)


def ask_changes(config: TrainConfig, *, key: str) -> dict[str, Any]:
    """Let a person choose settings to change, and their new values; only what differs is returned.

    Args:
        config: what the settings are now.
        key: begins the keys of the fields.
    """
    changeable = [name for name, f in SETTINGS.items() if not f.metadata["architecture"]]
    chosen = st.multiselect("Settings to change", changeable, format_func=label, key=f"{key}-names")
    changes = {}
    with st.grid(3, min_column_width=200, gap="small"):
        for name in chosen:
            value = _ask(SETTINGS[name], key=f"{key}-{name}", value=getattr(config, name))
            if value != getattr(config, name):
                changes[name] = value
    return changes
