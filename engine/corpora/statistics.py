"""What the tokens of a corpus say about it: how many, which ones, how often, in documents of what length.

`tokenizer.END_OF_TEXT` only separates documents: it is part of no document and of no frequency here. Characters and
bytes are those of the text that the tokens stand for, so that neither the marks between documents nor the quoting of
JSON lines count.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine import tokenizer
from engine.config import VOCABULARY_SIZE
from engine.corpora import kept
from engine.corpora.progress import Progress
from engine.corpora.tokens import TokenizedCorpus
from engine.errors import CorpusError

FORMAT = 1  # of what is kept; another number means: measure anew
MOST_FREQUENT = 50
CURVE_POINTS = 400
BINS = 40
_BLOCK = 1 << 22  # tokens; numpy counts in 64 bits, so a block takes 32 MiB

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class FrequentToken:
    """One of the most frequent tokens: its id, how people see it, how often it occurs, and its share of the text."""

    id: int
    shown: str
    count: int
    share: float


@dataclass(frozen=True)
class Lengths:
    """Lengths of documents in tokens.

    Attributes:
        count: how many documents.
        edges: of the histogram's bins, rising; a bin holds the lengths from its left edge to below its right one.
        documents: how many documents are in each bin; one fewer than the edges.
    """

    count: int
    min: int
    median: float
    mean: float
    max: int
    edges: tuple[int, ...]
    documents: tuple[int, ...]


@dataclass(frozen=True)
class Statistics:
    """A corpus in numbers.

    Attributes:
        tokens: all of them, the separators between documents included: what a run reads.
        separators: how many of them only stand between documents.
        distinct: how many of the vocabulary's 50,257 tokens occur in the text.
        characters, text_bytes: Unicode characters of the text, and their bytes in UTF-8.
        frequent: the most frequent tokens, falling.
        curve: (rank, count) of distinct tokens, the most frequent one first; thinned evenly on a log scale, with both
            ends.
        lengths: of the documents; stretches without any token are no documents.
    """

    tokens: int
    separators: int
    distinct: int
    characters: int
    text_bytes: int
    frequent: tuple[FrequentToken, ...]
    curve: tuple[tuple[int, int], ...]
    lengths: Lengths

    @property
    def documents(self) -> int:
        """How many documents there are; a corpus without separators is one."""
        return self.lengths.count

    @property
    def characters_per_token(self) -> float:
        """Characters that a token of the text stands for, on average."""
        return self.characters / (self.tokens - self.separators)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of UTF-8 that a token of the text stands for, on average."""
        return self.text_bytes / (self.tokens - self.separators)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Statistics:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        lengths = value["lengths"]
        return cls(
            **{name: int(value[name]) for name in ("tokens", "separators", "distinct", "characters", "text_bytes")},
            frequent=tuple(
                FrequentToken(int(t["id"]), str(t["shown"]), int(t["count"]), float(t["share"]))
                for t in value["frequent"]
            ),
            curve=tuple((int(rank), int(count)) for rank, count in value["curve"]),
            lengths=Lengths(
                count=int(lengths["count"]),
                min=int(lengths["min"]),
                median=float(lengths["median"]),
                mean=float(lengths["mean"]),
                max=int(lengths["max"]),
                edges=tuple(map(int, lengths["edges"])),
                documents=tuple(map(int, lengths["documents"])),
            ),
        )


def measure(tokens: NDArray[np.uint16], progress: Progress | None = None) -> Statistics:
    """Read all tokens once, block by block.

    Args:
        tokens: ids, one dimension; may be mapped from disk and larger than memory.
        progress: told of every block; in tokens.

    Raises:
        CorpusError: there is no token of a text, or there are ids that no vocabulary has.
        CancelledError: through `progress`.
    """
    counts, separators = _count(tokens, progress or Progress())
    if counts[VOCABULARY_SIZE:].any():
        raise CorpusError("The tokens of this corpus are damaged: there are unknown ids. Tokenize it anew.")
    counts[tokenizer.END_OF_TEXT] = 0
    total = int(counts.sum())
    if total == 0:
        raise CorpusError("This corpus has no text. Put some into its file.")
    by_rank = np.argsort(-counts, kind="stable")
    falling = counts[by_rank]
    distinct = int(np.count_nonzero(counts))
    characters, text_bytes = _text_size(counts)
    return Statistics(
        tokens=len(tokens),
        separators=len(separators),
        distinct=distinct,
        characters=characters,
        text_bytes=text_bytes,
        frequent=tuple(
            FrequentToken(id, tokenizer.show(id), count, count / total)
            for id, count in zip(by_rank[:MOST_FREQUENT].tolist(), falling[:MOST_FREQUENT].tolist(), strict=True)
            if count
        ),
        curve=_curve(falling[:distinct]),
        lengths=_describe(_lengths(tokens, separators)),
    )


