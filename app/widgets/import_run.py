"""Import a run from an archive of another lab."""

from __future__ import annotations

import streamlit as st

from app.widgets import actions
from app.widgets.formats import plain
from app.widgets.guard import guard
from engine.archive import import_archive
from engine.errors import LabError

MOST_MB = 400  # through the browser: the server holds the file in memory


def import_run() -> None:
    """A button that opens the dialog."""
    if st.button("Import a run …", icon=":material/upload:", key="import-run"):
        st.session_state["importing"] = True
    if st.session_state.get("importing"):  # also when the page is drawn anew meanwhile, as it is while a run trains
        _dialog()


def _closed() -> None:
    st.session_state.pop("importing", None)


@st.dialog("Import a run", on_dismiss=_closed)
@guard()
def _dialog() -> None:
    st.write(
        "An archive of a run, as the page of a run or `python -m engine.export RUN --to archive FILE` makes it. It may "
        "come from anybody: everything in it is checked before it becomes a run here."
    )
    file = st.file_uploader(
        "Archive", type=["zip"], key="import-file", max_upload_size=MOST_MB, label_visibility="collapsed"
    )
    st.caption(f"Up to {MOST_MB} MB through the browser. A larger one: `python -m engine.runs import FILE`.")
    if file is not None and st.button("Import", type="primary", icon=":material/upload:", key="import-go"):
        try:
            with st.spinner("Checking the archive …"):
                run = import_archive(file)
        except LabError as error:
            st.error(plain(str(error)), icon=":material/block:")
        else:
            _closed()
            actions.open_run(run.id)
