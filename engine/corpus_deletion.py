"""Deleting a corpus: its text and its tokens. What runs measured on it, and its loss ladder, stay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from engine.corpora import jobs
from engine.corpora.registry import Corpus, find_corpus
from engine.corpora.tokens import is_tokens_file, tokens_dir
from engine.errors import CorpusError, LabError, storage_sentence
from engine.files import read_json
from engine.paths import corpora_dir
from engine.run import Run, active_runs


def deletable_bytes(corpus: Corpus) -> int:
    """What deleting it would free; 0 when there is nothing to delete, as of a text that comes with the lab."""
    return 0 if corpus.built_in or not corpus.is_here else sum(path.stat().st_size for path in _files(corpus))


def delete_corpus(name: str) -> None:
    """Delete a corpus's text and tokens for good. One that can be downloaded is then as if it never was.

    Raises:
        CorpusError: there is no such corpus, it comes with the lab, a run or a job is using it, or the disk refuses.
    """
    corpus = find_corpus(name)
    if corpus.built_in:
        raise CorpusError(f"Corpus {corpus.name} comes with the lab and cannot be deleted.")
    lock = jobs.claim(corpus.name)
    if lock is None:
        raise CorpusError(f"Corpus {corpus.name} is being worked on. Cancel that first, then delete it.")
    try:
        if user := next((run for run in active_runs() if corpus.name in _texts_of(run)), None):
            raise CorpusError(f"Corpus {corpus.name} is in use by run {user.id}. Stop that first, then delete it.")
        for path in _files(corpus):  # the text first: tokens without it are made again, never used
            path.unlink(missing_ok=True)
        jobs.forget(corpus.name)
    except OSError as error:
        raise CorpusError(storage_sentence(error, Path(error.filename or corpora_dir()))) from error
    finally:
        lock.release()


def _files(corpus: Corpus) -> Iterator[Path]:
    """Those of its files that are there: the text, the manifest of its tokens, and the tokens."""
    manifest = tokens_dir() / f"{corpus.name}.json"
    tokens = str((read_json(manifest) or {}).get("tokens_file"))
    found = [corpus.path, manifest]
    if is_tokens_file(corpus, tokens):
        found.append(tokens_dir() / tokens)
    yield from (path for path in found if path.is_file())


def _texts_of(run: Run) -> set[str]:
    """The names of the corpora that a run reads."""
    try:
        config = run.config
        return {config.corpus, config.val_corpus or find_corpus(config.corpus).validation}
    except LabError:  # its run.json is damaged: it trains all the same, on nobody knows what
        return set()
