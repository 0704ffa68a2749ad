"""Getting corpora; and twenty cases of every fault: no bad file, nothing lost that could be kept, a clear sentence."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest

from engine.corpora import known, patience
from engine.corpora.download import download, kept_bytes
from engine.corpora.progress import CancelledError, Progress, Stage
from engine.corpora.registry import Corpus, find_corpus
from engine.corpora.sources import Books, HubFile, Normalized, WebFile, WikipediaIntros
from engine.errors import CorpusError
from engine.paths import PROJECT
from tests.web import Content, Fault, Web, article_rows, fill, prose, table
from tests.with_small_sources import shrink

ORIGINS = ("hub", "table", "web", "books", "documents")
CASES = [(ORIGINS[seed % len(ORIGINS)], seed) for seed in range(20)]
grid = pytest.mark.parametrize("origin, seed", CASES, ids=lambda value: str(value))


@dataclass
class Case:
    """A corpus that can be fetched from `web`, and one path of it that meets a fault."""

    web: Web
    corpus: Corpus
    expected: bytes
    contents: dict[str, Content]
    victim: str
    random: random.Random
    cut: int = 0
    titles: list[str] = field(default_factory=list)

    @property
    def content(self) -> Content:
        return self.contents[self.victim]

    @property
    def total(self) -> int:
        return sum(content.size for content in self.contents.values())

    @property
    def sent(self) -> int:
        """Bytes of the source that were sent; the list of books is none of them."""
        return sum(self.web.sent(path) for path in self.contents)

    def was_sent(self, sent: int) -> bool:
        """Whether so many bytes were; a book whose size is not known beforehand is asked for its last byte again."""
        again = sum(request.status == 206 for path in self.contents for request in self.web.asked(path))
        return sent <= self.sent <= sent + (again if isinstance(self.corpus.origin, Books) else 0)

    def download(self, progress: Progress | None = None) -> None:
        download(self.corpus, progress or Progress())

    def fails(self, *words: str, progress: Progress | None = None) -> None:
        with pytest.raises(CorpusError) as caught:
            self.download(progress)
        assert not isinstance(caught.value, CancelledError)
        message = str(caught.value)
        assert "\n" not in message and message.endswith(".") and "Traceback" not in message, message
        for word in (f"Corpus {self.corpus.name}", *words):
            assert word in message, message
        assert not self.corpus.path.exists()
        assert [p.name for p in self.corpus.path.parent.iterdir()] == [".sources"]

    def cut_short(self) -> None:
        """A first attempt that gets everything but the end of the victim."""
        self.cut = self.random.randrange(1, self.content.size)
        self.web.fail(self.victim, then=Fault(cut=self.cut))
        self.fails("the connection was cut", "kept")
        assert kept_bytes(self.corpus) == self.kept_after_cut
        self.web.heal()
        self.web.forget()

    @property
    def kept_after_cut(self) -> int:
        return self.total - self.content.size + self.cut

    def succeeds(self, sent: int, progress: Progress | None = None) -> None:
        """The next attempt gets exactly `sent` bytes."""
        self.web.forget()
        self.download(progress)
        assert self.corpus.path.read_bytes() == self.expected
        assert self.was_sent(sent)
        assert kept_bytes(self.corpus) == 0


def make(web: Web, origin: str, seed: int) -> Case:
    """A corpus of 20 to 300 KB whose content, size and victim follow from the seed."""
    rng = random.Random(f"{origin} {seed}")
    size = rng.randrange(20_000, 300_000)
    name = f"{origin}{seed}"
    if origin in ("books", "documents"):
        books = {str(number): Content(prose(size // 6 + number, seed + number)) for number in rng.sample(range(99), 6)}
        paths = web.add_books("test", books)
        texts = [content.read().decode() for content in books.values()]
        corpus = Corpus(name, name, "", origin=Books("test", 0, origin == "documents"), size=size)
        expected = "\n".join(text if text.endswith("\n") else text + "\n" for text in texts)
        if origin == "documents":
            corpus = replace(corpus, suffix=".jsonl")
            rows = [{"id": number, "text": text} for number, text in zip(books, texts, strict=True)]
            expected = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        contents = dict(zip(paths, books.values(), strict=True))
        return Case(web, corpus, expected.encode(), contents, rng.choice(paths), rng)
    content = Content(prose(size, seed))
    expected_bytes = content.read()
    if origin == "table":
        rows = article_rows(size, seed)
        content = Content(table(rows))
        expected_bytes = "".join(row or " \n" for row in rows).encode()
    if origin == "web":
        path = web.add("/shakespeare.txt", content)
        source: HubFile | WebFile = WebFile("http://127.0.0.1:9/", "LAB_SHAKESPEARE_URL", content.size, content.sha256)
    else:
        large = rng.random() < 0.7
        path = web.add_hub("someone/texts", "abc", f"{name}.bin", content, large=large)
        source = HubFile(
            "someone/texts", "abc", f"{name}.bin", content.size, column="text" if origin == "table" else ""
        )
    return Case(web, Corpus(name, name, "", origin=source), expected_bytes, {path: content}, path, rng)


@pytest.fixture
def case(web: Web, origin: str, seed: int) -> Case:
    return make(web, origin, seed)


# --- the grid ---------------------------------------------------------------------------------------------------------


@grid
def test_connection_cut(case: Case) -> None:
    case.cut_short()
    if case.random.random() < 0.5:  # and again, further on
        further = case.random.randrange(case.cut, case.content.size)
        case.web.fail(case.victim, then=Fault(cut=further))
        case.fails("the connection was cut", "kept")
        case.cut = further
        case.web.heal()
    case.succeeds(sent=case.content.size - case.cut)


@grid
def test_404(case: Case) -> None:
    case.cut_short()
    case.web.fail(case.victim, then=Fault(status=404))
    case.fails("it answered 404 Not Found")
    assert len(case.web.asked(case.victim)) <= 1  # no use to ask again
    assert kept_bytes(case.corpus) == case.kept_after_cut
    case.web.heal()
    case.succeeds(sent=case.content.size - case.cut)


@grid
def test_500(case: Case) -> None:
    case.cut_short()
    status = case.random.choice([500, 502, 503, 504])
    case.web.fail(case.victim, then=Fault(status=status))
    case.fails(f"it answered {status}", "kept")
    assert len([r for r in case.web.requests if r.path == case.victim]) == patience.ATTEMPTS
    assert kept_bytes(case.corpus) == case.kept_after_cut
    times = case.random.randrange(1, patience.ATTEMPTS)  # and some that pass
    case.web.fail(case.victim, *[Fault(status=status)] * times)
    case.succeeds(sent=case.content.size - case.cut)


@grid
def test_wrong_bytes(case: Case) -> None:
    size = case.content.size
    wrong = case.random.randrange(size)
    case.web.fail(case.victim, then=Fault(wrong=wrong))
    case.fails("what it sent has the ", "instead of")
    assert kept_bytes(case.corpus) == case.total - size  # who knows which bytes are wrong; other books are kept
    assert case.web.sent(case.victim) == size
    case.web.heal()
    case.web.forget()
    if case.random.random() < 0.5:
        case.cut_short()
        case.web.fail(case.victim, Fault(wrong=case.cut))  # the continuation is wrong, once: all is fetched anew
        case.succeeds(sent=size - case.cut + size)
    else:
        case.succeeds(sent=size)


@grid
def test_truncated(case: Case) -> None:
    length = case.random.randrange(1, case.content.size)
    case.web.fail(case.victim, then=Fault(length=length))
    case.fails(f"{length:,}" if isinstance(case.corpus.origin, HubFile | WebFile) else "it ", "kept")
    kept = kept_bytes(case.corpus)
    assert kept == case.total - case.content.size + length
    case.web.heal()
    case.succeeds(sent=case.total - kept)


@grid
def test_range_ignored(case: Case) -> None:
    case.cut_short()
    size = case.content.size
    if case.random.random() < 0.5:  # sent from the start, and cut before what is kept: that stays
        case.web.fail(case.victim, then=Fault(no_range=True, cut=case.random.randrange(case.cut)))
        case.fails("the connection was cut", "kept")
        assert kept_bytes(case.corpus) == case.kept_after_cut
        case.web.heal()
        case.succeeds(sent=size - case.cut)
    else:
        case.web.fail(case.victim, then=Fault(no_range=True))
        case.succeeds(sent=size)


_WORKER = """
import base64, os, pickle, sys
from engine.corpora import patience
from engine.corpora.download import download
from engine.corpora.progress import Progress
patience.FIRST_WAIT_S = 0.002
for line in sys.stdin:
    environment, corpus = pickle.loads(base64.b64decode(line))
    os.environ.update(environment)
    try:
        download(corpus, Progress())
        print("done", flush=True)
    except BaseException as error:
        print(type(error).__name__, error, flush=True)
