"""How a page is looked at, kept in its address, so that a reload or a shared link shows the same.

Streamlit's own `bind="query-params"` writes nothing any more once a script has set a parameter itself, as the choice of
runs does; so a widget's first value is taken from the address here, and what was chosen is written there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

_USED = "address-used"  # keys of the widgets that this drawing of the page has, and their defaults


def begin() -> None:
    """Call it before the page's first widget that is kept."""
    st.session_state[_USED] = {}


def keep(key: str, default: Any, options: Sequence[str] | None = None) -> str:
    """Give a widget its first value: what the address says, if that is possible, else the default.

    Args:
        key: of the widget, which gets no value of its own; and of the parameter.
        default: a word of `options`, True or False, or a number from 0 to 1.
        options: the words of a choice.

    Returns:
        the key.
    """
    if key not in st.session_state or (options is not None and st.session_state[key] not in options):
        told = st.query_params.get(key)
        st.session_state[key] = default if told is None else _read(told, default, options)
    st.session_state[_USED][key] = default
    return key


def _read(told: str, default: Any, options: Sequence[str] | None) -> Any:
    if options is not None:
        return told if told in options else default
    if isinstance(default, bool):
        return {"on": True, "off": False}.get(told, default)
    try:
        value = float(told)
    except ValueError:
        return default
    return value if 0 <= value < 1 else default


def tell() -> None:
    """Write what differs from the defaults into the address; call it after the page's last widget that is kept."""
    for key, default in st.session_state[_USED].items():
        value = st.session_state.get(key, default)
        words = {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
        if value == default:
            if key in st.query_params:
                del st.query_params[key]
        elif st.query_params.get(key) != words:
            st.query_params[key] = words
