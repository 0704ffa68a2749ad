"""No traceback reaches the screen: a `LabError` is its own sentence, anything else is written to the terminal."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st

from app.widgets.formats import plain
from engine.errors import LabError

_log = logging.getLogger("lab")


@contextmanager
def guard() -> Iterator[None]:
    """Around the body of a page, or as a decorator of a fragment, which runs on its own."""
    try:
        yield
    except LabError as error:
        st.error(plain(str(error)))
    except Exception:
        _log.exception("A page failed.")
        st.error(
            "Something went wrong on this page. The terminal that runs the lab says more; running trainings go on."
        )
