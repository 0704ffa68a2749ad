"""Files on the hub: where they are, what they must contain, and text out of tables."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.corpora import patience
from engine.corpora.hub import fetch_hub_file, write_lines
from engine.corpora.progress import CancelledError, Progress, Stage
from engine.corpora.sources import HubFile
from engine.errors import CorpusError
from engine.paths import PROJECT
from tests.web import Content, Fault, Web, prose, table

SIZE = 150_000
FILE = HubFile("someone/texts", "abc123", "data/tales.txt", SIZE)
RESOLVE = "/datasets/someone/texts/resolve/abc123/data/tales.txt"
CONTENT = Content(prose(SIZE))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "tales.txt"


def get(target: Path, file: HubFile = FILE, progress: Progress | None = None) -> None:
    fetch_hub_file("tales", file, target, target.with_name("tales.part"), progress or Progress())


def fails(target: Path, *words: str, file: HubFile = FILE) -> None:
    with pytest.raises(CorpusError) as caught:
        get(target, file)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and not target.exists()
    for word in ("Corpus tales", *words):
        assert word in message, message


@pytest.mark.parametrize("large", [True, False])
def test_a_file_and_its_requests(web: Web, target: Path, large: bool) -> None:
    path = web.add_hub("someone/texts", "abc123", "data/tales.txt", CONTENT, large=large)
    get(target)
    assert target.read_bytes() == CONTENT.read() and [p.name for p in target.parent.iterdir()] == ["tales.txt"]
    asked = [("HEAD", RESOLVE), ("GET", RESOLVE)] + ([("GET", path)] if large else [])
    assert [(r.method, r.path) for r in web.requests] == asked
    assert {name.lower() for r in web.requests for name in r.headers}.isdisjoint({"authorization", "cookie"})
    get(target)
    assert len(web.requests) == len(asked)  # it is there


@pytest.mark.parametrize("large", [True, False])
def test_the_published_hash_decides(web: Web, target: Path, large: bool) -> None:
    path = web.add_hub("someone/texts", "abc123", "data/tales.txt", CONTENT, large=large)
    web.fail(path, then=Fault(wrong=SIZE - 1))
    fails(target, "SHA-256" if large else "git SHA-1", "HF_ENDPOINT")


def test_a_pinned_hash_goes_before_the_published_one(web: Web, target: Path) -> None:
    web.add_hub("someone/texts", "abc123", "data/tales.txt", CONTENT)
    pinned = HubFile(FILE.repository, FILE.revision, FILE.path, SIZE, sha256="0" * 64)
    fails(target, f"{CONTENT.sha256[:12]}… instead of 000000000000…", file=pinned)
    get(target, HubFile(FILE.repository, FILE.revision, FILE.path, SIZE, sha256=CONTENT.sha256))


@pytest.mark.parametrize("etag", ['"5f3e-1a2b"', f'W/"{CONTENT.sha256}"', f'"{CONTENT.sha256}-gzip"', ""])
def test_a_mirror_that_publishes_no_hash_is_believed_the_size(web: Web, target: Path, etag: str) -> None:
    web.add(RESOLVE, CONTENT, {"ETag": etag})
    web.fail(RESOLVE, Fault(cut=60_000))
    get(target)
    assert target.read_bytes() == CONTENT.read()
    target.unlink()
    web.fail(RESOLVE, then=Fault(wrong=5))
    pinned = HubFile(FILE.repository, FILE.revision, FILE.path, SIZE, CONTENT.sha256)
    fails(target, "SHA-256", file=pinned)


def test_a_redirect_on_the_same_host_tells_the_hash(web: Web, target: Path) -> None:
    """The library follows it, and so does not see what the redirect tells."""
    web.cdn_url = web.url
    path = web.add_hub("someone/texts", "abc123", "data/tales.txt", CONTENT)
    web.fail(path, then=Fault(wrong=5))
    fails(target, f"instead of {CONTENT.sha256[:12]}…")
    web.heal()
    get(target)
    assert target.read_bytes() == CONTENT.read()


def test_a_redirect_that_tells_nothing_of_the_file(web: Web, target: Path) -> None:
    """Its ETag, git's hash of a pointer, is not that of the content."""
    path = web.add_hub("someone/texts", "abc123", "data/tales.txt", CONTENT)
    web.redirect(RESOLVE, web.cdn_url + path, {"ETag": f'"{"a" * 40}"'})
    web.fail(path, Fault(cut=60_000))
    get(target)
    assert target.read_bytes() == CONTENT.read() and web.sent(path) == SIZE


