"""Getting a corpus ready: its buttons, and how far the work on it is, whichever process does it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import streamlit as st

from app.widgets import formats
from app.widgets.formats import plain
from app.widgets.guard import guard
from engine.corpora import Corpus, find_corpus, jobs
from engine.corpora.jobs import Job
from engine.corpora.known import expand
from engine.corpora.sources import Normalized, WikipediaIntros
from engine.corpora.state import State, is_ready, state_of
from engine.errors import CorpusError


def work(corpus: Corpus) -> None:
    """Buttons for what can be done, and a bar for what is being done; followed once a second while it is."""
    busy = state_of(corpus).is_busy
    st.fragment(_work, run_every=1.0 if busy else None)(corpus, busy)


@guard()
def _work(corpus: Corpus, was_busy: bool) -> None:
    state = state_of(corpus)
    if state.is_busy != was_busy:
        st.rerun()  # begins or ends the polling, and shows what is new
    if state.is_busy and state.job is not None:
        _show(state.job)
        st.button(
            "Cancel", icon=":material/close:", key=f"cancel-{corpus.name}", on_click=jobs.cancel, args=[corpus.name]
        )
        return
    _outcome(state)
    if not corpus.is_here and corpus.origin is not None:
        _offer_download(corpus, state)
    elif corpus.is_here and state.tokens is None:
        if st.button("Tokenize", icon=":material/token:", type="primary", key=f"tokenize-{corpus.name}"):
            begin([corpus.name])
        st.caption("Training does this by itself when it has to; once it is done, it is kept.")


def _offer_download(corpus: Corpus, state: State) -> None:
    others = [name for name in expand(corpus.name) if name != corpus.name]
    prepared = isinstance(corpus.origin, Normalized | WikipediaIntros)
    verb, command = ("prepare", "prepare_corpora") if prepared else ("download", "download_corpora")
    label = f"Resume {verb.removesuffix('e')}{'ing' if prepared else ''}" if state.kept else verb.capitalize()
    if corpus.size > state.kept:
        label += f" ({formats.size(corpus.size - state.kept)})"
    if st.button(label, icon=":material/download:", type="primary", key=f"download-{corpus.name}"):
        begin([*others, corpus.name])  # the validation text first: the loss ladder is measured on it
    if state.kept:
        st.caption(f"{formats.size(state.kept)} of an earlier attempt are kept and will not be fetched again.")
    if others:
        st.caption(f"Brings its official splits along: {plain(', '.join(others))}.")
    st.caption(f"In a terminal: `python -m engine.{command} {corpus.name}`")


def corpora_in_wait(values: Mapping[str, Any]) -> list[Corpus]:
    """The corpora that a form's values name, or pair with what they name, and that a run would have to wait for."""
    found = []
    for name in (values.get("corpus"), values.get("val_corpus")):
        with suppress(CorpusError):  # told beside its field
            found.append(find_corpus(name) if name else None)
    if found and found[0] and not values.get("val_corpus") and found[0].validation:
        found.append(find_corpus(found[0].validation))
    return [corpus for corpus in found if corpus and not is_ready(corpus)]


@st.fragment(run_every=1.0)
@guard()
def get_ready(corpora: list[Corpus], *, key: str) -> None:
    """Say what a run waits for, and offer to do it.

    Args:
        key: begins the button's key; a page may offer the same corpus twice.
    """
    if all(is_ready(corpus) for corpus in corpora):
        st.rerun()
    for corpus in corpora:
        state = state_of(corpus)
        if state.is_busy and state.job is not None:
            _show(state.job)
        elif state.job is not None and state.job.state == "failed":
            st.error(plain(state.job.error), icon=":material/error:")
    if any(jobs.is_busy(corpus.name) for corpus in corpora):
        return
    missing = [corpus for corpus in corpora if not corpus.is_here]
    names = plain(" and ".join(corpus.title for corpus in corpora))
    if missing:
        size = sum(corpus.size for corpus in missing)
        st.info(f"{names} must be downloaded first{f': about {formats.size(size)}' if size else ''}.")
        label, icon = "Download and prepare", ":material/download:"
    else:
        st.info(f"{names} must be tokenized first. This is done once.")
        label, icon = "Tokenize", ":material/token:"
    if st.button(label, icon=icon, key=f"{key}-get-ready"):
        jobs.start([corpus.name for corpus in reversed(corpora)])  # validation first, for the loss ladder
        st.rerun(scope="fragment")


def begin(names: list[str]) -> None:
    """Start the work in the background and follow it."""
    jobs.start(names)
    st.rerun()


def _outcome(state: State) -> None:
    """How the last job went, when it did not go well."""
    job = state.job
    if job is None or job.state in ("done", "running") or state.tokens is not None:
        return
    if job.state == "failed":
        st.error(plain(job.error), icon=":material/error:")
    elif job.state == "interrupted":
        st.warning(
            f"The process that was {plain(job.verb)} it ended without a word. What it had fetched is kept.",
            icon=":material/power_off:",
        )
    else:
        st.info("Cancelled. What was fetched is kept.", icon=":material/info:")


def _show(job: Job) -> None:
    """A bar: what is done, how fast, how long it will take."""
    share = min(1.0, job.done / job.total) if job.total else 0.0
    st.progress(share, text=plain(describe(job)))


def describe(job: Job) -> str:
    """One line: Downloading TinyStories · 1.2 of 1.8 GiB · 35 MiB/s · about 2 min left."""
    amount = formats.size if job.unit == "bytes" else lambda count: f"{count:,.0f}"
    unit = "" if job.unit == "bytes" else f" {job.unit}"
    parts = [job.title or "Starting"]
    if job.total:
        parts.append(f"{amount(job.done)} of {amount(job.total)}{unit}")
    elif job.done:
        parts.append(f"{amount(job.done)}{unit}")
    if job.speed:
        parts.append(f"{amount(job.speed)}{unit}/s")
    if job.seconds_left is not None:
        parts.append(f"about {formats.duration(job.seconds_left)} left")
    return " · ".join(parts)
