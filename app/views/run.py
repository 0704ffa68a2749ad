"""Run: everything about one run, under its own address, `run?id=…`."""

import streamlit as st

from app.widgets import actions, address, run_parts
from app.widgets.formats import plain
from app.widgets.live import run_view
from app.widgets.playground import playground
from app.widgets.run_checkpoints import checkpoints
from app.widgets.run_exports import exports
from app.widgets.run_lineage import lineage
from app.widgets.snapshot import snapshot
from engine.errors import RunError
from engine.run import Run, load_run

PARTS = {"Checkpoints": checkpoints, "Playground": playground, "Lineage": lineage, "Take along": exports}


def chosen_run() -> Run | None:
    """The run that the address names."""
    run_id = st.query_params.get("id")
    if not run_id:
        st.write("No run is chosen. Choose one on the Runs page and open it.")
        return None
    try:
        return load_run(run_id)
    except RunError as error:
        st.error(plain(str(error)))
        return None


st.title("Run", anchor=False)
run = chosen_run()
if run is None:
    st.page_link("views/runs.py", label="All runs", icon=":material/stacked_line_chart:")
else:
    if st.session_state.pop("reused", None):  # "Use these settings": the form is on the page Pretraining
        actions.show_run(run.id)
    names = ["Overview", *PARTS]
    overview, *others = st.tabs(names, on_change="rerun", key=address.keep("part", "Overview", names))
    address.tell()
    if overview.open:
        with overview:
            run_view(run)
    for tab, draw in zip(others, PARTS.values(), strict=True):
        if tab.open:
            with tab:
                shot = snapshot(run)
                run_parts.heading(shot)
                draw(shot)
