"""The servers that corpora come from, in miniature and on this machine: the hub, its content network, a bucket, files.

    with Web() as web:
        path = web.add_hub("roneneldan/TinyStories", revision, "TinyStories-valid.txt", Content(b"Once upon a time"))
        web.fail(path, Fault(cut=8))                 # the first GET of the bytes is cut after eight of them
        ... os.environ | web.environment ...         # then the product's own code does the rest
        assert web.sent(path) == ...                 # bytes of bodies, to prove what was not fetched again

It speaks what the real ones do: HEAD and GET, redirects of large hub files to another origin with `X-Linked-Etag`,
`X-Linked-Size` and `X-Repo-Commit`, `ETag`, `Range`, `If-Range`, `206`, `416`, `x-goog-hash`. Content may be generated
while it is sent, so that hundreds of megabytes take no memory.

`python -m tests.web --port 8400` serves small made-up content for every corpus that is fetched, until it is stopped,
and prints what to set; `tests/with_small_sources.py` runs a command of the project with it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import random
import re
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from engine.corpora import known
from engine.corpora.sources import HubFile, WebFile

_BLOCK = 1 << 16
WORDS = re.findall(
    r"\w+",
    "the a lamp harbour keeper said walked small old bright morning evening boat stone letter garden river window "
    "quiet laughed carried toward under because never always and but then she he they it was had been would could",
)


class Content:
    """What a path holds: bytes, or `size` bytes that `block(number)` makes, 64 KiB at a time, when they are read."""

    def __init__(self, data: bytes = b"", *, size: int = 0, block: Callable[[int], bytes] | None = None) -> None:
        self.size = size if block else len(data)
        self._data = data
        self._block = block

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` up to `stop`, a piece at a time."""
        while start < stop:
            end = min(stop, (start // _BLOCK + 1) * _BLOCK)
            if self._block is None:
                yield self._data[start:end]
            else:
                first = start // _BLOCK * _BLOCK
                yield self._block(start // _BLOCK)[start - first : end - first]
            start = end

    def read(self) -> bytes:
        """All of it; for small contents."""
        return b"".join(self.pieces(0, self.size))

    def _hash(self, name: str, before: bytes = b"") -> Any:
        hasher = hashlib.new(name, before)
        for piece in self.pieces(0, self.size):
            hasher.update(piece)
        return hasher

    @cached_property
    def sha256(self) -> str:
        return str(self._hash("sha256").hexdigest())

    @cached_property
    def md5(self) -> bytes:
        return bytes(self._hash("md5").digest())

    @cached_property
    def git_sha1(self) -> str:
        return str(self._hash("sha1", b"blob %d\0" % self.size).hexdigest())


def prose(size: int, seed: int = 0) -> bytes:
    """Made-up sentences, `size` bytes of them, always the same for a seed."""
    rng = random.Random(seed)
    lines = []
    length = 0
    while length < size:
        line = " ".join(rng.choices(WORDS, k=12)).capitalize() + ".\n"
        lines.append(line)
        length += len(line)
    return "".join(lines).encode()[:size]


def generated(size: int, seed: int = 0) -> Content:
    """Made-up sentences that are never in memory as a whole; `size` may be any."""
    page = prose(_BLOCK - 16, seed)

    def block(number: int) -> bytes:
        return b"%015d\n" % number + page

    return Content(size=size, block=block)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer; several can at once.

    Attributes:
        status: answered instead of the content.
        retry_after: seconds, told with the status.
        cut: the connection ends when this position of the content is reached.
        wrong: from this position on, every byte is another one.
        length: the server believes the content to be this short; the hashes it publishes stay those of the whole.
        no_range: a Range is ignored.
        bytes_per_s: how slowly it is sent; 0 is as fast as possible.
        stall_s: seconds of silence before the answer.
    """

    status: int = 0
    retry_after: str = ""
    cut: int | None = None
    wrong: int | None = None
    length: int | None = None
    no_range: bool = False
    bytes_per_s: int = 0
    stall_s: float = 0.0


@dataclass
class Request:
    """One request that came in; `sent` counts the bytes of its body that went out."""

    method: str
    path: str
    headers: Mapping[str, str]
    status: int = 0
    sent: int = 0


@dataclass(frozen=True)
class _Entry:
    content: Content
    headers: Mapping[str, str]
    location: str = ""  # a redirect carries the headers, and none of the content


class Web:
    """Servers on 127.0.0.1: `url` stands for the hub, the bucket and plain files, `cdn_url` for the content network.

    Attributes:
        requests: all that came in, in order.
        routes: handlers for paths that begin with a prefix, for protocols that are not spoken here; each gets the
            `BaseHTTPRequestHandler` and answers by itself.
    """

    def __init__(self, port: int = 0) -> None:
        self.requests: list[Request] = []
        self.routes: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self._entries: dict[str, _Entry] = {}
        self._faults: dict[str, list[Fault]] = {}
        self._then: dict[str, Fault | None] = {}
        self._lock = threading.Lock()
        self._servers = [self._server(port), self._server(0)]
        self.url, self.cdn_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def _server(self, port: int) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"web": self})
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that leave are no news
        return server

    def __enter__(self) -> Web:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    # --- content

    def add(self, path: str, content: Content, headers: Mapping[str, str] | None = None) -> str:
        """Serve a plain file at `path`, with an ETag unless `headers` has another; returns the path."""
        self._entries[path] = _Entry(content, {"ETag": f'"{content.sha256[:40]}-x"'} | dict(headers or {}))
        return path

    def add_hub(self, repository: str, revision: str, path: str, content: Content, *, large: bool = True) -> str:
        """Serve a file of a data set as the hub does; returns the path from which its bytes come.

        Args:
            large: kept by the content network and identified by its SHA-256, rather than by git's hash.
        """
        resolve = f"/datasets/{repository}/resolve/{revision}/{path}"
        headers = {"X-Repo-Commit": revision, "ETag": f'"{content.git_sha1}"', "Accept-Ranges": "bytes"}
        if not large:
            return self.add(resolve, content, headers)
        linked = {"X-Linked-Etag": f'"{content.sha256}"', "X-Linked-Size": str(content.size)}
        cdn_path = f"/cdn/{content.sha256}"
        self._entries[resolve] = _Entry(content, headers | linked, self.cdn_url + cdn_path)
        return self.add(cdn_path, content)

    def redirect(self, path: str, location: str, headers: Mapping[str, str]) -> None:
        """Send who asks for `path` elsewhere, with these headers and no others."""
        self._entries[path] = _Entry(Content(), headers, location)

    def add_book(self, line: str, content: Content) -> str:
        """Serve a book, such as `train/123.txt`, as the public bucket does; returns its path."""
        headers = {
            "ETag": f'"{content.md5.hex()}"',
            "x-goog-hash": f"crc32c=AAAAAA==, md5={b64encode(content.md5).decode()}",
            "x-goog-stored-content-length": str(content.size),
        }
        return self.add(f"/deepmind-gutenberg/{line}", content, headers)

    def add_books(self, split: str, books: Mapping[str, Content]) -> list[str]:
        """Serve books by their numbers, and their list on the hub; returns the paths of the books."""
        lines = [f"{split}/{number}.txt" for number in books]
        listing = Content("".join(f"{line}\n" for line in lines).encode())
        self.add_hub("deepmind/pg19", known.PG19, f"data/{split}_files.txt", listing, large=False)
        return [self.add_book(line, content) for line, content in zip(lines, books.values(), strict=True)]

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point the product here."""
        return {
            "HF_ENDPOINT": self.url,
            "LAB_PG19_URL": f"{self.url}/deepmind-gutenberg",
            "LAB_SHAKESPEARE_URL": f"{self.url}/shakespeare.txt",
            "LAB_WIKIPEDIA_API": f"{self.url}/w/api.php",
        }

    @property
    def paths(self) -> list[str]:
        """All that is served."""
        return list(self._entries)

    # --- faults and counts

    def fail(self, path: str, *faults: Fault, then: Fault | None = None) -> None:
        """The next requests of `path` meet these faults, one each, and all later ones `then`.

        A HEAD meets those with a status or a silence; the others wait for a GET.
        """
        with self._lock:
            self._faults[path], self._then[path] = list(faults), then

    def heal(self) -> None:
        """No more faults."""
        with self._lock:
            self._faults.clear()
            self._then.clear()

    def sent(self, path: str = "") -> int:
        """Bytes of bodies that were sent, of `path` or of all."""
        return sum(request.sent for request in self.requests if not path or request.path == path)

    def asked(self, path: str) -> list[Request]:
        """The GET requests of `path`, in order."""
        return [request for request in self.requests if request.path == path and request.method == "GET"]

    def forget(self) -> None:
        """Begin to count anew."""
        self.requests.clear()

    def take(self, path: str, method: str) -> tuple[_Entry | None, Fault]:
        """What is at `path`, and what goes wrong with this request of it; for the handler."""
        with self._lock:
            waiting = self._faults.get(path)
            fault = waiting[0] if waiting else self._then.get(path)
            if fault and method == "HEAD" and not (fault.status or fault.stall_s):
                fault = None
            elif fault and waiting:
                waiting.pop(0)
            return self._entries.get(path), fault or Fault()


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    web: Web

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        request = Request(self.command, path, dict(self.headers))
        self.web.requests.append(request)
        for prefix, route in self.web.routes.items():
            if path.startswith(prefix):
                return route(self)
        entry, fault = self.web.take(path, self.command)
        time.sleep(fault.stall_s)
        if fault.status or entry is None:
            self._refuse(request, fault.status or 404, fault.retry_after)
        elif entry.location:
            self._head(request, 302, dict(entry.headers) | {"Location": entry.location, "Content-Length": "0"})
        else:
            self._serve(request, entry, fault)

    def _head(self, request: Request, status: int, headers: Mapping[str, str]) -> None:
        request.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _refuse(self, request: Request, status: int, retry_after: str) -> None:
        body = b"<html>No.</html>"
        headers = {"Content-Type": "text/html", "Content-Length": str(len(body))}
        self._head(request, status, headers | ({"Retry-After": retry_after} if retry_after else {}))
        if self.command == "GET":
            self.wfile.write(body)

    def _serve(self, request: Request, entry: _Entry, fault: Fault) -> None:
        size = entry.content.size if fault.length is None else min(fault.length, entry.content.size)
        headers = dict(entry.headers) | {"Content-Type": "application/octet-stream"}
        start, stop, status = 0, size, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and not fault.no_range and self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]:
            start, stop, status = int(wanted[1]), min(size, int(wanted[2] or size - 1) + 1), 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            if start >= stop:
                gone = {"Content-Range": f"bytes */{size}", "Content-Length": "0"}
                return self._head(request, 416, gone)
        self._head(request, status, headers | {"Content-Length": str(stop - start)})
        if self.command == "GET":
            self._send(request, entry.content, start, stop, fault)

    def _send(self, request: Request, content: Content, start: int, stop: int, fault: Fault) -> None:
        end = stop if fault.cut is None else max(start, min(stop, fault.cut))
        for piece in content.pieces(start, end):
            if fault.wrong is not None:
                keep = max(0, fault.wrong - start)
                piece = piece[:keep] + bytes(255 - byte for byte in piece[keep:])
            start += len(piece)
            step = max(1, fault.bytes_per_s // 20) if fault.bytes_per_s else len(piece)
            for at in range(0, len(piece), step):
                part = piece[at : at + step]
                request.sent += len(part)  # first: who has received it may count at once
                self.wfile.write(part)
                if fault.bytes_per_s:
                    time.sleep(len(part) / fault.bytes_per_s)
        if end < stop:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)


# --- small made-up content for every corpus that is fetched ----------------------------------------------------------


def table(lines: Sequence[str], column: str = "text") -> bytes:
    """A Parquet file with one column of strings."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({column: pa.array(lines, pa.string())}), buffer)
    return buffer.getvalue()


def stories(size: int, seed: int) -> bytes:
    """Stories with the mark that stands between them."""
    rng = random.Random(seed)
    parts, length = [], 0
    while length < size:
        parts.append(
            f"Once upon a time, {prose(rng.randint(200, 700), rng.randrange(2**32)).decode().strip()}\n<|endoftext|>\n"
        )
        length += len(parts[-1])
    return "".join(parts).encode()


def article_rows(size: int, seed: int) -> list[str]:
    """Rows as WikiText publishes them: lines with their ends, blank ones emptied."""
    rows = ["", " = Lighthouses = \n", ""]
    for line in prose(size, seed).decode().splitlines():
        rows += [f" {line} \n", ""]
    return rows


def book(size: int, seed: int) -> bytes:
    """Hard-wrapped paragraphs under a heading."""
    paragraphs = [prose(400, seed * 1000 + i).decode().strip() for i in range(max(1, size // 400))]
    return ("CHAPTER I\n\n" + "\n\n".join(paragraphs) + "\n").encode()


def fill(web: Web, size: int = 300_000) -> dict[str, dict[str, Any]]:
    """Serve about `size` bytes for each corpus that the product fetches, books included.

    Returns:
        for each name, the `size` and `sha256` that the registry must hold for it.
    """
    facts: dict[str, dict[str, Any]] = {}
    for seed, corpus in enumerate(known.DOWNLOADABLE):
        origin = corpus.origin
        if isinstance(origin, HubFile):
            text = table(article_rows(size, seed)) if origin.column else stories(size, seed)
            content = Content(text)
            web.add_hub(origin.repository, origin.revision, origin.path, content)
        elif isinstance(origin, WebFile):
            content = Content(prose(size, seed))
            web.add("/shakespeare.txt", content)
        else:
            continue
        facts[corpus.name] = {"size": content.size, "sha256": content.sha256}
    for seed, (split, count) in enumerate({"train": 120, "validation": 6, "test": 8}.items()):
        books = {str(1000 * seed + i): Content(book(size // 40, 1000 * seed + i)) for i in range(count)}
        web.add_books(split, books)
        facts[f"pg19_{split}"] = {"size": sum(content.size for content in books.values())}
    web.add("/small-sources.json", Content(json.dumps({"facts": facts, "environment": web.environment}).encode()))
    return facts


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(prog="python -m tests.web", description="Serve made-up sources of corpora.")
    parser.add_argument("--port", type=int, default=8400)
    parser.add_argument("--size", type=int, default=300_000, help="bytes a corpus, about")
    parser.add_argument("--bytes-per-s", type=int, default=0, help="how slowly; 0 is as fast as possible")
    options = parser.parse_args()
    with Web(options.port) as web:
        fill(web, options.size)
        if options.bytes_per_s:
            for path in web.paths:
                web.fail(path, then=Fault(bytes_per_s=options.bytes_per_s))
        for name, value in web.environment.items():
            print(f"export {name}={value}")
        print(f"# python tests/with_small_sources.py {web.url} -m engine.download_corpora --list", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
