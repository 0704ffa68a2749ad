"""Search and filters of the list of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from engine.config import PRESETS
from engine.library import Summary
from engine.run import STATES

DAMAGED = "damaged"  # what the list says instead of a state when a folder is not a whole run
_KEYS = ("runs-search", "runs-states", "runs-presets", "runs-corpora", "runs-tags")


@dataclass(frozen=True)
class Filters:
    """What a run must be to be shown; nothing chosen lets every run pass.

    Attributes:
        words: each must be in its name, id, notes, tags or corpus.
        states, presets, corpora, tags: it must have one of these.
    """

    words: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    corpora: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    def match(self, run: Summary) -> bool:
        """Whether a run is shown."""
        text = "\n".join((run.name, run.id, run.notes, run.corpus, *run.tags)).casefold()
        return (
            all(word in text for word in self.words)
            and (not self.states or shown_state(run) in self.states)
            and (not self.presets or run.config in self.presets)
            and (not self.corpora or run.corpus in self.corpora)
            and (not self.tags or not set(self.tags).isdisjoint(run.tags))
        )


def shown_state(run: Summary) -> str:
    """The state, or that there is none because the folder is not a whole run."""
    return DAMAGED if run.problem else run.state


def run_filters(runs: Sequence[Summary]) -> Filters:
    """The search box and the filters."""
    with st.grid(5, min_column_width=120, gap="small"):
        search = st.text_input(
            "Search",
            type="search",
            key=_KEYS[0],
            live="50ms",
            placeholder="Name, note, tag …",
            help="Shows runs that have every word in their name, id, note, tags or corpus.",
            icon=":material/search:",
            persist_state="session",
        )
        states = _one_of("State", _KEYS[1], [*STATES, DAMAGED])
        presets = _one_of("Preset", _KEYS[2], list(PRESETS))
        corpora = _one_of("Corpus", _KEYS[3], sorted({run.corpus for run in runs if run.corpus}))
        tags = _one_of("Tag", _KEYS[4], all_tags(runs))
    return Filters(tuple((search or "").casefold().split()), *map(tuple, (states, presets, corpora, tags)))


def _one_of(name: str, key: str, options: list[str]) -> list[str]:
    gone = [value for value in st.session_state.get(key) or [] if value not in options]  # of a run deleted since
    return st.multiselect(name, options + gone, key=key, placeholder="any", persist_state="session")


def all_tags(runs: Sequence[Summary]) -> list[str]:
    """Every tag that some run has."""
    return sorted({tag for run in runs for tag in run.tags}, key=str.casefold)


def clear_filters() -> None:
    """For a button's callback: show every run again."""
    for key in _KEYS:
        st.session_state[key] = "" if key == _KEYS[0] else []
