"""What buttons do: start, resume and steer runs through the engine, and say how it went."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import NoReturn
from urllib.parse import quote

import streamlit as st

from app.widgets import formats
from app.widgets.formats import plain
from engine import session
from engine.errors import LabError, RunBusyError

PRETRAINING = "views/pretraining.py"
RUN = "views/run.py"


def launch(start: Callable[[], str]) -> None:
    """Start or resume a run and go to its live view; when refused, say why, and lead to the run that is going.

    Raises:
        ConfigError: for a form to tell beside its fields.
    """
    try:
        run_id = start()
    except RunBusyError as error:
        st.error(plain(str(error)), icon=":material/block:")
        if error.run_id:
            run_link(error.run_id, "Go to the run that is training")
    else:
        show_run(run_id)


def show_run(run_id: str) -> NoReturn:
    """Go to a run's live view."""
    st.switch_page(PRETRAINING, query_params={"run": run_id})


def run_link(run_id: str, label: str, icon: str = ":material/arrow_forward:") -> None:
    """A link to a run's live view."""
    if (st.context.url or "").endswith("/pretraining"):
        # A page link that leads to the page one is on does not change the address; a plain link does.
        st.html(f'<a class="lab-link" href="?run={quote(run_id)}" target="_self">{escape(label)} →</a>')
    else:
        st.page_link(PRETRAINING, label=formats.plain(label), icon=icon, query_params={"run": run_id})


def open_run(run_id: str) -> NoReturn:
    """Go to the page with everything about a run."""
    st.switch_page(RUN, query_params={"id": run_id})


def run_address(run_id: str) -> str:
    """The address of that page, for plain links."""
    return f"run?id={quote(run_id)}"


def details_link(run_id: str, label: str, icon: str = ":material/arrow_forward:") -> None:
    """A link to that page, from another one."""
    st.page_link(RUN, label=formats.plain(label), icon=icon, query_params={"id": run_id})


def resume(run_id: str) -> None:
    """Continue a run from its newest checkpoint."""
    try:
        launch(lambda: session.resume(run_id))
    except LabError as error:
        st.error(plain(str(error)))


def steer(run_id: str, what: str) -> None:
    """Pause, resume, save or stop a run, whichever process trains it."""
    try:
        session.request(run_id, what)
    except LabError as error:  # it ended between the last tick and the click
        st.toast(plain(str(error)), icon=":material/info:")
