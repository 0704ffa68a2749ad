"""How far a corpus is on its way to training, as the page and the command tell it. Quick: no text is read."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from stat import S_ISREG

from engine.corpora import jobs
from engine.corpora.download import kept_bytes
from engine.corpora.jobs import Job
from engine.corpora.registry import Corpus
from engine.corpora.tokens import cached_facts

QUICK = 4_000_000  # bytes that are tokenized within a second, so that nobody needs to be asked to wait


@dataclass(frozen=True)
class State:
    """What there is of a corpus.

    Attributes:
        word: `available`, `partly downloaded`, `downloaded`, `here` (needs no download) or `tokenized`; while a job
            works on it the first word of what that does, such as `downloading`.
        bytes: size of the file; None when it is not here.
        kept: bytes of an interrupted download that will not be fetched again.
        tokens, documents: None until it is tokenized.
        job: the newest on it; None when there was none.
    """

    word: str
    bytes: int | None
    kept: int
    tokens: int | None
    documents: int | None
    job: Job | None

    @property
    def is_busy(self) -> bool:
        """Whether some process works on it."""
        return self.job is not None and self.job.state == "running"


def state_of(corpus: Corpus) -> State:
    """The state of a corpus now."""
    job = jobs.job_of(corpus.name)
    size = _size(corpus)
    facts = cached_facts(corpus) if size is not None else None
    kept = 0 if size is not None or corpus.origin is None else kept_bytes(corpus)
    if job is not None and job.state == "running":
        word = job.verb
    elif size is not None:
        word = "tokenized" if facts else "here" if corpus.origin is None else "downloaded"
    else:
        word = "partly downloaded" if kept else "available"
    tokens, documents = (facts["tokens"], facts["documents"]) if facts else (None, None)
    return State(word, size, kept, tokens, documents, job)


def is_ready(corpus: Corpus) -> bool:
    """Whether a run on it can start without anybody waiting for a download or for minutes of tokenizing."""
    size = _size(corpus)
    return size is not None and (size <= QUICK or cached_facts(corpus) is not None)


def _size(corpus: Corpus) -> int | None:
    """Bytes of its file, or None; one look, as it may come or go at any time."""
    with contextlib.suppress(OSError):
        stat = corpus.path.stat()
        return stat.st_size if S_ISREG(stat.st_mode) else None
    return None
