"""All runs in a table; choosing rows chooses runs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pandas as pd
import streamlit as st

from app.widgets import formats
from engine.run import Run


def row(run: Run) -> dict[str, Any]:
    """What the list says of a run, from its run.json alone."""
    info = run.info
    config, progress = _dict(info.get("config")), _dict(info.get("progress"))
    return {
        "id": run.id,
        "state": run.state_of(info),
        "name": str(info.get("name") or run.id),
        "preset": config.get("config"),
        "corpus": config.get("corpus"),
        "steps": progress.get("step"),
        "planned": pd.to_numeric(info.get("total_steps"), errors="coerce"),
        "tokens": progress.get("tokens"),
        "training loss": progress.get("train_loss"),
        "validation loss": progress.get("val_loss"),
        "tokens/s": progress.get("tokens_per_s"),
        "training time": formats.duration(progress.get("elapsed_s")),
        "started": _moment(info.get("created")),
    }


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _moment(iso: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(iso).astimezone()
    except (TypeError, ValueError):
        return None


def run_table(runs: list[Run]) -> list[Run]:
    """Show the runs and return the chosen ones, the newest first."""
    table = pd.DataFrame([row(run) for run in runs])
    ids = [run.id for run in runs]
    before = st.session_state.get("runs-chosen", ids[:1])
    event = st.dataframe(
        table,
        # A selection is made of row numbers: another list is another table, to which the chosen runs are carried over.
        key=f"runs-table-{hash(tuple(ids))}",
        hide_index=True,
        on_select="rerun",
        selection_mode="multi-row",
        selection_default={"selection": {"rows": [ids.index(run_id) for run_id in before if run_id in ids]}},
        placeholder=formats.DASH,
        column_order=[column for column in table.columns if column != "id"],
        column_config={
            "name": st.column_config.TextColumn(width="medium", pinned=True),
            "steps": st.column_config.NumberColumn(format="localized"),
            "planned": st.column_config.NumberColumn(format="localized", help="Steps of the whole run."),
            "tokens": st.column_config.NumberColumn(format="localized"),
            "training loss": st.column_config.NumberColumn(format="%.3f", help="Of the last step, nats per token."),
            "validation loss": st.column_config.NumberColumn(format="%.3f", help="Measured last, nats per token."),
            "tokens/s": st.column_config.NumberColumn(format="%,.0f"),
            "started": st.column_config.DatetimeColumn(format="DD MMM YYYY, HH:mm"),
        },
    )
    chosen = [runs[i] for i in sorted(event.selection.rows) if i < len(runs)]
    st.session_state["runs-chosen"] = [run.id for run in chosen]
    return chosen
