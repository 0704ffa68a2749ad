"""What a person says about a run: its name, a note, tags; and stars."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from app.widgets.formats import plain
from engine.errors import ConfigError, LabError
from engine.labels import MAX_NAME, MAX_NOTES, MAX_TAGS, write_labels
from engine.library import Summary
from engine.run import load_run


def label_form(run: Summary, tags: Sequence[str]) -> None:
    """Change name, note and tags of a run.

    Args:
        run: as it is now.
        tags: those that other runs have, to choose from.
    """
    # Named after what the run is called now, so that the form shows a change that is made elsewhere.
    key = f"labels-{run.id}-{hash((run.name, run.notes, run.tags))}"
    with st.form(key, border=False):
        st.text_input("Name", run.name, max_chars=MAX_NAME, key=f"{key}-name")
        st.text_area("Note", run.notes, max_chars=MAX_NOTES, key=f"{key}-notes")
        st.multiselect(
            "Tags",
            sorted({*tags, *run.tags}, key=str.casefold),
            default=run.tags,
            key=f"{key}-tags",
            accept_new_options=True,
            max_selections=max(MAX_TAGS, len(run.tags)),
            placeholder="Choose tags, or type new ones",
        )
        st.form_submit_button("Save", icon=":material/save:", on_click=_save, args=(run, key))
    if problem := st.session_state.pop("labels-problem", ""):
        st.error(problem)


def _save(shown: Summary, key: str) -> None:
    """Before the page is drawn anew: only what was changed in the form, as the rest may have been changed elsewhere."""
    before = {"name": shown.name, "notes": shown.notes, "tags": list(shown.tags)}
    typed = {label: st.session_state[f"{key}-{label}"] for label in before}
    try:
        write_labels(load_run(shown.id).folder, {k: v for k, v in typed.items() if v != before[k]})
    except ConfigError as error:
        titles = {"name": "Name", "notes": "Note", "tags": "Tags"}
        st.session_state["labels-problem"] = "\n\n".join(
            f"{titles[p.field]} {plain(p.message)}" for p in error.problems
        )
    except LabError as error:
        st.session_state["labels-problem"] = plain(str(error))


def star_button(runs: Sequence[Summary]) -> None:
    """Give the runs a star, or take it away when all of them have one."""
    remove = bool(runs) and all(run.starred for run in runs)
    if st.button("Remove star" if remove else "Star", icon=":material/star:", key="star", disabled=not runs):
        for run in runs:
            write_labels(load_run(run.id).folder, {"starred": not remove})
        st.rerun()
