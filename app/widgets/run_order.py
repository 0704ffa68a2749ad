"""In which order the list shows runs: kept through searches, and what has no value comes last.

A click on a column's head sorts too, in the browser, until the list changes; there, what has no value counts as least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import streamlit as st

from app.widgets import address
from engine.library import Summary

NEWEST = "newest first"

# What one asks for -> the value that is looked at, None where there is none, and whether the largest comes first.
_ORDERS: dict[str, tuple[Callable[[Summary], Any], bool]] = {
    "best validation loss": (lambda run: run.best_val_loss, False),
    "validation loss": (lambda run: run.val_loss, False),
    "training loss": (lambda run: run.train_loss, False),
    "tokens/s": (lambda run: run.tokens_per_s, True),
    "training time": (lambda run: run.elapsed_s, True),
    "tokens": (lambda run: run.tokens, True),
    "steps": (lambda run: run.step, True),
    "oldest first": (lambda run: run.created or None, False),
    "name": (lambda run: run.name.casefold(), False),
    "state": (lambda run: None if run.problem else run.state, False),
    "preset": (lambda run: run.config or None, False),
    "corpus": (lambda run: run.corpus or None, False),
}
ORDERS = [NEWEST, *_ORDERS]


def run_order() -> str:
    """Ask for one of `ORDERS`."""
    order = st.selectbox(
        "Sort by",
        ORDERS,
        key=address.keep("runs-order", NEWEST, ORDERS),
        width=240,
        format_func=lambda order: (
            f"Sorted by {order}" if order in _ORDERS and "first" not in order else order.capitalize()
        ),
        label_visibility="collapsed",
        persist_state="session",
    )
    address.tell()
    return order


def in_order(runs: Iterable[Summary], order: str) -> list[Summary]:
    """The runs, which come newest first, in one of `ORDERS`; starred ones lead when no column is asked for."""
    runs = list(runs)
    if order not in _ORDERS:
        return sorted(runs, key=lambda run: not run.starred)
    value, largest_first = _ORDERS[order]
    known = [run for run in runs if value(run) is not None]
    return sorted(known, key=value, reverse=largest_first) + [run for run in runs if value(run) is None]
