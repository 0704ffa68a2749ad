"""One corpus opened: what it reads like, its tokens, its counts, and what counting alone can predict."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import streamlit as st

from app.widgets import charts, formats
from app.widgets.formats import plain
from app.widgets.plot import plot
from app.widgets.tokens import tokens as show_tokens
from engine import tokenizer
from engine.config import PRESETS
from engine.corpora import Corpus, TokenizedCorpus, find_corpus, jobs, open_tokens
from engine.corpora.jobs import VAL_FRACTION
from engine.corpora.ladder import Ladder, cached_ladder
from engine.corpora.state import State
from engine.corpora.statistics import Statistics, cached_statistics
from engine.plan import too_small_for, windows_by_preset

SHOWN_TOKENS = 600


def facts(corpus: Corpus, state: State) -> None:
    """What it is, and how large."""
    st.subheader(plain(corpus.title), anchor=False)
    st.write(
        plain(corpus.description)
        + (f" Good for: {plain(corpus.good_for[:1].lower() + corpus.good_for[1:])}" if corpus.good_for else "")
    )
    pairs = {
        "Name": corpus.name,
        "Licence": corpus.licence,
        "Source": corpus.source,
        "Validation": corpus.validation or f"the last {VAL_FRACTION:.0%} of its text, unless a run says otherwise",
    }
    st.caption(" · ".join(f"{key}: {plain(value)}" for key, value in pairs.items() if value))


def opened(corpus: Corpus) -> None:
    """Everything about a tokenized corpus."""
    tokenized = open_tokens(corpus.name)
    statistics = cached_statistics(tokenized.source_sha256)
    official = find_corpus(corpus.validation) if corpus.validation else None
    ladder = _ladder(tokenized, official)
    _counts(tokenized, statistics)
    if statistics is None and not jobs.is_busy(corpus.name):
        jobs.start([corpus.name])  # it was tokenized by a run or a command, which don't measure
        st.rerun()
    parts = {
        "Text and tokens": lambda: _preview(tokenized),
        "Loss ladder": lambda: _show_ladder(corpus, ladder, official),
        "Token counts": lambda: _frequencies(statistics),
        "Steps an epoch": lambda: _epochs(corpus, tokenized),
    }
    for tab, draw in zip(st.tabs(list(parts), on_change="rerun", key="corpus-parts"), parts.values(), strict=True):
        if tab.open:
            with tab:
                draw()


def _ladder(tokenized: TokenizedCorpus, official: Corpus | None) -> Ladder | None:
    if official is None:
        return cached_ladder(tokenized.source_sha256, None, VAL_FRACTION)
    if not official.is_here:
        return None
    return cached_ladder(tokenized.source_sha256, open_tokens(official.name).source_sha256, VAL_FRACTION)


def _counts(tokenized: TokenizedCorpus, statistics: Statistics | None) -> None:
    count = len(tokenized.tokens)
    with st.grid("auto", min_column_width=130, gap="small"):
        st.metric("Tokens", formats.count(count), help="Of GPT-2's byte pairs; what a run reads.")
        st.metric("Characters", formats.count(tokenized.characters))
        st.metric("Documents", formats.count(tokenized.documents))
        st.metric("File", formats.size(tokenized.source_bytes))
        if statistics is not None:
            share = statistics.distinct / tokenizer.encoding().n_vocab
            st.metric(
                "Distinct tokens",
                formats.count(statistics.distinct),
                help=f"{share:.1%} of the vocabulary's 50,257. What never occurs here, a model cannot learn here.",
            )
            st.metric("Characters a token", f"{statistics.characters_per_token:.2f}")
            st.metric(
                "Bytes a token",
                f"{statistics.bytes_per_token:.2f}",
                help="Of UTF-8. A loss in nats per token, divided by this and by ln 2, is bits per byte.",
            )


def _preview(tokenized: TokenizedCorpus) -> None:
    """A stretch of the text and the same stretch as tokens, from any place."""
    count = len(tokenized.tokens)
    place = st.slider("Place in the text", 0.0, 100.0, 0.0, 0.1, format="%.1f%%", key=f"place-{tokenized.name}")
    first = min(int(count * place / 100), max(0, count - SHOWN_TOKENS))
    ids = tokenized.tokens[first : first + SHOWN_TOKENS].tolist()
    as_tokens = st.segmented_control(
        "Show as", ["Tokens", "Text"], default="Tokens", required=True, key="preview-as", label_visibility="collapsed"
    )
    if as_tokens == "Tokens":
        show_tokens(ids, key="preview-tokens")
        st.caption(
            f"Tokens {first:,} to {first + len(ids) - 1:,} of {count:,}. Point at one to see its id. A blank belongs "
            "to the word behind it; rare words fall into several tokens."
        )
    else:
        st.code(tokenizer.decode(ids), language=None, wrap_lines=True, height=360)
        st.caption(f"The text of tokens {first:,} to {first + len(ids) - 1:,} of {count:,}.")


def _show_ladder(corpus: Corpus, ladder: Ladder | None, official: Corpus | None) -> None:
    st.write(
        "Which validation loss do simple ways of guessing reach? A network that stays above a rung has learned less "
        "than that rung's counting; the rungs are drawn in the loss charts of runs on this corpus."
    )
    if ladder is None:
        if official is not None and not official.is_here:
            st.info(f"It is measured on the official validation text, {plain(official.name)}, which is not here yet.")
        elif jobs.is_busy(corpus.name):
            st.caption("Being measured …")
        elif st.button("Measure", icon=":material/stairs:", key="measure-ladder"):
            jobs.start([corpus.name])
            st.rerun()
        else:
            st.caption("Not measured yet, or the text is too short to keep a part of it for validation.")
        return
    plot(json.dumps(charts.ladder_figure(ladder)), key="plot-ladder", height=260, title="Validation loss by counting")
    for rung in ladder.rungs:
        st.markdown(f"**{plain(rung.name.capitalize())}**, {rung.loss:.3f} nats per token. {plain(rung.explanation)}")
    st.caption(plain(ladder.explanation))


def _frequencies(statistics: Statistics | None) -> None:
    if statistics is None:
        st.caption("Being counted …")
        return
    left, right = st.columns([2, 3], gap="large")
    with left:
        table = pd.DataFrame([vars(token) for token in statistics.frequent])
        st.dataframe(
            table.rename(columns={"shown": "token"})[["token", "id", "count", "share"]],
            hide_index=True,
            height=420,
            column_config={
                "count": st.column_config.NumberColumn(format="localized"),
                "share": st.column_config.NumberColumn(format="percent"),
            },
        )
        st.caption("The most frequent tokens. ␣ is a blank, ⏎ a line break.")
    with right:
        plot(
            json.dumps(charts.rank_frequency_figure(statistics)),
            key="plot-ranks",
            height=300,
            title="Rank and frequency",
            caption="Near a straight line, as in most texts (Zipf's law): few tokens make up most of the text, and "
            "most of the vocabulary is seldom seen.",
        )
        if statistics.documents > 1:
            lengths = statistics.lengths
            plot(
                json.dumps(charts.document_lengths_figure(statistics)),
                key="plot-lengths",
                height=240,
                title="Lengths of documents",
                caption=f"{lengths.count:,} documents of {lengths.min:,} to {lengths.max:,} tokens, half of them below "
                f"{lengths.median:,.0f}. A window longer than that holds several, with an end-of-text token between.",
            )


def _epochs(corpus: Corpus, tokenized: TokenizedCorpus) -> None:
    """What an epoch is for each preset at a batch size one chooses."""
    whole = bool(corpus.validation)
    batch = st.number_input("Batch size, in sequences", 1, 4096, 4, width=220, key="epoch-batch")
    windows = windows_by_preset(len(tokenized.tokens), whole=whole)
    rows = [
        {
            "preset": name,
            "context length": preset.context_length,
            "windows": windows[name],
            "tokens a step": batch * preset.context_length,
            "steps an epoch": float(np.round(windows[name] / batch, 2)) if windows[name] >= batch else None,
        }
        for name, preset in PRESETS.items()
    ]
    config = {
        column: st.column_config.NumberColumn(format="localized")
        for column in ("context length", "windows", "tokens a step", "steps an epoch")
    }
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config=config, placeholder="too small a text")
    part = "all of the text, since validation has its own" if whole else f"the first {1 - VAL_FRACTION:.0%} of the text"
    st.caption(f"Each preset at its own context length, on {part}.")
    small = too_small_for(len(tokenized.tokens), whole=whole)
    if small and batch == 4:
        st.caption(f":material/warning: {plain(small)}")


def untokenized(corpus: Corpus) -> None:
    """The beginning of a text of which no tokens are known yet."""
    with corpus.path.open("rb") as file:
        head = file.read(3000).decode("utf-8", "replace")
    st.code(head, language=None, wrap_lines=True, height=300)
    st.caption("The beginning of the file.")
