"""Books of PG-19: the list from the hub, the books from their public bucket, several at a time."""

from __future__ import annotations

import json
import os
import queue
import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

import requests

from engine.corpora.fetch import FetchError, fetch, new_session, sources_dir
from engine.corpora.hub import fetch_hub_file
from engine.corpora.known import PG19
from engine.corpora.progress import Progress
from engine.corpora.sources import Books, HubFile
from engine.corpora.transfer import Remote
from engine.errors import CorpusError

VARIABLE = "LAB_PG19_URL"
AT_ONCE = 8  # books
PATIENCE = 16  # books that fail one after the other because nobody answers, before the others are left for later
_LINE = re.compile(r"(?:train|validation|test)/[0-9]+\.txt")


def books_dir() -> Path:
    """The folder of all books that were fetched; the PG-19 corpora share them."""
    return sources_dir() / "pg19"


def listed(books: Books) -> list[str] | None:
    """The books of a corpus, such as `train/123.txt`, or None before their list was fetched."""
    try:
        words = _list_path(books.split).read_text(encoding="utf-8-sig", errors="replace").split()
    except FileNotFoundError:
        return None
    lines = dict.fromkeys(word if "/" in word else f"{books.split}/{word}" for word in words)
    return list(lines)[: books.limit or None]


def kept_bytes(books: Books) -> int:
    """Bytes of the books that are here already, whole or not."""
    wanted = {Path(line).name for line in listed(books) or ()}
    try:
        with os.scandir(books_dir() / books.split) as entries:
            return sum(entry.stat().st_size for entry in entries if entry.name.removesuffix(".part") in wanted)
    except FileNotFoundError:
        return 0


def fetch_list(name: str, books: Books, progress: Progress) -> list[str]:
    """The books of a corpus, in the published order; the list itself is fetched once and kept.

    Raises:
        CorpusError: it could not be had, or is no list of books.
        CancelledError: somebody asked to stop.
        OSError: the disk refuses.
    """
    path = _list_path(books.split)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = HubFile("deepmind/pg19", PG19, f"data/{books.split}_files.txt", size=0)
    fetch_hub_file(name, file, path, path.with_name(f"{path.name}.part"), progress)
    lines = listed(books) or []
    wrong = [line for line in lines if not _LINE.fullmatch(line) or not line.startswith(f"{books.split}/")]
    if lines and not wrong:
        return lines
    path.unlink()  # the next attempt asks for it again, perhaps elsewhere
    problem = f"holds {wrong[0][:80]!r}, which is no book of {books.split}" if wrong else "is empty"
    raise CorpusError(f"Corpus {name}: the list of books {problem}. Try again, or name another hub in HF_ENDPOINT.")


def _list_path(split: str) -> Path:
    return books_dir() / f"{split}_files.txt"


def missing(lines: Sequence[str]) -> list[str]:
    """Those of the books that are not here."""
    return [line for line in lines if not (books_dir() / line).exists()]


def fetch_books(name: str, lines: Sequence[str], progress: Progress) -> None:
    """Make all the books be here, each verified. One that fails does not keep the others from being fetched.

    Args:
        name: of the corpus.
        lines: of the list.
        progress: told the books.

    Raises:
        CorpusError: some could not be had; it names them, and the others are kept.
        CancelledError: somebody asked to stop.
        OSError: the disk refuses.
    """
    wanted = missing(lines)
    progress.begin(f"Downloading {name}", len(lines), unit="books", kept=len(lines) - len(wanted))
    (books_dir() / lines[0]).parent.mkdir(parents=True, exist_ok=True)
    failed: dict[str, FetchError] = {}
    unanswered = 0  # in a row
    stop = Event()
    finished: queue.Queue[Future[str]] = queue.Queue()
    with new_session() as session, ThreadPoolExecutor(AT_ONCE, "books") as pool:
        try:
            for line in wanted:
                pool.submit(_fetch_book, name, line, session, failed, stop).add_done_callback(finished.put)
            for _ in wanted:
                line = _next(finished, progress).result()
                error = failed.get(line)
                if error is None:
                    progress.advance(1)
                unanswered = unanswered + 1 if error and error.unreachable else 0
                if unanswered >= PATIENCE:
                    break
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    if absent := missing(lines):
        raise CorpusError(_sentence(name, len(lines), absent, failed))


def _next(finished: queue.Queue[Future[str]], progress: Progress) -> Future[str]:
    while True:
        progress.check()
        try:
            return finished.get(timeout=0.1)
        except queue.Empty:
            pass


def _fetch_book(name: str, line: str, session: requests.Session, failed: dict[str, FetchError], stop: Event) -> str:
    """Fetch one book, or note why not; returns its line."""
    base = (os.environ.get(VARIABLE) or "https://storage.googleapis.com/deepmind-gutenberg").rstrip("/")
    target = books_dir() / line
    try:
        remote = Remote(f"{name}, book {line},", f"{base}/{line}", VARIABLE)
        fetch(remote, target, target.with_name(f"{target.name}.part"), Progress(cancelled=stop.is_set), session)
    except FetchError as error:
        failed[line] = error
    return line


def _sentence(name: str, total: int, absent: Sequence[str], failed: dict[str, FetchError]) -> str:
    named = [line for line in absent if line in failed]
    rest = len(absent) - len(named[:3])
    kept = total - len(absent)
    others = f"The other {kept:,} are kept; " if kept > 1 else "The other one is kept; " if kept else ""
    first = failed[named[0]] if named else next(iter(failed.values()))
    return (
        f"Corpus {name}: {len(absent):,} of {total:,} books could not be downloaded from {first.host}: "
        f"{', '.join(named[:3])}{f' and {rest:,} more' if rest else ''} ({first.reason}). "
        f"{others}`python -m engine.download_corpora {name}` fetches what is missing."
    )


def assemble(name: str, books: Books, lines: Sequence[str], path: Path, progress: Progress) -> None:
    """Write the books, in the order of the list, as one file.

    As flat text, each book is given a final line end where it has none, and an empty line stands between two books. As
    documents, each is one JSON line `{"id": "123", "text": …}` with the text as it was published.

    Args:
        name: of the corpus.
        books: how; `lines` are the books.
        path: the file to write.
        progress: told the books.

    Raises:
        CorpusError: a book is not UTF-8.
        CancelledError: somebody asked to stop.
        OSError: the disk refuses.
    """
    progress.begin(f"Writing {name}", len(lines), unit="books")
    with path.open("w", encoding="utf-8", newline="") as file:
        for number, line in enumerate(lines):
            text = _read(name, line)
            if books.documents:
                file.write(json.dumps({"id": Path(line).stem, "text": text}, ensure_ascii=False) + "\n")
            else:
                file.write("\n" * (number > 0) + text + "\n" * (not text.endswith("\n")))
            progress.advance(1)


def _read(name: str, line: str) -> str:
    path = books_dir() / line
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"Corpus {name}: book {line} is not UTF-8 text (byte {error.start:,}). "
            f"If its source was mended since, delete {path} and try again."
        ) from error
