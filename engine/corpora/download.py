"""Getting a corpus: its file appears whole and verified, or not at all, and what was fetched is never lost.

All that is under way lives in `.sources` in the corpora folder and is continued by the next attempt.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from engine.corpora import pg19
from engine.corpora.fetch import alone, fetch, readable, settle, sources_dir
from engine.corpora.hub import fetch_hub_file, write_lines
from engine.corpora.progress import Progress
from engine.corpora.registry import Corpus
from engine.corpora.sources import Books, HubFile, Normalized, WebFile, WikipediaIntros
from engine.corpora.transfer import Digest, Remote
from engine.errors import CorpusError, storage_sentence
from engine.files import require_space

_TEXT_OF_PARQUET = 3  # at most so many times its size is the text of a compressed Parquet file, an estimate


def download(corpus: Corpus, progress: Progress) -> None:
    """Make the file of a corpus exist, verified. Does nothing when there is one, wherever it came from.

    Args:
        corpus: from the registry.
        progress: told how far it is; asked, a few times a second, whether to stop.

    Raises:
        CorpusError: it could not be had; the message says why, and what is kept for the next attempt.
        CancelledError: somebody asked to stop; the same is kept.
    """
    if corpus.is_here:
        return
    if isinstance(corpus.origin, Normalized | WikipediaIntros):
        from engine.corpora.prepare import prepare  # which downloads what it prepares

        return prepare(corpus, progress)
    try:
        with alone(corpus.name, progress):
            if not corpus.is_here:
                _download(corpus, progress)
    except OSError as error:
        kept = kept_bytes(corpus)
        words = f" {readable(kept)} are kept and will not be fetched again." if kept else ""
        path = Path(error.filename) if isinstance(error.filename, str) else corpus.path
        raise CorpusError(f"Corpus {corpus.name}: {storage_sentence(error, path)}{words}") from error


def kept_bytes(corpus: Corpus) -> int:
    """Bytes of an interrupted download that the next attempt will not fetch again; 0 once the corpus is here."""
    with contextlib.suppress(OSError):
        if corpus.is_here:
            return 0
        if isinstance(corpus.origin, Books):
            return pg19.kept_bytes(corpus.origin)
        if isinstance(corpus.origin, HubFile | WebFile):
            return sum(path.stat().st_size for path in {_partial(corpus), _fetched(corpus)} if path.exists())
    return 0


def _download(corpus: Corpus, progress: Progress) -> None:
    match corpus.origin:
        case WebFile() as file:
            _require_space(corpus, file.size - kept_bytes(corpus))
            url = os.environ.get(file.variable) or file.url
            remote = Remote(corpus.name, url, file.variable, file.size, Digest("SHA-256", file.sha256))
            fetch(remote, corpus.path, _partial(corpus), progress)
        case HubFile() as file:
            text = file.size * _TEXT_OF_PARQUET if file.column else 0
            _require_space(corpus, file.size - kept_bytes(corpus) + text)
            fetched = _fetched(corpus)
            fetch_hub_file(corpus.name, file, fetched, _partial(corpus), progress)
            if file.column:
                _write(corpus, lambda part: write_lines(corpus.name, fetched, file.column, part, progress))
                fetched.unlink()
        case Books() as books:
            lines = pg19.fetch_list(corpus.name, books, progress)
            share = len(pg19.missing(lines)) / len(lines)
            _require_space(corpus, int(corpus.size * (1 + share)))
            pg19.fetch_books(corpus.name, lines, progress)
            _write(corpus, lambda part: pg19.assemble(corpus.name, books, lines, part, progress))
        case _:
            raise CorpusError(f"Corpus {corpus.name}: {corpus.path} is missing, and it cannot be downloaded.")


def _fetched(corpus: Corpus) -> Path:
    """What is fetched from the source: the corpus itself, or the table that holds it."""
    is_table = isinstance(corpus.origin, HubFile) and corpus.origin.column
    return sources_dir() / f"{corpus.name}.parquet" if is_table else corpus.path


def _partial(corpus: Corpus) -> Path:
    return sources_dir() / f"{_fetched(corpus).name}.part"


def _write(corpus: Corpus, write: Callable[[Path], None]) -> None:
    """Put the file of a corpus in place once `write` has filled it. What was left of it is of no use."""
    part = sources_dir() / f"{corpus.path.name}.writing"
    try:
        write(part)
        settle(part, corpus.path)
    finally:
        part.unlink(missing_ok=True)


def _require_space(corpus: Corpus, size: int) -> None:
    require_space(sources_dir(), size, f"corpus {corpus.name} and what it is made from")
