"""One file from one address."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from engine.corpora import patience, transfer
from engine.corpora.fetch import FetchError, fetch, readable
from engine.corpora.patience import ATTEMPTS
from engine.corpora.progress import CancelledError, Progress, Stage
from engine.corpora.transfer import Digest, Remote
from tests.web import Content, Fault, Web, generated, prose

SIZE = 200_000


@dataclass
class Case:
    """A file on the server, and where it goes."""

    web: Web
    content: Content
    path: str
    remote: Remote
    target: Path
    partial: Path

    def fetch(self, progress: Progress | None = None) -> None:
        fetch(self.remote, self.target, self.partial, progress or Progress())

    def is_whole(self) -> bool:
        leftovers = [path for path in self.target.parent.iterdir() if path != self.target]
        return self.target.read_bytes() == self.content.read() and leftovers == []

    def fails(self, *words: str) -> str:
        with pytest.raises(FetchError) as caught:
            self.fetch()
        message = str(caught.value)
        assert "\n" not in message and message.endswith(".") and not self.target.exists()
        for word in ("Corpus plays", self.remote.host, *words):
            assert word in message, message
        return message


@pytest.fixture
def case(web: Web, tmp_path: Path) -> Case:
    content = Content(prose(SIZE, seed=3))
    path = web.add("/plays.txt", content)
    remote = Remote("plays", web.url + path, "LAB_SHAKESPEARE_URL", SIZE, Digest("SHA-256", content.sha256))
    return Case(web, content, path, remote, tmp_path / "plays.txt", tmp_path / "plays.part")


def test_a_file_arrives_and_is_told(case: Case) -> None:
    stages: list[Stage] = []
    case.fetch(Progress(stages.append))
    assert case.is_whole()
    assert stages[0] == Stage("Downloading plays", "bytes", 0, SIZE, 0)
    assert Stage("Downloading plays", "bytes", SIZE, SIZE, 0) in stages
    assert stages[-1] == Stage("Checking plays", "bytes", SIZE, SIZE, 0)
    case.web.forget()
    case.fetch()
    assert case.web.requests == []  # it is there


def test_nothing_is_sent_but_what_is_needed(case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)
    case.target = case.target.with_name("other")
    case.fetch()
    headers = {name.lower() for name in case.web.requests[0].headers}
    assert "authorization" not in headers and "cookie" not in headers


def test_a_cut_is_continued_in_the_same_attempt(case: Case) -> None:
    case.web.fail(case.path, Fault(cut=70_001), Fault(cut=70_001), Fault(cut=150_000))
    case.fetch()
    assert case.is_whole()
    assert case.web.sent(case.path) == SIZE
    etag = f'"{case.content.sha256[:40]}-x"'
    ranges = [(r.headers.get("Range"), r.headers.get("If-Range")) for r in case.web.requests]
    assert ranges == [
        (None, None), ("bytes=70001-", etag), ("bytes=70001-", etag), ("bytes=150000-", etag)
    ]  # fmt: skip


def test_patience_begins_anew_with_every_byte_gained(case: Case) -> None:
    case.web.fail(case.path, *(Fault(cut=1000 * i) for i in range(1, 4 * ATTEMPTS)))
    case.fetch()
    assert case.is_whole()


def test_progress_of_a_continued_file(case: Case) -> None:
    case.web.fail(case.path, then=Fault(cut=70_000))
    case.fails("the connection was cut", "Try again: 68.4 KiB are kept and will not be fetched again.")
    assert len(case.web.asked(case.path)) == ATTEMPTS
    case.web.heal()
    stages: list[Stage] = []
    case.fetch(Progress(stages.append))
    assert stages[0] == Stage("Downloading plays", "bytes", 70_000, SIZE, 70_000)
    assert stages[-1].done == SIZE and case.is_whole()


def test_a_changed_file_is_begun_anew(case: Case) -> None:
    case.web.fail(case.path, then=Fault(cut=50_000))
    case.fails("cut")
    case.content = Content(prose(SIZE, seed=4))
    case.web.add(case.path, case.content)
    case.web.heal()
    case.web.forget()
    case.remote = replace(case.remote, digest=Digest("SHA-256", case.content.sha256))
    case.fetch()
    assert case.is_whole() and [r.status for r in case.web.requests] == [200]  # If-Range


def test_a_changed_file_of_a_server_that_ignores_if_range(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.web.fail(case.path, then=Fault(cut=50_000))
    case.fails("cut")
    case.content = Content(prose(SIZE, seed=4))
    case.web.add(case.path, case.content, {"ETag": '"new"'})
    case.web.heal()
    case.partial.with_name("plays.part.version").write_text('"new"')  # what it will compare; then it has the old one
    case.remote = replace(case.remote, digest=Digest("SHA-256", case.content.sha256))
    case.fetch()
    assert case.is_whole()
    assert [r.status for r in case.web.requests][-2:] == [206, 200]  # mixed, found out, and fetched whole


def test_416_begins_anew(case: Case) -> None:
    case.web.fail(case.path, then=Fault(cut=50_000))
    case.fails("cut")
    case.web.fail(case.path, Fault(status=416))
    case.fetch()
    assert case.is_whole()


def test_more_bytes_than_expected_are_refused_at_once(case: Case) -> None:
    case.remote = replace(case.remote, size=SIZE - 1)
    case.fails("it offers 200,000 bytes where 199,999 are expected", "LAB_SHAKESPEARE_URL")
    assert len(case.web.requests) == 1 and not case.partial.stat().st_size


def test_a_page_of_a_proxy_does_not_replace_what_is_kept(case: Case) -> None:
    case.web.fail(case.path, then=Fault(cut=50_000))
    case.fails("cut")
    case.web.add(case.path, Content(b"<html>Please log in to this network.</html>"))
    case.web.heal()
    case.fails("it offers 43 bytes where 200,000 are expected", "48.8 KiB are kept")
    case.web.add(case.path, case.content)
    case.web.forget()
    case.fetch()
    assert case.is_whole() and case.web.sent() == SIZE - 50_000


def test_a_partial_file_that_is_too_long_or_rotten(case: Case) -> None:
    case.partial.write_bytes(b"x" * (SIZE + 1))
    case.fetch()
    assert case.is_whole()
    case.target.unlink()
    case.partial.write_bytes(b"x" * SIZE)
    case.fetch()
    assert case.is_whole()


def test_a_whole_partial_file_is_only_checked(case: Case) -> None:
    case.partial.write_bytes(case.content.read())
    case.web.forget()
    case.fetch()
    assert case.is_whole() and case.web.requests == []


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_left_alone_as_long_as_it_asks(case: Case, status: int) -> None:
    case.web.fail(case.path, Fault(status=status, retry_after="1"))
    begun = time.monotonic()
    case.fetch()
    assert case.is_whole() and time.monotonic() - begun >= 1


def test_a_server_that_asks_for_an_hour(case: Case) -> None:
    case.web.fail(case.path, Fault(status=429, retry_after="3600"))
    case.fails("429", "3,600 seconds")


def test_retry_after_may_be_a_date() -> None:
    assert patience.refusal(503, "", {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}).wait_s == 0
    assert patience.refusal(503, "", {"Retry-After": "soon"}).wait_s is None


def test_waits_double_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(patience, "_wait", lambda seconds, progress: waits.append(seconds))
    monkeypatch.setattr(patience, "ATTEMPTS", 9)

    def attempt() -> None:
        raise patience.Trouble("it is ill")

    with pytest.raises(patience.Trouble):
        patience.persist(attempt, Progress())
    assert len(waits) == 8
    for number, wait in enumerate(waits):
        top = min(30.0, 2.0**number)
        assert top / 2 <= wait <= top


def test_a_silent_server(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "READ_S", 0.1)
    case.web.fail(case.path, then=Fault(stall_s=0.4))
    case.fails("it did not answer within")


def test_nobody_answers(case: Case) -> None:
    case.remote = replace(case.remote, url="http://127.0.0.1:9/plays.txt")
    with pytest.raises(FetchError) as caught:
        case.fetch()
    assert caught.value.unreachable and "127.0.0.1:9: it cannot be reached. Try again later." in str(caught.value)


@pytest.mark.parametrize("url", ["plays.txt", "ftp://127.0.0.1/plays", "http://", "http://[::1"])
def test_an_address_that_is_none(case: Case, url: str) -> None:
    case.remote = replace(case.remote, url=url)
    case.fails("is no address that can be fetched", "LAB_SHAKESPEARE_URL")


def _cancelled_after(case: Case, start: Callable[[], None]) -> float:
    """Seconds from a cancel to its effect."""
    cancelled = threading.Event()
    at: list[float] = []

    def cancel() -> None:
        start()
        at.append(time.monotonic())
        cancelled.set()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(CancelledError):
        case.fetch(Progress(cancelled=cancelled.is_set))
    thread.join()
    return time.monotonic() - at[0]


@pytest.mark.parametrize("fault", [Fault(stall_s=20), Fault(bytes_per_s=20_000)])
def test_a_cancel_is_felt_at_once_and_keeps_what_arrived(case: Case, fault: Fault) -> None:
    case.web.fail(case.path, fault)
    assert _cancelled_after(case, lambda: time.sleep(0.5)) < 5
    kept = case.partial.stat().st_size
    assert (kept > 0) == (fault.stall_s == 0) and not case.target.exists()
    assert case.content.read().startswith(case.partial.read_bytes())
    case.web.forget()
    case.fetch()
    assert case.is_whole() and case.web.sent(case.path) <= SIZE - kept + (5_000 if kept else 0)


def test_a_cancel_during_a_wait(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 20.0)
    case.web.fail(case.path, then=Fault(status=500))
    assert _cancelled_after(case, lambda: time.sleep(0.3)) < 5


def test_the_md5_of_an_object_store_is_checked(case: Case) -> None:
    case.remote = replace(case.remote, size=0, digest=None)
    book = case.web.add_book("train/1.txt", case.content)
    case.remote = replace(case.remote, url=case.web.url + book)
    case.web.fail(book, Fault(wrong=199_999))
    case.fails("what it sent has the MD5")
    case.fetch()
    assert case.is_whole()
    case.target.unlink()
    case.web.add(case.path, case.content, {"ETag": f'"{case.content.md5.hex()}"'})
    case.remote = replace(case.remote, url=case.web.url + case.path)
    case.web.fail(case.path, Fault(wrong=0))
    case.fails("what it sent has the MD5")


def test_a_large_file_takes_no_memory(case: Case, tmp_path: Path) -> None:
    import tracemalloc

    content = generated(200 * 2**20)
    path = case.web.add("/large", content)
    remote = Remote("plays", case.web.url + path, "", content.size, Digest("SHA-256", content.sha256))
    tracemalloc.start()
    fetch(remote, tmp_path / "large", tmp_path / "large.part", Progress())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "large").stat().st_size == content.size and peak < 60 * 2**20
    os.unlink(tmp_path / "large")


def test_sizes_for_people() -> None:
    assert [readable(n) for n in (0, 1023, 1024, 1_300_000, 2 * 2**30)] == [
        "0 bytes", "1023 bytes", "1.0 KiB", "1.2 MiB", "2.0 GiB"
    ]  # fmt: skip
