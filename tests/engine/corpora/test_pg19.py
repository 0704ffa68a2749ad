"""Books: several at a time, each verified, none dropped."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path

import pytest

from engine.corpora import known, pg19
from engine.corpora.download import download, kept_bytes
from engine.corpora.progress import CancelledError, Progress, Stage
from engine.corpora.registry import Corpus
from engine.corpora.sources import Books
from engine.errors import CorpusError
from tests.web import Content, Fault, Web, prose

LIST = f"/datasets/deepmind/pg19/resolve/{known.PG19}/data/train_files.txt"
FLAT = Corpus("pg19_mine", "", "", origin=Books("train"), size=1)


def add(web: Web, count: int, size: int = 3_000) -> list[str]:
    """Serve books in an order that is not that of their numbers; returns their paths."""
    numbers = random.Random(count).sample(range(10, 70_000), count)
    return web.add_books("train", {str(number): Content(prose(size + number % 50, number)) for number in numbers})


def fails(corpus: Corpus, *words: str) -> str:
    with pytest.raises(CorpusError) as caught:
        download(corpus, Progress())
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and not corpus.path.exists()
    for word in (f"Corpus {corpus.name}: ", *words):
        assert word in message, message
    return message


def test_flat_text_is_the_books_in_the_order_of_the_list(web: Web) -> None:
    texts = ["One.\n", "Two\r\n\r\nlines", "", "Drei — ü\n\n"]
    web.add_books("train", {str(9 - i): Content(text.encode()) for i, text in enumerate(texts)})
    stages: list[Stage] = []
    download(FLAT, Progress(stages.append))
    assert FLAT.path.read_bytes().decode() == "One.\n\nTwo\r\n\r\nlines\n\n\n\nDrei — ü\n\n"
    books = [stage for stage in stages if stage.unit == "books"]
    assert books[0] == Stage("Downloading pg19_mine", "books", 0, 4, 0)
    assert books[-1] == Stage("Writing pg19_mine", "books", 4, 4, 0)


def test_documents_are_one_line_each(web: Web) -> None:
    texts = ["One.\n", 'Two "quoted"\r\nlines\u2028here', "Drei — ü"]
    web.add_books("train", {str(9 - i): Content(text.encode()) for i, text in enumerate(texts)})
    corpus = Corpus("pg19_docs_mine", "", "", origin=Books("train", 0, documents=True), suffix=".jsonl")
    download(corpus, Progress())
    lines = corpus.path.read_bytes().decode().split("\n")
    assert lines.pop() == "" and "— ü" in lines[2]
    assert [json.loads(line) for line in lines] == [
        {"id": "9", "text": texts[0]}, {"id": "8", "text": texts[1]}, {"id": "7", "text": texts[2]}
    ]  # fmt: skip


def test_a_limit_takes_the_first_of_the_list(web: Web) -> None:
    paths = add(web, 30)
    corpus = Corpus("pg19_few", "", "", origin=Books("train", 7))
    download(corpus, Progress())
    assert {r.path for r in web.requests} - {LIST} == set(paths[:7])
    assert sorted(p.name for p in (pg19.books_dir() / "train").iterdir()) == sorted(Path(p).name for p in paths[:7])


def test_one_book_that_fails_is_named_and_fetched_next_time(web: Web) -> None:
    paths = add(web, 20)
    web.fail(paths[4], then=Fault(status=404))
    line = paths[4].removeprefix("/deepmind-gutenberg/")
    fails(
        FLAT, "1 of 20 books", web.url.removeprefix("http://"), f": {line} (it answered 404 Not Found)", "19 are kept"
    )
    web.heal()
    web.forget()
    stages: list[Stage] = []
    download(FLAT, Progress(stages.append))
    assert [r.path for r in web.requests] == [paths[4]]
    assert stages[0] == Stage("Downloading pg19_mine", "books", 19, 20, 19)


def test_many_that_fail_are_counted(web: Web) -> None:
    paths = add(web, 20)
    for path in paths[::2]:
        web.fail(path, then=Fault(status=500))
    named = ", ".join(path.removeprefix("/deepmind-gutenberg/") for path in paths[:6:2])
    fails(
        FLAT, "10 of 20 books", f"{named} and 7 more (it answered 500 Internal Server Error)", "The other 10 are kept"
    )


def test_all_unreachable_stops_early(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    add(web, 300)
    monkeypatch.setenv("LAB_PG19_URL", "http://127.0.0.1:9/books")
    tried: list[str] = []
    fetch = pg19.fetch

    def counting(remote: pg19.Remote, *rest: object) -> None:
        tried.append(remote.url)
        fetch(remote, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pg19, "fetch", counting)
    fails(FLAT, "300 of 300 books", "127.0.0.1:9", "and 297 more (it cannot be reached). `python -m")
    assert len(tried) < 60


def test_books_come_several_at_a_time(web: Web) -> None:
    paths = add(web, 16)
    for path in paths:
        web.fail(path, Fault(stall_s=0.3))
    began = time.monotonic()
    download(FLAT, Progress())
    assert time.monotonic() - began < 16 * 0.3 / 2


def test_a_cancel_is_felt_long_before_the_server_answers_and_keeps_the_books(web: Web) -> None:
    paths = add(web, 40)
    for path in paths[10:]:
        web.fail(path, Fault(stall_s=20))
    began = time.monotonic()
    with pytest.raises(CancelledError):
        download(FLAT, Progress(cancelled=lambda: time.monotonic() - began > 1))
    assert time.monotonic() - began < 6
    assert kept_bytes(FLAT) > 0
    assert not [t for t in threading.enumerate() if t.name.startswith("books")]
    web.heal()
    web.forget()
    download(FLAT, Progress())
    assert len(web.requests) <= 30 + 2


@pytest.mark.parametrize(
    "line", ["../../etc/passwd", "train/../x.txt", "/train/1.txt", "train/1.txt.exe", "test/1.txt"]
)
def test_a_line_that_is_no_book_never_becomes_a_path(web: Web, line: str) -> None:
    web.add_hub(
        "deepmind/pg19", known.PG19, "data/train_files.txt", Content(f"train/1.txt\n{line}\n".encode()), large=False
    )
    fails(FLAT, f"the list of books holds {line!r}, which is no book of train. Try again, or name another hub")
    assert {r.path for r in web.requests} == {LIST}
    web.add_books("train", {"1": Content(b"A book.")})
    download(FLAT, Progress())  # the list is asked for again
    assert FLAT.path.read_text() == "A book.\n"


@pytest.mark.parametrize(
    "listing", ["train/2.txt\r\n\r\ntrain/1.txt\r\n", "\ufefftrain/2.txt\ntrain/1.txt", "2.txt\n1.txt\n2.txt\n"]
)
def test_lists_in_other_hands(web: Web, listing: str) -> None:
    """Windows line ends, a byte order mark, no last line end, bare names, a book twice."""
    web.add_books("train", {"1": Content(b"One."), "2": Content(b"Two.")})
    web.add_hub("deepmind/pg19", known.PG19, "data/train_files.txt", Content(listing.encode()), large=False)
    download(FLAT, Progress())
    assert FLAT.path.read_text() == "Two.\n\nOne.\n"


def test_an_empty_list(web: Web) -> None:
    web.add_hub("deepmind/pg19", known.PG19, "data/train_files.txt", Content(b"\n"), large=False)
    fails(FLAT, "the list of books is empty.")


def test_a_book_that_is_not_utf8(web: Web) -> None:
    web.add_books("train", {"1": Content(b"Good."), "2": Content(b"caf\xe9")})
    fails(FLAT, "book train/2.txt is not UTF-8 text (byte 3)", "pg19/train/2.txt")


def test_without_a_list_nothing_is_counted_as_kept(web: Web) -> None:
    assert kept_bytes(FLAT) == 0


def test_a_server_that_tells_no_hash_is_believed_its_size(web: Web) -> None:
    web.add_books("train", {"1": Content(b"A book.")})
    web.add("/deepmind-gutenberg/train/1.txt", Content(b"A book."), {"ETag": '"5f3e-12"'})
    download(FLAT, Progress())
    assert FLAT.path.read_text() == "A book.\n"


def test_a_book_that_was_whole_but_not_checked_is_not_fetched_again(web: Web) -> None:
    (path,) = web.add_books("train", {"1": Content(prose(5_000))})
    web.fail(path, then=Fault(cut=4_000))
    fails(FLAT, "the connection was cut")
    (part,) = (pg19.books_dir() / "train").glob("*.part")
    part.write_bytes(prose(5_000))
    web.heal()
    web.forget()
    download(FLAT, Progress())
    assert FLAT.path.read_bytes().rstrip() == prose(5_000).rstrip() and web.sent(path) == 1