def _count(tokens: NDArray[np.uint16], progress: Progress) -> tuple[Counts, Counts]:
    """How often each id occurs, (65,536,), and the positions of the separators."""
    progress.begin("Counting tokens", len(tokens), unit="tokens")
    counts = np.zeros(1 << 16, dtype=np.int64)
    positions = [np.empty(0, dtype=np.int64)]
    for first in range(0, len(tokens), _BLOCK):
        block = np.asarray(tokens[first : first + _BLOCK])
        counts += np.bincount(block, minlength=len(counts))
        positions.append(np.flatnonzero(block == tokenizer.END_OF_TEXT) + first)
        progress.advance(len(block))
    return counts, np.concatenate(positions)


def _text_size(counts: Counts) -> tuple[int, int]:
    """Characters and bytes of the text. Exact: a character of UTF-8 has one byte that is not of the form 10xxxxxx."""
    characters = text_bytes = 0
    for token in np.flatnonzero(counts).tolist():
        data = tokenizer.encoding().decode_single_token_bytes(token)
        text_bytes += len(data) * int(counts[token])
        characters += sum(byte & 0xC0 != 0x80 for byte in data) * int(counts[token])
    return characters, text_bytes


def _curve(falling: Counts) -> tuple[tuple[int, int], ...]:
    """(rank, count) of at most `CURVE_POINTS` ranks, evenly spread on a log scale, the first and the last included."""
    ranks = np.unique(np.geomspace(1, len(falling), CURVE_POINTS).round().astype(np.int64))
    return tuple(zip(ranks.tolist(), falling[ranks - 1].tolist(), strict=True))


def _lengths(tokens: NDArray[np.uint16], separators: Counts) -> Counts:
    """Tokens of each document. What follows the last separator is one only if it is more than a final line break."""
    lengths = np.diff(separators, prepend=-1, append=len(tokens)) - 1
    tail = np.asarray(tokens[len(tokens) - lengths[-1] :])
    if len(separators) and len(tail) < 100 and not tokenizer.decode(tail.tolist()).strip():
        lengths = lengths[:-1]
    return lengths[lengths > 0]


def _describe(lengths: Counts) -> Lengths:
    shortest, longest = int(lengths.min()), int(lengths.max())
    # Whole numbers, evenly spread on a log scale; where these fall together, bins are one token wide.
    edges = np.unique(np.geomspace(shortest, longest + 1, BINS + 1).round().astype(np.int64))
    documents, _ = np.histogram(lengths, edges)
    return Lengths(
        count=len(lengths),
        min=shortest,
        median=float(np.median(lengths)),
        mean=float(lengths.mean()),
        max=longest,
        edges=tuple(edges.tolist()),
        documents=tuple(documents.tolist()),
    )


def statistics_of(corpus: TokenizedCorpus, progress: Progress | None = None) -> Statistics:
    """A corpus' statistics, measured once and kept beside its tokens.

    Raises:
        CorpusError: see `measure`.
        CancelledError: through `progress`; nothing is kept.
    """
    known = cached_statistics(corpus.source_sha256)
    if known is not None and known.tokens == len(corpus.tokens):  # the same file may be read as marked or plain text
        return known
    statistics = measure(corpus.tokens, progress)
    if name := _name(corpus.source_sha256):
        kept.write(name, FORMAT, statistics.to_json())
    return statistics


def cached_statistics(sha256: str) -> Statistics | None:
    """The statistics of the text with this hash if they were measured before; never computes."""
    name = _name(sha256)
    return kept.read(name, FORMAT, Statistics.from_json) if name else None


def _name(sha256: str) -> str | None:
    part = kept.short(sha256)
    return part and f"statistics-{part}"
