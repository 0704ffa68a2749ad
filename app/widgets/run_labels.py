"""What a person says about a run: its name, a note, tags; and stars."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app.widgets.formats import plain
from engine.errors import ConfigError
from engine.labels import MAX_NAME, MAX_NOTES, MAX_TAGS, write_labels
from engine.library import Summary
from engine.run import load_run


def label_form(run: Summary, tags: Sequence[str]) -> None:
    """Change name, note and tags of a run.

    Args:
        run: as it is now.
        tags: those that other runs have, to choose from.
    """
    # Named after what the run is called now, so that a change made elsewhere is not written over by an old form.
    key = f"labels-{run.id}-{hash((run.name, run.notes, run.tags))}"
    with st.form(key, border=False):
        name = st.text_input("Name", run.name, max_chars=MAX_NAME, key=f"{key}-name")
        notes = st.text_area("Note", run.notes, max_chars=MAX_NOTES, key=f"{key}-notes")
        chosen = st.multiselect(
            "Tags",
            sorted({*tags, *run.tags}, key=str.casefold),
            default=run.tags,
            key=f"{key}-tags",
            accept_new_options=True,
            max_selections=max(MAX_TAGS, len(run.tags)),
            placeholder="Choose tags, or type new ones",
        )
        if st.form_submit_button("Save", icon=":material/save:"):
            _save(run.id, {"name": name, "notes": notes, "tags": chosen})


def _save(run_id: str, labels: dict[str, object]) -> None:
    try:
        write_labels(load_run(run_id).folder, labels)
    except ConfigError as error:
        titles = {"name": "Name", "notes": "Note", "tags": "Tags"}
        st.error("\n\n".join(f"{titles[p.field]} {plain(p.message)}" for p in error.problems))
    else:
        st.rerun()


def star_button(runs: Sequence[Summary]) -> None:
    """Give the runs a star, or take it away when all of them have one."""
    remove = bool(runs) and all(run.starred for run in runs)
    if st.button("Remove star" if remove else "Star", icon=":material/star:", key="star", disabled=not runs):
        for run in runs:
            write_labels(load_run(run.id).folder, {"starred": not remove})
        st.rerun()
