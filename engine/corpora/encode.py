"""A corpus file in, arrays of token ids out: in order, on all cores, with a bounded number of pieces in memory."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine import environment, tokenizer
from engine.corpora.chunks import Piece, document_pieces, text_pieces
from engine.corpora.progress import Progress
from engine.corpora.registry import Corpus
from engine.corpora.words import Words
from engine.errors import CorpusError

Ids = NDArray[np.uint16]

_MARK = tokenizer.MARK.encode()
_TASK = 1 << 18  # bytes: small documents are tokenized together until they are this much


@dataclass(frozen=True)
class _Encoded:
    """What became of one task's pieces; `open_end` says whether text follows the last mark."""

    ids: Ids
    characters: int
    blank: bool
    marks: int
    open_end: bool


class Encoder:
    """Tokenizes one file; its counts are complete when `run` is through.

    Threads are enough: numpy and tiktoken let go of the interpreter while they work.

    Attributes:
        source_bytes, source_sha256: of the file as it was read.
        characters: of the text or of all documents' texts.
        documents: how many there are; one for a plain text.
        blank: whether there was nothing but white space.
    """

    def __init__(self, corpus: Corpus, progress: Progress) -> None:
        self.corpus = corpus
        self.progress = progress
        self.source_bytes = 0
        self.characters = 0
        self.documents = 0 if corpus.mode == "documents" else 1
        self.blank = True
        self._hash = hashlib.sha256()

    @property
    def source_sha256(self) -> str:
        """The hash of what was read."""
        return self._hash.hexdigest()

    def run(self) -> Iterator[Ids]:
        """The ids, in order.

        Raises:
            CorpusError: the file is not UTF-8 or not of its format.
            CancelledError: through the progress.
        """
        workers = environment.default_threads()
        waiting: deque[Future[_Encoded]] = deque()
        marks, open_end = 0, False
        with ThreadPoolExecutor(workers, thread_name_prefix="tokenize") as pool:
            try:
                for encoded in self._in_order(pool, waiting, most=2 * workers):
                    self.characters += encoded.characters
                    self.blank &= encoded.blank
                    open_end = encoded.open_end or (open_end and not encoded.marks)
                    marks += encoded.marks
                    self.progress.advance(self.source_bytes - self.progress.stage.done)
                    yield encoded.ids
            finally:
                for future in waiting:
                    future.cancel()
        if self.corpus.mode == "marked text":
            self.documents = marks + open_end

    def _in_order(self, pool: ThreadPoolExecutor, waiting: deque[Future[_Encoded]], most: int) -> Iterator[_Encoded]:
        """Hand out tasks and take their results in the order of the file; at most `most` are under way."""
        for task in self._tasks():
            waiting.append(pool.submit(_encode, task, self.corpus))
            if len(waiting) >= most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _tasks(self) -> Iterator[list[Piece]]:
        read = document_pieces if self.corpus.mode == "documents" else text_pieces
        task: list[Piece] = []
        size = 0
        for piece in read(self.corpus.path, self._seen):
            self.documents += self.corpus.mode == "documents" and (piece.opens or not self.documents)
            task.append(piece)
            size += len(piece.data)
            if size >= _TASK:
                yield task
                task, size = [], 0
        if task:
            yield task

    def _seen(self, block: bytes) -> None:
        self._hash.update(block)
        self.source_bytes += len(block)


_thread = threading.local()  # each worker remembers its own words


def _encode(task: list[Piece], corpus: Corpus) -> _Encoded:
    """Tokenize one task's pieces; runs in a worker thread."""
    characters, blank, marks, open_end = 0, True, 0, False
    data = bytearray()
    places: list[int] = []
    for piece in task:
        try:
            text = piece.data.decode("utf-8")
        except UnicodeDecodeError as error:
            where = piece.offset + error.start
            raise CorpusError(f"{corpus.path} is not UTF-8 text (byte {where:,}). Save it as UTF-8.") from error
        if piece.opens:
            places.append(len(data))
            data += _MARK
        if corpus.mode == "marked text":
            places += [len(data) + m.start() for m in re.finditer(re.escape(_MARK), piece.data)]
            marks = len(places)
            open_end = bool(text.rpartition(tokenizer.MARK)[2].strip()) or (open_end and tokenizer.MARK not in text)
        data += piece.data
        characters += len(text)
        blank = blank and text.isspace()
    if not hasattr(_thread, "words"):
        _thread.words = Words()
    return _Encoded(_thread.words.encode(bytes(data), places), characters, blank, marks, open_end)
