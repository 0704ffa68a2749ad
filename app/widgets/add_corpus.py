"""A form that makes a corpus of a person's own file."""

from __future__ import annotations

import streamlit as st

from app.widgets.formats import plain
from engine.corpora import jobs
from engine.corpora.add import add_text, name_problem, suggest_name
from engine.corpora.registry import SUFFIXES
from engine.errors import LabError
from engine.paths import corpora_dir


def add_corpus() -> None:
    """Ask for a file and a name, add it, and open it."""
    limit = st.get_option("server.maxUploadSize")
    st.write(
        "A `.txt` or `.md` file is one text. A `.jsonl` file holds one document a line, in the field `text`. "
        "UTF-8 only."
    )
    file = st.file_uploader(
        "File", type=[suffix[1:] for suffix in SUFFIXES], key="own-file", label_visibility="collapsed"
    )
    st.caption(
        f"Up to {limit} MB through the browser. A larger file: copy it into `{corpora_dir()}`, where it is found by "
        "its name, or use `python -m engine.download_corpora --add FILE --name NAME`."
    )
    if file is None:
        return
    # A key of the file's own, so that each file suggests its name.
    name = st.text_input("Name", value=suggest_name(file.name), key=f"own-name-{file.file_id}", max_chars=64)
    problem = name_problem(name)
    if problem:
        st.markdown(f":small[:red[{plain(problem)}]]")
    if st.button("Add", type="primary", icon=":material/add:", disabled=bool(problem), key="own-add"):
        try:
            corpus = add_text(file, file.size, file.name, name)
        except LabError as error:
            st.error(plain(str(error)), icon=":material/error:")
            return
        jobs.start([corpus.name])
        st.query_params["corpus"] = corpus.name
        st.toast(f"Added {plain(corpus.name)}.", icon=":material/check:")
        st.rerun()
