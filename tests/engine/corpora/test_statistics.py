"""engine.corpora.statistics: numbers equal to those counted by hand, in blocks, kept for the next time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine import tokenizer
from engine.corpora import open_tokens, statistics
from engine.corpora.progress import CancelledError, Progress
from engine.corpora.statistics import Statistics, cached_statistics, measure, statistics_of
from engine.errors import CorpusError

EOT = tokenizer.END_OF_TEXT
DOCUMENTS = st.lists(st.text(st.sampled_from("ab 's1.\n\té漢🙂"), min_size=1, max_size=50), min_size=1, max_size=8)


def tokens_of(documents: list[str]) -> NDArray[np.uint16]:
    ids: list[int] = []
    for document in documents:
        ids += ([EOT] if ids else []) + tokenizer.encode(document)
    return np.array(ids, dtype=np.uint16)


@given(documents=DOCUMENTS.filter(lambda documents: documents[-1].strip()), block=st.integers(1, 40))
def test_numbers_are_those_counted_by_hand(documents: list[str], block: int) -> None:
    tokens = tokens_of(documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "_BLOCK", block)
        found = measure(tokens)
    text = "".join(documents)
    counts = Counter(tokens.tolist())
    counts.pop(EOT, None)
    assert (found.tokens, found.separators) == (len(tokens), len(documents) - 1)
    assert found.documents == len(documents)
    assert (found.characters, found.text_bytes) == (len(text), len(text.encode()))
    assert found.characters_per_token == pytest.approx(len(text) / counts.total())
    assert found.bytes_per_token == pytest.approx(len(text.encode()) / counts.total())
    assert found.distinct == len(counts)
    expected = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:50]
    assert [(t.id, t.count) for t in found.frequent] == expected
    assert all(t.share == t.count / counts.total() and t.shown == tokenizer.show(t.id) for t in found.frequent)
    assert found.curve == tuple(enumerate(sorted(counts.values(), reverse=True), start=1))  # nothing to thin yet
    lengths = [len(tokenizer.encode(document)) for document in documents]
    assert (found.lengths.count, found.lengths.min, found.lengths.max) == (len(lengths), min(lengths), max(lengths))
    assert found.lengths.median == np.median(lengths) and found.lengths.mean == pytest.approx(np.mean(lengths))


def test_the_verdict() -> None:
    corpus = open_tokens("verdict")
    found = measure(corpus.tokens)
    assert (found.tokens, found.separators, found.documents) == (5145, 0, 1)
    assert (found.characters, found.text_bytes) == (corpus.characters, corpus.source_bytes)
    assert found.frequent[0].shown == ","
    assert found.lengths == statistics.Lengths(1, 5145, 5145.0, 5145.0, 5145, (5145, 5146), (1,))


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    counts = np.arange(3000, 0, -1)  # token i occurs 3000 - i times
    found = measure(np.repeat(np.arange(3000, dtype=np.uint16), counts))
    assert len(found.curve) <= 400
    assert found.curve[0] == (1, 3000) and found.curve[-1] == (3000, 1)
    assert all(count == 3001 - rank for rank, count in found.curve)
    ranks = np.array([rank for rank, _ in found.curve])
    assert (np.diff(np.log(ranks[ranks > 100])) < 0.05).all()  # evenly, on the scale that it is drawn on


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60))
def test_every_document_is_in_one_bin(lengths: list[int]) -> None:
    parts = [np.zeros(length, dtype=np.uint16) for length in lengths]
    tokens = np.concatenate([np.append(part, np.uint16(EOT)) for part in parts])[:-1]
    found = measure(tokens).lengths
    assert sum(found.documents) == found.count == len(lengths)
    assert found.edges[0] == min(lengths) and found.edges[-1] == max(lengths) + 1
    bins = zip(found.edges[:-1], found.edges[1:], found.documents, strict=True)
    for left, right, documents in bins:
        assert left < right and documents == sum(left <= length < right for length in lengths)


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ([5, EOT, 6, 7], [1, 2]),
        ([5, EOT], [1]),
        ([5, EOT, 198], [1]),  # a final line break, as files have it
        ([5, EOT, EOT, 6, 7], [1, 2]),
        ([EOT, 5], [1]),
        ([198, 198], [2]),
    ],
)
def test_separators_make_documents(text: list[int], lengths: list[int]) -> None:
    found = measure(np.array(text, dtype=np.uint16))
    assert (found.documents, found.lengths.mean) == (len(lengths), np.mean(lengths))
    assert found.separators == text.count(EOT)
    assert EOT not in [token.id for token in found.frequent]


@pytest.mark.parametrize("tokens", [[], [EOT, EOT]])
def test_no_text_is_told(tokens: list[int]) -> None:
    with pytest.raises(CorpusError, match="no text"):
        measure(np.array(tokens, dtype=np.uint16))


def test_unknown_ids_are_told() -> None:
    with pytest.raises(CorpusError, match="unknown ids"):
        measure(np.array([1, 50257], dtype=np.uint16))


def test_work_is_told_and_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_BLOCK", 4)
    seen = []
    measure(np.ones(10, dtype=np.uint16), Progress(tell=lambda stage: seen.append((stage.done, stage.total))))
    assert seen == [(0, 10), (4, 10), (8, 10), (10, 10)]
    with pytest.raises(CancelledError):
        measure(np.ones(10, dtype=np.uint16), Progress(cancelled=lambda: len(seen) > 0))


# --------------------------------------------------------------------------------------------- tokens for people


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (262, "␣the"),
        (198, "⏎"),
        (197, "⇥"),
        (201, "␍"),
        (447, "<E2 80>"),  # the first two of the three bytes of a typographic quotation mark
        (564, "␣<E2 80>"),  # the same behind a blank
        (1849, "<C2 A0>"),  # a blank that does not break: a whole character, but not to be seen
        (188, "<00>"),
        (EOT, "<|endoftext|>"),
    ],
)
def test_a_token_is_shown(token: int, shown: str) -> None:
    assert tokenizer.show(token) == shown


def test_every_token_can_be_seen() -> None:
    for token in range(EOT + 1):
        shown = tokenizer.show(token)
        assert shown and shown.isprintable() and not shown.startswith(" ")
        shown.encode()  # no half of anything is left


# ----------------------------------------------------------------------------------------------------- keeping


def test_statistics_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = open_tokens("verdict")
    assert cached_statistics(corpus.source_sha256) is None
    found = statistics_of(corpus)
    monkeypatch.setattr(statistics, "_count", None)  # measuring would fail
    assert statistics_of(corpus) == cached_statistics(corpus.source_sha256) == found


@pytest.mark.parametrize("damage", ["", "[]", '{"format": 1}', "old", "torn", "wrong"])
def test_damaged_and_old_files_are_made_anew(damage: str, corpora_folder: Path) -> None:
    corpus = open_tokens("verdict")
    found = statistics_of(corpus)
    (path,) = (corpora_folder / ".tokens").glob("statistics-*.json")
    text = path.read_text()
    value = json.loads(text)
    damages = {"old": json.dumps(value | {"format": 0}), "torn": text[:200]}
    damages["wrong"] = json.dumps(value | {"curve": [[1]]})
    path.write_text(damages.get(damage, damage))
    assert cached_statistics(corpus.source_sha256) is None
    assert statistics_of(corpus) == found == cached_statistics(corpus.source_sha256)


def test_the_same_file_in_other_tokens_is_measured_anew() -> None:
    corpus = open_tokens("verdict")
    statistics_of(corpus)
    assert statistics_of(replace(corpus, tokens=corpus.tokens[:100])).tokens == 100


def test_a_folder_that_cannot_be_written_costs_only_the_memory(
    add_corpus: Callable[[str, str], Path], corpora_folder: Path
) -> None:
    add_corpus("mine", "Some text.")
    corpus = open_tokens("mine")
    for path in (corpora_folder / ".tokens").iterdir():
        path.unlink()
    (corpora_folder / ".tokens").rmdir()
    (corpora_folder / ".tokens").write_text("in the way")
    assert statistics_of(corpus).tokens == 3
    assert cached_statistics(corpus.source_sha256) is None


@pytest.mark.parametrize("sha256", ["", "../../../etc/passwd", "G" * 64])
def test_what_is_no_hash_names_no_file(sha256: str) -> None:
    assert cached_statistics(sha256) is None


def test_statistics_survive_json() -> None:
    found = measure(tokens_of(["One.", "Two, and three."]))
    assert Statistics.from_json(json.loads(json.dumps(found.to_json()))) == found
