"""Runs in a table; ticking rows chooses runs. The browser sorts by a click on a column's head."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import pandas as pd
import streamlit as st

from app.widgets import formats
from app.widgets.choice import table_number
from app.widgets.run_filters import shown_state
from engine.library import Summary

STAR = "★"
MARK = "⚠ "  # before the state of a folder that is not a whole run


def row(run: Summary) -> dict[str, Any]:
    """What the table says of a run."""
    return {
        STAR: STAR if run.starred else "",
        "name": run.name,
        "state": (MARK if run.problem else "") + shown_state(run),
        "preset": run.config or None,
        "corpus": run.corpus or None,
        "steps": run.step,
        "planned": run.total_steps,
        "tokens": run.tokens,
        "training loss": run.train_loss,
        "validation loss": run.val_loss,
        "best validation": run.best_val_loss,
        "tokens/s": run.tokens_per_s,
        "training time": run.elapsed_s,
        "started": _moment(run.created),
        "parent": f"{run.parent} @ {run.parent_step or 0}" if run.parent else None,
        "tags": list(run.tags),
        "id": run.id,
        "problem": run.problem or None,
    }


def _moment(iso: str) -> datetime | None:
    """Local time, without its zone: a column has one zone, and summer time makes two."""
    try:
        return datetime.fromisoformat(iso).astimezone().replace(tzinfo=None)
    except (ValueError, OverflowError):
        return None


def table_of(runs: Sequence[Summary]) -> pd.DataFrame:
    """One row a run, in columns that sort as numbers, spans and dates do."""
    table = pd.DataFrame([row(run) for run in runs])
    for column in _NUMBERS:
        table[column] = pd.to_numeric(table[column], errors="coerce")  # also where none was measured
    table["training time"] = pd.to_timedelta(table["training time"].clip(upper=_LONGEST_S).round(), unit="s")
    table["started"] = pd.to_datetime(table["started"], errors="coerce")
    return table if any(run.problem for run in runs) else table.drop(columns="problem")


_COUNTS = ("steps", "planned", "tokens")
_LOSSES = ("training loss", "validation loss", "best validation")
_NUMBERS = (*_COUNTS, *_LOSSES, "tokens/s", "training time")
_LONGEST_S = 1e9  # thirty years; longer ones are of a damaged file and would not fit


def run_table(runs: Sequence[Summary], chosen: Collection[str]) -> list[str]:
    """Show the runs; returns the ids of those whose rows are ticked."""
    ids = [run.id for run in runs]
    event = st.dataframe(
        table_of(runs),
        # A selection is made of row numbers: another list is another table, to which the chosen runs are carried over.
        key=f"runs-table-{hash((tuple(ids), table_number()))}",
        hide_index=True,
        on_select="rerun",
        selection_mode="multi-row",
        selection_default={"selection": {"rows": [number for number, run_id in enumerate(ids) if run_id in chosen]}},
        placeholder=formats.DASH,
        alt="Runs",
        column_config={
            STAR: st.column_config.TextColumn(width=36, pinned=True, help="Starred runs come first among the newest."),
            "name": st.column_config.TextColumn(width="medium", pinned=True),
            "problem": st.column_config.TextColumn(width="large"),
            **{name: st.column_config.NumberColumn(format="localized") for name in _COUNTS},
            "planned": st.column_config.NumberColumn(format="localized", help="Steps of the whole run."),
            "training loss": st.column_config.NumberColumn(format="%.3f", help="Of the last step, nats per token."),
            "validation loss": st.column_config.NumberColumn(format="%.3f", help="Measured last, nats per token."),
            "best validation": st.column_config.NumberColumn(format="%.3f", help="The lowest loss that was measured."),
            "tokens/s": st.column_config.NumberColumn(
                format="%,.0f", help="At the last step; a comparison tells the median of all."
            ),
            "training time": st.column_config.NumberColumn(format="compact", help="Hours, minutes and seconds."),
            "started": st.column_config.DatetimeColumn(format="DD MMM YYYY, HH:mm"),
            "parent": st.column_config.TextColumn(width="medium", help="The run and step that it was branched from."),
            "id": st.column_config.TextColumn(width="medium"),
        },
    )
    return [ids[number] for number in event.selection.rows if number < len(ids)]
