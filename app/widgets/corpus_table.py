"""All corpora in a table; choosing a row opens that corpus."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app.widgets import formats
from engine.corpora import Corpus
from engine.corpora.state import State


def row(corpus: Corpus, state: State) -> dict[str, Any]:
    """What the list says of a corpus."""
    expected = f"about {formats.size(corpus.size)}" if corpus.size else None
    return {
        "corpus": corpus.title,
        "name": corpus.name,
        "state": "built in" if corpus.built_in and not state.is_busy else state.word,
        "size": formats.size(state.bytes) if state.bytes is not None else expected,
        "tokens": state.tokens,
        "documents": state.documents,
        "licence": corpus.licence or None,
    }


def corpus_table(corpora: list[Corpus], states: list[State], opened: str) -> str:
    """Show corpora; returns the name of the chosen one, or `opened` when none of these is chosen."""
    names = [corpus.name for corpus in corpora]
    rows = [names.index(opened)] if opened in names else []
    event = st.dataframe(
        pd.DataFrame([row(corpus, state) for corpus, state in zip(corpora, states, strict=True)]),
        # A selection is made of row numbers: other rows, or a corpus opened by a link, make another table.
        key=f"corpora-{hash((tuple(names), opened))}",
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        selection_default={"selection": {"rows": rows}},
        placeholder=formats.DASH,
        height="content",
        column_config={
            "name": st.column_config.TextColumn(help="What the form and the command line call it."),
            "tokens": st.column_config.NumberColumn(format="localized", help="Of GPT-2's byte pairs."),
            "documents": st.column_config.NumberColumn(format="localized"),
        },
    )
    return names[event.selection.rows[0]] if event.selection.rows else opened
