"""Deleting a corpus, after a question."""

from __future__ import annotations

import streamlit as st

from app.widgets import formats
from app.widgets.formats import plain
from app.widgets.guard import guard
from engine.corpora import Corpus
from engine.corpus_deletion import deletable_bytes, delete_corpus
from engine.errors import LabError


def deletion(corpus: Corpus) -> None:
    """The button, when there is something to delete."""
    if deletable_bytes(corpus) and st.button("Delete …", icon=":material/delete:", key=f"delete-{corpus.name}"):
        _confirm(corpus)


@st.dialog("Delete a corpus")
@guard()
def _confirm(corpus: Corpus) -> None:
    size = formats.size(deletable_bytes(corpus))
    back = "It can be downloaded again." if corpus.origin else "It is your own text: the lab cannot bring it back."
    st.write(f"This deletes the text and the tokens of **{plain(corpus.title)}** for good, and frees {size}. {back}")
    st.write(
        "Runs on it keep their metrics, samples and checkpoints; to go on training they need the text as it is now."
    )
    with st.container(horizontal=True):
        if st.button("Delete", type="primary", icon=":material/delete:", key="confirm-deletion"):
            try:
                delete_corpus(corpus.name)
            except LabError as error:
                st.error(plain(str(error)))
            else:
                if corpus.origin is None:
                    st.query_params.pop("corpus", None)  # it is in no list any more
                st.rerun()
        if st.button("Cancel", key="cancel-deletion"):
            st.rerun()
