"""Corpora: the texts there are, how long they are, and what they read like."""

import pandas as pd
import streamlit as st

from app.widgets import formats
from engine.config import PRESETS, TrainConfig
from engine.corpora import Corpus, list_corpora, open_tokens
from engine.data import count_windows, split
from engine.errors import LabError

PREVIEW = 3000  # characters


def show(corpus: Corpus) -> None:
    """One corpus as a card."""
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.subheader(formats.plain(corpus.title), anchor=False, width="content")
            if corpus.built_in:
                st.badge("built in", color="gray")
        st.write(corpus.description)
        if corpus.good_for:
            st.caption(f"Good for: {corpus.good_for}")
        try:
            with st.spinner(f"Reading {formats.plain(corpus.title)} …"):
                tokenized = open_tokens(corpus.name)
        except LabError as error:
            st.error(formats.plain(str(error)), icon=":material/error:")
            return
        with st.grid("auto", min_column_width=140, gap="small"):
            st.metric("Name", corpus.name, help="What the form and the command line call it.")
            st.metric("Characters", formats.count(tokenized.characters))
            st.metric("Tokens", formats.count(len(tokenized.tokens)), help="Of GPT-2's byte pairs.")
            st.metric("Size", formats.size(tokenized.source_bytes))
        facts = [
            f"Licence: {corpus.licence}" if corpus.licence else "",
            f"Source: {corpus.source}" if corpus.source else "",
        ]
        st.caption(formats.plain(" · ".join(fact for fact in facts if fact)))
        with st.expander("Read it"):
            preview(corpus, tokenized.characters)
        with st.expander("Windows and steps of an epoch"):
            st.dataframe(epochs(len(tokenized.tokens)), hide_index=True)
            st.caption(
                "With the defaults of the form: 90% of the text for training, and the preset's own context length."
            )


def preview(corpus: Corpus, characters: int) -> None:
    """The beginning of the text, as text."""
    with corpus.path.open(encoding="utf-8-sig") as file:
        st.code(file.read(PREVIEW), language=None, wrap_lines=True, height=320)
    if characters > PREVIEW:
        st.caption(f"The first {PREVIEW:,} of {characters:,} characters.")


def epochs(tokens: int) -> pd.DataFrame:
    """What an epoch is for each preset, with default settings."""
    defaults = TrainConfig()
    train = len(split(range(tokens), defaults.val_fraction)[0])
    rows = []
    for name, preset in PRESETS.items():
        windows = count_windows(train, preset.context_length)
        steps = windows / defaults.batch_size
        fits = windows >= defaults.batch_size
        rows.append(
            {
                "preset": name,
                "context length": preset.context_length,
                "windows": windows,
                f"steps at batch size {defaults.batch_size}": f"{steps:,.4g}" if fits else "too small a text",
            }
        )
    return pd.DataFrame(rows)


st.title("Corpora", anchor=False)
st.write(
    "Texts a model can learn from. Put a UTF-8 text file, such as `my_text.txt`, into the corpora folder to add it."
)
for one in list_corpora():
    show(one)
