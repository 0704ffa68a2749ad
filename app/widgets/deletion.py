"""Deleting runs, undoing it, and the trash."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import TypeVar

import pandas as pd
import streamlit as st

from app.widgets import formats
from app.widgets.choice import choose
from app.widgets.formats import plain
from engine.errors import LabError
from engine.library import Summary
from engine.run import is_id
from engine.trash import Trashed, empty_trash, list_trash, restore_run, trash_run

_JUST = "just-deleted"  # entries of the trash, until they are restored or something else is deleted
_REFUSED = "not-done"  # sentences, for the next drawing of the page


def delete_button(chosen: Sequence[Summary], listed: Container[str]) -> None:
    """Move chosen runs to the trash, as far as one sees them: those that a filter hides stay, and stay chosen.

    Args:
        chosen: all of them.
        listed: ids of the runs in the table.
    """
    seen = [run for run in chosen if run.id in listed]
    if chosen and not seen:
        why = "None of the chosen runs is in this list. Only what is listed is deleted."
    elif any(run.is_active for run in seen):
        why = "A run that is being trained cannot be deleted. Stop it first."
    elif not all(is_id(run.id) for run in seen):
        why = "A folder whose name is not the id of a run is not the lab's to delete."
    else:
        why = ""
    label = f"Delete {len(seen):,} of {len(chosen):,}" if 0 < len(seen) < len(chosen) else "Delete"
    help = why or ("Those that are in this list; the others stay." if len(seen) < len(chosen) else None)
    if st.button(label, icon=":material/delete:", key="delete", disabled=not seen or bool(why), help=help):
        deleted = _each([run.id for run in seen], trash_run)
        st.session_state[_JUST] = deleted
        choose([run.id for run in chosen if run.id not in {trashed.run_id for trashed in deleted}])
        st.rerun()


Result = TypeVar("Result")


def _each(names: Sequence[str], act: Callable[[str], Result]) -> list[Result]:
    """Do it with all and return what comes back; what is refused is told by the next `deletion_notice`."""
    done, refused = [], []
    for name in names:
        try:
            done.append(act(name))
        except LabError as error:
            refused.append(str(error))
    st.session_state[_REFUSED] = refused
    return done


def deletion_notice() -> None:
    """What was deleted last, with the way back; and what could not be done."""
    for sentence in st.session_state.pop(_REFUSED, []):
        st.error(plain(sentence))
    here = {trashed.entry for trashed in list_trash()}
    deleted = [trashed for trashed in st.session_state.get(_JUST, []) if trashed.entry in here]
    if not deleted:
        return
    what = f"“{plain(deleted[0].name)}” is" if len(deleted) == 1 else f"{len(deleted)} runs are"
    with st.container(horizontal=True, vertical_alignment="center", border=True):
        st.markdown(f":material/delete: {what} in the trash.", width="content")
        if st.button("Undo", icon=":material/undo:", key="undo"):
            _restore(deleted)


def _restore(trashed: Sequence[Trashed]) -> None:
    """Take them out of the trash, and choose them."""
    back = _each([entry.entry for entry in trashed], restore_run)
    if back:
        choose([run.id for run in back])
    st.rerun()


def trash() -> None:
    """What is in the trash, when there is something: restore it, or delete it for good."""
    trashed = list_trash()
    if not trashed:
        return
    opened = st.expander("Trash", icon=":material/delete:", key="trash-expander", on_change="rerun")
    if opened.open:
        with opened:
            _contents(trashed)


def _contents(trashed: list[Trashed]) -> None:
    rows = [
        {"name": entry.name, "deleted": entry.deleted.astimezone().replace(tzinfo=None), "id": entry.run_id}
        for entry in trashed
    ]
    event = st.dataframe(
        pd.DataFrame(rows),
        key=f"trash-{hash(tuple(trashed))}",
        hide_index=True,
        on_select="rerun",
        selection_mode="multi-row",
        alt="Trash",
        column_config={"deleted": st.column_config.DatetimeColumn(format="DD MMM YYYY, HH:mm")},
    )
    chosen = [trashed[number] for number in event.selection.rows if number < len(trashed)]
    with st.container(horizontal=True):
        if st.button("Restore", icon=":material/restore_from_trash:", key="restore", disabled=not chosen):
            _restore(chosen)
        emptying = st.popover("Empty the trash", icon=":material/delete_forever:", key="empty", on_change="rerun")
        if emptying.open:
            with emptying:
                _confirm_emptying(trashed)


def _confirm_emptying(trashed: list[Trashed]) -> None:
    what = "one run" if len(trashed) == 1 else f"{len(trashed):,} runs"
    size = formats.size(sum(entry.bytes for entry in trashed))
    st.write(f"This deletes {what} for good, with metrics, samples and checkpoints, and frees {size}.")
    if st.button("Delete for good", type="primary", icon=":material/delete_forever:", key="empty-now"):
        try:
            empty_trash([entry.entry for entry in trashed])
        except LabError as error:
            st.error(plain(str(error)))
        else:
            st.rerun()
