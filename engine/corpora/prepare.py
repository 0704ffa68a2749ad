"""Corpora that are made rather than downloaded: Wikipedia's introductions, and the normalized variants of PG-19."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from engine.corpora.fetch import alone
from engine.corpora.passages import KEPT, sift, summary
from engine.corpora.progress import Progress
from engine.corpora.registry import Corpus, find_corpus
from engine.corpora.sources import Normalized, WikipediaIntros
from engine.errors import CorpusError, storage_sentence
from engine.files import remove_parts, require_space, write_atomic
from engine.paths import corpora_dir

_INTRODUCTIONS = 300_000_000  # bytes that all introductions take on their way, at most: raw ones and the corpus
_TOLD = 10  # problems of a file that are told one by one


def prepare(
    corpus: Corpus,
    progress: Progress,
    *,
    from_jsonl: Path | None = None,
    limit: int = 0,
    say: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Make the corpus's file; does nothing when it is there. Its path holds nothing, or all of it.

    Args:
        corpus: one whose origin is `Normalized` or `WikipediaIntros`.
        progress: is told how far it is.
        from_jsonl: passages of one's own for `WikipediaIntros`: lines of {"source", "text"}; no network is used.
        limit: for `WikipediaIntros`: this many articles only; 0 takes all.
        say: is told what was kept and what was not, in words.

    Raises:
        CorpusError: it cannot be made; what was fetched is kept.
        CancelledError: somebody asked to stop; likewise.
    """
    if corpus.path.exists():
        return
    if not isinstance(corpus.origin, Normalized | WikipediaIntros):
        raise CorpusError(f"Corpus {corpus.name} is not made by the lab: there is nothing to prepare.")
    if from_jsonl is not None and not isinstance(corpus.origin, WikipediaIntros):
        raise CorpusError(f"Corpus {corpus.name} is not made of passages, so no file of them can be taken for it.")
    try:
        with alone(corpus.name, progress):
            if corpus.path.exists():
                return
            remove_parts(corpus.path)
            if isinstance(corpus.origin, Normalized):
                _prepare_normalized(corpus, corpus.origin, progress)
            elif from_jsonl is not None:
                _prepare_from_file(corpus, from_jsonl, progress, say)
            else:
                _prepare_introductions(corpus, limit, progress, say)
    except OSError as error:
        path = Path(error.filename) if error.filename else corpus.path
        raise CorpusError(f"Corpus {corpus.name}: {storage_sentence(error, path)}") from error


def _prepare_normalized(corpus: Corpus, origin: Normalized, progress: Progress) -> None:
    from engine.corpora.normalize import normalize_documents, normalize_file

    source = find_corpus(origin.of)
    if not source.is_here:
        from engine.corpora.download import download

        download(source, progress)
    size = source.path.stat().st_size
    require_space(corpora_dir(), size, f"the texts of {corpus.title}")
    progress.begin(f"Unwrapping {source.title}", size)
    normalize = normalize_documents if corpus.mode == "documents" else normalize_file
    write_atomic(corpus.path, lambda temporary: normalize(source.path, temporary, progress))


def _prepare_introductions(corpus: Corpus, limit: int, progress: Progress, say: Callable[[str], None]) -> None:
    from engine.corpora import wikipedia

    require_space(corpora_dir(), _INTRODUCTIONS, f"the texts of {corpus.title}")
    kept = wikipedia.fetch(progress, limit=limit)
    wanted = set(wikipedia.wanted(kept, limit))
    progress.begin("Choosing passages", len(wanted), unit="articles")

    def passages() -> Iterator[tuple[str, str]]:
        for source, text in kept.passages():
            if source in wanted:
                progress.advance(1)
                yield source, text

    _write(corpus, passages(), say)


def _prepare_from_file(corpus: Corpus, path: Path, progress: Progress, say: Callable[[str], None]) -> None:
    size = path.stat().st_size
    require_space(corpora_dir(), size, f"the texts of {corpus.title}")
    progress.begin("Choosing passages", size)
    _write(corpus, _passages_in(path, progress), say)


def _passages_in(path: Path, progress: Progress) -> Iterator[tuple[str, str]]:
    """Source and text of each line of a file.

    Raises:
        CorpusError: at the end of the file, telling all lines that hold no passage.
    """
    problems: list[str] = []
    count = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            progress.advance(len(line))
            if not line.strip():
                continue
            passage, problem = _parse(line)
            if passage:
                yield passage
                continue
            count += 1
            if len(problems) < _TOLD:
                problems.append(f"line {number:,} {problem}")
    if count:
        more = f", and {count - len(problems):,} more" if count > len(problems) else ""
        lines = "1 line that holds" if count == 1 else f"{count:,} lines that hold"
        raise CorpusError(
            f"{path} has {lines} no passage ({', '.join(problems)}{more}). "
            'Write each as {"source": "…", "text": "…"} on a line of its own; nothing was written.'
        )


def _parse(line: bytes) -> tuple[tuple[str, str] | None, str]:
    """The passage in a line, or None and what is wrong with it."""
    try:
        value = json.loads(line)
    except UnicodeDecodeError:
        return None, "is not UTF-8"
    except (ValueError, RecursionError):
        return None, "is not JSON"
    if not isinstance(value, dict):
        return None, "is no JSON object"
    for name in ("source", "text"):
        if not isinstance(value.get(name), str):
            return None, f"has no text under {name!r}"
    return (value["source"], value["text"]), ""


def _write(corpus: Corpus, passages: Iterable[tuple[str, str]], say: Callable[[str], None]) -> None:
    """Sift passages into the corpus's file."""
    counts: Counter[str] = Counter()

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
            for source, text in sift(passages, counts):
                file.write(json.dumps({"source": source, "text": text}, ensure_ascii=False) + "\n")
        if not counts[KEPT]:
            raise CorpusError(f"Corpus {corpus.name} would be empty: {summary(counts)}. Nothing was written.")

    write_atomic(corpus.path, write)
    say(f"{corpus.name}: {summary(counts)}.")