@pytest.mark.parametrize("tail", ["/", "/some/mirror", "/some/mirror/"])
def test_an_endpoint_with_a_path(web: Web, target: Path, tail: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", web.url + tail)
    web.add(tail.rstrip("/") + RESOLVE, CONTENT, {"ETag": f'"{CONTENT.sha256}"'})
    get(target)
    assert target.read_bytes() == CONTENT.read()


def test_another_size_than_the_pinned_one(web: Web, target: Path) -> None:
    web.add_hub("someone/texts", "abc123", "data/tales.txt", Content(b"short"))
    fails(target, "it offers 5 bytes where 150,000 are expected")
    assert web.sent() == 0


def test_an_unknown_size_is_asked_for(web: Web, target: Path) -> None:
    web.add_hub("someone/texts", "abc123", "data/tales.txt", CONTENT)
    stages: list[Stage] = []
    get(target, HubFile(FILE.repository, FILE.revision, FILE.path, 0), Progress(stages.append))
    assert list(dict.fromkeys(stage.title for stage in stages)) == [
        f"Asking {web.url.removeprefix('http://')} for tales", "Downloading tales", "Checking tales"
    ]  # fmt: skip
    assert stages[-1].total == SIZE


def test_another_file_at_the_hub_lets_go_of_what_is_kept(web: Web, target: Path) -> None:
    path = web.add_hub("someone/texts", "abc123", "data/tales.txt", CONTENT)
    web.fail(path, then=Fault(cut=60_000))
    fails(target, "58.6 KiB are kept")
    other = Content(prose(SIZE, seed=9))
    path = web.add_hub("someone/texts", "abc123", "data/tales.txt", other)
    web.forget()
    get(target)
    assert target.read_bytes() == other.read() and web.sent(path) == SIZE


def test_another_server_of_the_content_network_continues(web: Web, target: Path) -> None:
    """Their ETags differ; the hub's hash says that the content is the same."""
    path = web.add_hub("someone/texts", "abc123", "data/tales.txt", CONTENT)
    web.fail(path, then=Fault(cut=60_000))
    fails(target, "kept")
    web.heal()
    web.add(path, CONTENT, {"ETag": '"another"'})
    web.forget()
    get(target)
    assert target.read_bytes() == CONTENT.read() and web.sent(path) == SIZE - 60_000


@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_offline_is_honoured_when_it_is_asked_for(
    web: Web, target: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.add_hub("someone/texts", "abc123", "data/tales.txt", CONTENT)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    fails(target, "HF_HUB_OFFLINE is set, so the hub is not asked. Unset it, and try again.")
    assert web.requests == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    get(target)


@pytest.mark.parametrize("status, times", [(500, 1), (503, 3), (429, 2)])
def test_a_busy_hub_is_asked_again(web: Web, target: Path, status: int, times: int) -> None:
    web.add_hub("someone/texts", "abc123", "data/tales.txt", CONTENT)
    web.fail(RESOLVE, *[Fault(status=status)] * times)
    get(target)
    assert target.read_bytes() == CONTENT.read()


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_hub_that_refuses(web: Web, target: Path, status: int) -> None:
    web.fail(RESOLVE, then=Fault(status=status))
    fails(target, f"it answered {status}", web.url + RESOLVE, "HF_ENDPOINT")
    assert len(web.requests) == 1


@pytest.mark.parametrize(
    "endpoint, words",
    [("http://127.0.0.1:9", "127.0.0.1:9: it cannot be reached"), ("127.0.0.1:9", "is no address"), ("x://y", "is no")],
)
def test_an_endpoint_that_is_none(
    endpoint: str, words: str, target: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    fails(target, words)


def test_a_cancel_while_the_hub_is_silent(web: Web, target: Path) -> None:
    web.fail(RESOLVE, then=Fault(stall_s=20))
    began = time.monotonic()
    with pytest.raises(CancelledError):
        get(target, progress=Progress(cancelled=lambda: time.monotonic() - began > 0.3))
    assert time.monotonic() - began < 5


def test_the_home_folder_and_the_hub_learn_nothing(web: Web, target: Path, tmp_path: Path) -> None:
    """In a process of its own, which begins with a token and no settings."""
    web.add_hub("someone/texts", "abc123", "data/tales.txt", CONTENT)
    home = tmp_path / "home"
    (home / ".cache/huggingface").mkdir(parents=True)
    (home / ".cache/huggingface/token").write_text("hf_secret")
    code = f"from tests.engine.corpora import test_hub as t; t.get(t.Path({str(target)!r}))"
    keep = {name: os.environ[name] for name in ("PATH", "HF_ENDPOINT") if name in os.environ}
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=keep | {"HOME": str(home)}, check=True, timeout=60)
    assert target.read_bytes() == CONTENT.read()
    assert [path.name for path in home.rglob("*") if path.is_file()] == ["token"]
    assert all("authorization" not in {name.lower() for name in r.headers} for r in web.requests)
    assert {r.path for r in web.requests} == {RESOLVE, f"/cdn/{CONTENT.sha256}"}


# --- tables -----------------------------------------------------------------------------------------------------------


def test_rows_become_the_original_lines(tmp_path: Path) -> None:
    rows = ["", " = Title = \n", "", " Ein Wort — 日本 \n", "", ""]
    (tmp_path / "t.parquet").write_bytes(table(rows))
    stages: list[Stage] = []
    write_lines("wiki", tmp_path / "t.parquet", "text", tmp_path / "t.txt", Progress(stages.append))
    assert (tmp_path / "t.txt").read_bytes() == " \n = Title = \n \n Ein Wort — 日本 \n \n \n".encode()
    assert stages[-1] == Stage("Writing wiki", "lines", 6, 6, 0)


def test_a_table_is_read_a_batch_at_a_time(tmp_path: Path) -> None:
    rows = [f" line {i} \n" if i % 3 else "" for i in range(200_000)]
    (tmp_path / "t.parquet").write_bytes(table(rows))
    stages: list[Stage] = []
    write_lines("wiki", tmp_path / "t.parquet", "text", tmp_path / "t.txt", Progress(stages.append))
    assert (tmp_path / "t.txt").read_text() == "".join(row or " \n" for row in rows)
    assert len(stages) > 3


def test_what_is_no_table_of_text(tmp_path: Path) -> None:
    good = pa.table({"text": ["a"], "number": [1]})
    pq.write_table(good, tmp_path / "good.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really PAR1")
    for name, column in (("good", "words"), ("good", "number"), ("bad", "text")):
        with pytest.raises(CorpusError, match=f"no Parquet file with a text column '{column}'"):
            write_lines("wiki", tmp_path / f"{name}.parquet", column, tmp_path / "t.txt", Progress())


def test_attempts_are_bounded(web: Web, target: Path) -> None:
    web.fail(RESOLVE, then=Fault(status=500))
    fails(target, "it answered 500", "Try again later.")
    assert len(web.requests) == patience.ATTEMPTS