"""


@pytest.fixture(scope="module")
def workers() -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes that download what they are told."""
    command = [sys.executable, "-c", _WORKER]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT)
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    yield processes
    for process in processes:
        process.stdin.close()
        process.wait(timeout=10)


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


@grid
def test_two_processes_at_once(
    case: Case, workers: list[subprocess.Popen[str]], corpora_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case.random.random() < 0.5:
        case.cut_short()
    case.web.fail(case.victim, Fault(bytes_per_s=1_000_000, cut=case.cut + 5_000), then=Fault(bytes_per_s=1_000_000))
    corpora = [case.corpus, case.corpus]
    if isinstance(case.corpus.origin, Books):  # another corpus of the same books
        documents = not case.corpus.origin.documents
        corpora[1] = replace(case.corpus, name="other", origin=replace(case.corpus.origin, documents=documents))
    kept = kept_bytes(case.corpus)
    for process, corpus in zip(workers, corpora, strict=True):
        told = case.web.environment | {"LAB_CORPORA": str(corpora_folder)}
        _pipe(process.stdin).write(b64encode(pickle.dumps((told, corpus))).decode() + "\n")
        _pipe(process.stdin).flush()
    assert [_pipe(process.stdout).readline() for process in workers] == ["done\n", "done\n"]
    assert case.corpus.path.read_bytes() == case.expected
    assert corpora[1].path.exists()
    assert case.was_sent(case.total - kept)  # nothing twice
    assert [p.name for p in (corpora_folder / ".sources").rglob("*") if ".part" in p.name or ".writing" in p.name] == []


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of corpora on a file system of its own, of a few megabytes."""
    with tempfile.TemporaryDirectory() as folder:
        mounted = (
            os.geteuid() == 0
            and not subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], capture_output=True
            ).returncode
        )
        if not mounted:
            pytest.skip("file systems cannot be mounted here")
        monkeypatch.setenv("LAB_CORPORA", folder)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def _fill_up(folder: Path, room: int) -> None:
    """Leave no more than `room` bytes and one page of 4 KiB for a small file."""
    with (folder / ".sources/filler").open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(b"x" * 4096):
                pass
        file.truncate(file.tell() - (room // 4096 + 2) * 4096)


def wait_for_those_left_behind() -> None:
    """Until the threads of an attempt that ended have asked what they were about to ask: it would be counted later."""
    for thread in threading.enumerate():
        if thread.name == "network":
            thread.join(timeout=20)


@grid
def test_disk_full(case: Case, small_disk: Path) -> None:
    """Somebody else fills the disk once the download began; before that, there was room enough."""
    is_books = isinstance(case.corpus.origin, Books)
    room = case.random.randrange(1, case.total // 2)

    def tell(stage: Stage) -> None:
        if stage.done == 0 and stage.unit == ("books" if is_books else "bytes") and stage.title.startswith("Down"):
            _fill_up(small_disk, room)

    case.fails("The disk that holds", "is full. Free some space, then try again.", progress=Progress(tell))
    kept = kept_bytes(case.corpus)
    assert kept < room + 16_384 and (kept >= room or is_books)
    wait_for_those_left_behind()
    case.web.forget()
    case.fails("need about", "Free some space")  # found before anything is asked for
    assert case.sent == 0 and kept_bytes(case.corpus) == kept
    (small_disk / ".sources/filler").unlink()
    case.web.heal()
    case.succeeds(sent=case.total - kept)


# --- everything that the product fetches ------------------------------------------------------------------------------


FETCHED = [corpus.name for corpus in known.KNOWN if isinstance(corpus.origin, HubFile | WebFile | Books)]


@pytest.mark.parametrize("name", FETCHED)
def test_every_corpus_of_the_registry(name: str, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(fill(web, 40_000), monkeypatch.setattr)
    corpus = find_corpus(name)
    assert kept_bytes(corpus) == 0
    download(corpus, Progress())
    assert corpus.is_here and corpus.path.stat().st_size > 1000
    if isinstance(corpus.origin, Books) and corpus.suffix == ".jsonl":
        rows = corpus.path.read_text().splitlines()
        assert len(rows) == (corpus.origin.limit or {"train": 120, "validation": 6, "test": 8}[corpus.origin.split])
        assert json.loads(rows[0]).keys() == {"id", "text"}


def test_what_was_put_there_by_hand_is_left_alone(web: Web, corpora_folder: Path) -> None:
    corpus = find_corpus("shakespeare")
    corpus.path.write_text("My own.")
    download(corpus, Progress())
    assert corpus.path.read_text() == "My own." and web.requests == []


def test_a_text_that_is_gone() -> None:
    mine = Corpus("mine", "Mine", "")
    with pytest.raises(CorpusError, match=r"Corpus mine: .*mine.txt is missing, and it cannot be downloaded\.$"):
        download(mine, Progress())
    assert kept_bytes(mine) == 0


@pytest.mark.parametrize("origin", [Normalized("pg19_test"), WikipediaIntros()])
def test_prepared_corpora_are_left_to_their_module(
    origin: Normalized | WikipediaIntros, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Corpus] = []
    module = SimpleNamespace(prepare=lambda corpus, progress: asked.append(corpus))
    monkeypatch.setitem(sys.modules, "engine.corpora.prepare", module)
    corpus = Corpus("made", "Made", "", origin=origin)
    download(corpus, Progress())
    assert asked == [corpus] and kept_bytes(corpus) == 0


def test_books_are_shared_by_all_corpora(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(fill(web, 40_000), monkeypatch.setattr)
    download(find_corpus("pg19_train_small"), Progress())
    web.forget()
    assert kept_bytes(find_corpus("pg19_train_small_docs")) > 0
    download(find_corpus("pg19_train_small_docs"), Progress())
    assert web.requests == []
    download(find_corpus("pg19_train_docs"), Progress())
    assert len(web.requests) == 20


def test_a_cancel_keeps_what_arrived(web: Web) -> None:
    case = make(web, "web", 1)
    case.web.fail(case.victim, Fault(bytes_per_s=20_000))
    began = time.monotonic()
    with pytest.raises(CancelledError):
        case.download(Progress(cancelled=lambda: time.monotonic() - began > 0.3))
    assert time.monotonic() - began < 5 and not case.corpus.path.exists()
    kept = kept_bytes(case.corpus)
    assert 0 < kept < case.total
    case.web.heal()
    case.download()
    assert case.corpus.path.read_bytes() == case.expected


def test_a_killed_download_is_continued(web: Web, corpora_folder: Path) -> None:
    case = make(web, "hub", 2)
    case.web.fail(case.victim, Fault(bytes_per_s=100_000))
    process = subprocess.Popen([sys.executable, "-c", _WORKER], stdin=subprocess.PIPE, text=True, cwd=PROJECT)
    told = web.environment | {"LAB_CORPORA": str(corpora_folder)}
    _pipe(process.stdin).write(b64encode(pickle.dumps((told, case.corpus))).decode() + "\n")
    _pipe(process.stdin).flush()
    try:
        deadline = time.monotonic() + 30
        while kept_bytes(case.corpus) < 10_000:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    kept = kept_bytes(case.corpus)
    assert not case.corpus.path.exists()
    case.web.heal()
    case.succeeds(sent=case.total - kept)


def test_a_folder_that_cannot_be_used(web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAB_CORPORA", str(tmp_path / "file"))
    with pytest.raises(CorpusError, match=r"Corpus shakespeare: .* cannot be used: "):
        download(find_corpus("shakespeare"), Progress())


def test_sources_that_are_missing_say_how_to_go_on(web: Web) -> None:
    """Nothing is served at all: every origin ends with a sentence that names its server."""
    for name, variable in (("shakespeare", "LAB_SHAKESPEARE_URL"), ("tinystories", "HF_ENDPOINT")):
        with pytest.raises(CorpusError) as caught:
            download(find_corpus(name), Progress())
        for word in (f"Corpus {name}", "404", web.url.removeprefix("http://"), variable):
            assert word in str(caught.value)
