"""Corpora: the texts there are, how to get more, and one of them looked into."""

import streamlit as st

from app.widgets import corpus_view, corpus_work
from app.widgets.add_corpus import add_corpus
from app.widgets.corpus_deletion import deletion
from app.widgets.corpus_table import corpus_table
from app.widgets.formats import plain
from app.widgets.guard import guard
from app.widgets.plot import preload
from engine.corpora import Corpus, find_corpus, jobs, list_corpora
from engine.corpora.add import suggest_name
from engine.corpora.known import canonical_name
from engine.corpora.registry import badly_named
from engine.corpora.state import QUICK, state_of
from engine.errors import CorpusError

TOLD = 3  # texts with impossible names that are explained


def chosen() -> Corpus:
    """The corpus that the address names, else the first."""
    name = st.query_params.get("corpus")
    if name:
        try:
            return find_corpus(name)
        except CorpusError as error:
            st.error(plain(str(error)))
    return list_corpora()[0]


def table(opened: Corpus) -> None:
    """All corpora but those of PG-19 that are not here: there are too many of them for a list."""
    shown, states = [], []
    for corpus in list_corpora():
        state = state_of(corpus)
        if corpus.family != "PG-19" or corpus.is_here or state.kept or state.is_busy or corpus.name == opened.name:
            shown.append(corpus)
            states.append(state)
    name = corpus_table(shown, states, opened.name)
    if name != opened.name:
        st.query_params["corpus"] = name
        st.rerun()


def tell_badly_named() -> None:
    """A sentence for the first few texts in the folder that the table cannot show."""
    for path in badly_named()[:TOLD]:
        name = f"{suggest_name(path.name)}{path.suffix}"
        st.caption(
            f":material/info: {plain(path.name)} in the corpora folder is not listed, as letters, digits, hyphens and "
            f"underscores make a corpus's name. Rename it, for example to {plain(name)}."
        )


@st.fragment(run_every=2.0)
@guard()
def follow(before: frozenset[tuple[str, str]]) -> None:
    """Draw the page anew when work begins, goes on to another stage or ends, whoever does it."""
    if working() != before:
        st.rerun()


def working() -> frozenset[tuple[str, str]]:
    """What is being worked on: corpus and verb."""
    return frozenset((job.name, job.verb) for job in jobs.running())


def pg19() -> None:
    """Choose one of the PG-19 corpora by what it is."""
    st.write("28,752 books published before 1919, from Project Gutenberg, in the variants that suit a question.")
    with st.grid(2, min_column_width=230, gap="small"):
        split = st.segmented_control("Split", ["train", "validation", "test"], default="train", required=True)
        books = st.segmented_control("Books", ["100", "all"], default="100", required=True)
        form = st.segmented_control("Form", ["flat text", "documents"], default="documents", required=True)
        lines = st.segmented_control("Lines", ["as printed", "unwrapped"], default="as printed", required=True)
    parts = ["pg19", split, "small" * (books == "100"), "docs" * (form == "documents")]
    name = "_".join(part for part in [*parts, "normalized" * (lines == "unwrapped")] if part)
    if st.button(f"Open {plain(name)}", icon=":material/arrow_forward:", key="open-pg19"):
        st.query_params["corpus"] = canonical_name(name)
        st.rerun()
    st.caption(
        "Documents keep books apart with an end-of-text token. Unwrapped joins the lines of hard-wrapped prose; verse, "
        "lists and headings keep theirs."
    )


def look_into(corpus: Corpus) -> None:
    """The opened corpus."""
    state = state_of(corpus)
    with st.container(border=True):
        corpus_view.facts(corpus, state)
        corpus_work.work(corpus)
        if state.tokens is not None:
            corpus_view.opened(corpus)
        elif corpus.is_here and not state.is_busy:
            if state.bytes <= QUICK and (state.job is None or state.job.state == "done"):
                corpus_work.begin([corpus.name])  # done at once, so there is no need to ask
            corpus_view.untokenized(corpus)
        if not state.is_busy:
            deletion(corpus)


st.title("Corpora", anchor=False)
st.write("Texts that a model can learn from. Choose a row on the left to open one.")
corpus = chosen()
table(corpus)
tell_badly_named()
left, right = st.columns(2, gap="medium")
with left, st.expander("Add your own text", icon=":material/upload_file:"):
    add_corpus()
with right, st.expander("PG-19: books", icon=":material/library_books:"):
    pg19()
look_into(corpus)
preload()
follow(working())
