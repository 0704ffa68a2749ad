"""How a page is looked at, kept in its address, so that a reload or a shared link shows the same.

Streamlit's own `bind="query-params"` writes nothing any more once a script has set a parameter itself, as the choice of
runs does; so a widget's first value is taken from the address here, and what was chosen is written there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote

import streamlit as st

_USED = "address-used"  # widget's key -> its default, of those that `tell` has not seen yet
_DEFAULTS = "address-defaults"  # the same of all, as they were drawn last


def keep(key: str, default: Any, options: Sequence[Any] | None = None) -> str:
    """Give a widget its first value: what the address says, if that is possible, else the default.

    Args:
        key: of the widget, which gets no value of its own; and of the parameter.
        default: one of `options`, a list of them, True or False, a number from 0 to 1, or a text. While nobody has
            chosen anything else, the widget follows a default that changes.
        options: what can be chosen.

    Returns:
        the key.
    """
    state, told = st.session_state, st.query_params.get(key)
    before = state.setdefault(_DEFAULTS, {}).get(key, default)
    if key not in state or not _is_possible(state[key], default, options):
        state[key] = default if told is None else _read(told, default, options)
    elif state[key] == before != default and told is None:
        state[key] = default
    state[_DEFAULTS][key] = state.setdefault(_USED, {})[key] = default
    return key


def _is_possible(value: Any, default: Any, options: Sequence[Any] | None) -> bool:
    return options is None or isinstance(default, list) or value in options


def _read(told: str, default: Any, options: Sequence[Any] | None) -> Any:
    by_words = {_write(option): option for option in options or ()}
    if isinstance(default, list):
        words = dict.fromkeys(map(unquote, told.split(",")))  # each once, as a person would choose it
        return [by_words[word] for word in words if word in by_words]
    if options is not None:
        return by_words.get(told, default)
    if isinstance(default, bool):
        return {"on": True, "off": False}.get(told, default)
    if isinstance(default, str):
        return told
    try:
        value = float(told)
    except ValueError:
        return default
    return value if 0 <= value < 1 else default


def _write(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ",".join(quote(_write(word), safe="") for word in value)
    return str(value)


def tell() -> None:
    """Write what differs from the defaults into the address; call it after the widgets that are kept.

    Those that are not on the page now, as in a tab that is closed, leave theirs there.
    """
    for key, default in st.session_state.pop(_USED, {}).items():
        value = st.session_state.get(key, default)
        if value == default or value is None:
            if key in st.query_params:
                del st.query_params[key]
        elif st.query_params.get(key) != _write(value):
            st.query_params[key] = _write(value)
