"""Which runs are chosen: told by the address, so that a reload or a shared link shows the same."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote, unquote

import streamlit as st

from app.widgets.formats import plain
from engine.library import Summary

PARAMETER = "runs"
_LAST = "runs-chosen"  # what this session chose last, for when the address tells nothing
_TOLD = 5  # unknown ids that are named


def chosen_ids(summaries: Sequence[Summary]) -> list[str]:
    """The runs of the address, else those that were chosen last, else the newest; in the order of the list.

    Ids of runs that are not here are told in one sentence.
    """
    named = st.query_params.get(PARAMETER)
    if named is not None:
        wanted = list(dict.fromkeys(unquote(part) for part in named.split(",") if part))
        _tell_unknown([run_id for run_id in wanted if run_id not in {summary.id for summary in summaries}])
    else:
        wanted = st.session_state.get(_LAST, [s.id for s in summaries if not s.problem][:1])
    chosen = [summary.id for summary in summaries if summary.id in set(wanted)]
    if chosen != st.session_state.get(_LAST):  # by a link: the table must take it over
        st.session_state[_LAST] = chosen
        st.session_state["runs-table"] = table_number() + 1
    return chosen


def _tell_unknown(ids: list[str]) -> None:
    if ids:
        more = f" and {len(ids) - _TOLD} more" if len(ids) > _TOLD else ""
        names = ", ".join(plain(run_id[:80]) for run_id in ids[:_TOLD])
        what = "This run is" if len(ids) == 1 else "These runs are"
        st.warning(f"{what} not here, and left out: {names}{more}.", icon=":material/link_off:")


def choose(ids: Sequence[str], *, in_table: bool = False) -> None:
    """Choose these runs, from the next drawing of the page on; `in_table`: by ticking rows, which are ticked then."""
    st.session_state[_LAST] = list(ids)
    st.query_params[PARAMETER] = ",".join(quote(run_id, safe="") for run_id in ids)
    if not in_table:
        st.session_state["runs-table"] = table_number() + 1


def table_number() -> int:
    """Another number makes another table, in which the chosen runs are ticked anew."""
    return int(st.session_state.get("runs-table", 0))
