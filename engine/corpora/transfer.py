"""The way of one file from a server onto the disk, one answer after the other, until its content is verified."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
import urllib3

from engine.corpora.patience import CONNECT_S, READ_S, Trouble, in_background, persist, refusal
from engine.corpora.progress import Progress

_AT_ONCE = 1 << 20  # bytes


@dataclass(frozen=True)
class Digest:
    """A hash that content must have.

    Attributes:
        kind: `SHA-256`, `MD5`, or `git SHA-1`, which is git's of a blob: SHA-1 of "blob <size>\\0" and the content.
        hex: its value.
    """

    kind: str
    hex: str


@dataclass(frozen=True)
class Remote:
    """A file to fetch.

    Attributes:
        name: of the corpus it is for, or of a part of one.
        url: where it is.
        variable: the environment variable that names another place.
        size: bytes; 0 takes the server's word.
        digest: of its content; None takes the hash that the server publishes, where it does.
        version: what kept bytes are a part of; "" stands for the server's ETag. To be set when the address leads to
            different servers, whose ETags need not agree.
    """

    name: str
    url: str
    variable: str
    size: int = 0
    digest: Digest | None = None
    version: str = ""

    @property
    def host(self) -> str:
        with contextlib.suppress(ValueError):
            return urlsplit(self.url).netloc or self.url
        return self.url


class Transfer:
    """The way of one file onto the disk. What the partial file holds is always a beginning of the content."""

    def __init__(
        self, remote: Remote, file: io.FileIO, partial: Path, progress: Progress, session: requests.Session
    ) -> None:
        self.remote, self.file, self.progress, self.session = remote, file, progress, session
        self.note = partial.with_name(f"{partial.name}.version")
        self.version = self.note.read_text("utf-8", "replace") if self.note.exists() else ""
        self.size = remote.size
        self.digest = remote.digest
        self.from_start = False  # the server does not continue files

    @property
    def kept(self) -> int:
        """Bytes that are on the disk."""
        return os.fstat(self.file.fileno()).st_size

    def run(self) -> None:
        """Receive all, and verify it. Content made of several answers that turns out wrong is fetched once more."""
        if (self.size and self.kept > self.size) or self.remote.version not in ("", self.version):
            self.file.truncate(0)
        is_second = False
        may_be_mixed = self.kept > 0
        while True:
            self.progress.begin(f"Downloading {self.remote.name}", self.size or None, kept=self.kept)
            answers = self._receive()
            problem = self._problem()
            if not problem:
                return
            self.file.truncate(0)
            if is_second or (answers <= 1 and not may_be_mixed):
                raise Trouble(problem, lasting=True)
            is_second = True

    def _receive(self) -> int:
        """Ask until all is there; how many answers it took."""
        answers = 0

        def attempt() -> None:
            nonlocal answers
            answers += 1
            self._ask()

        if not (self.size and self.kept == self.size):
            persist(attempt, self.progress, lambda: self.kept)
        return answers

    def _ask(self) -> None:
        """One request: write what arrives behind what is kept."""
        position = 0 if self.from_start or not (self.version or self.digest) else self.kept
        if position and not self.remote.size:
            position -= 1  # one byte is left to ask for even when all is here, and the answer tells size and hash
        headers = {"Accept-Encoding": "identity"}
        if position:
            headers["Range"] = f"bytes={position}-"
            if self.version and not self.remote.version:
                headers["If-Range"] = self.version
        with closing(in_background(lambda: _answer(self.session, self.remote.url, headers), self.progress)) as arriving:
            response = next(arriving)
            assert isinstance(response, requests.Response)
            position = self._accept(response, position)
            self.file.seek(position)
            self.progress.advance(position - self.progress.stage.done)
            for chunk in arriving:
                assert isinstance(chunk, bytes)
                position += len(chunk)
                if self.size and position > self.size:
                    raise Trouble(f"it sent more than the {self.size:,} bytes that were expected", lasting=True)
                self._write(chunk)
                self.progress.advance(len(chunk))
        if self.size and position < self.size:
            raise Trouble(f"it sent only {position:,} of {self.size:,} bytes")
        self.file.truncate(position)

    def _accept(self, response: requests.Response, asked: int) -> int:
        """Judge an answer by its head: the position in the file at which its body belongs."""
        status, headers = response.status_code, response.headers
        if status == 416:
            self.from_start = True
            raise Trouble("it would not continue the file")
        if status not in (200, 206):
            raise refusal(status, response.reason, headers)
        if headers.get("Content-Encoding", "").strip().lower() not in ("", "identity"):
            raise Trouble("it compressed the file though it was asked not to", lasting=True)
        start, total = _extent(status, headers)
        if start != (asked if status == 206 else 0):
            self.from_start = True
            raise Trouble("it sent another part of the file than it was asked for")
        self._check_size(total)
        self._check_version(self.remote.version or _strong_etag(headers), status)
        self.digest = self.remote.digest or _linked(response) or _md5(headers)
        self.size = self.remote.size or total or 0
        if not (self.size or self.digest or headers.get("Transfer-Encoding", "").lower() == "chunked"):
            raise Trouble("it tells neither size nor hash of the file, so that it cannot be verified", lasting=True)
        return start

    def _check_size(self, total: int | None) -> None:
        size = self.remote.size
        if not size or total is None or total == size:
            return
        words = f"it offers {total:,} bytes where {size:,} are expected"
        if total > size:
            raise Trouble(words, lasting=True)
        if self.kept:  # a page of some proxy, perhaps; it must not replace what is kept
            raise Trouble(words)

    def _check_version(self, version: str, status: int) -> None:
        """Let go of kept bytes that belong to another version of the file, and note of which version the new ones are.

        An answer from the start that is of the same version replaces bytes by equal ones, so nothing is let go.
        """
        known = self.version == version and bool(version or self.digest)
        if self.kept and not known:
            self.file.truncate(0)
        if self.version != version:
            self.note.write_text(version, encoding="utf-8")
            self.version = version
        if status == 206 and not known:
            raise Trouble("the file changed at its source meanwhile")

    def _write(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        while rest:
            rest = rest[self.file.write(rest) or 0 :]

    def _problem(self) -> str:
        """Why the content is not what it should be; "" when it is."""
        if self.digest is None:
            return ""
        self.progress.begin(f"Checking {self.remote.name}", self.kept)
        found = _hash_of(self.file, self.digest.kind, self.progress)
        if found == self.digest.hex.lower():
            return ""
        return f"what it sent has the {self.digest.kind} {found[:12]}… instead of {self.digest.hex[:12]}…"


def _answer(session: requests.Session, url: str, headers: dict[str, str]) -> Iterator[requests.Response | bytes]:
    """The head of the answer to a GET, then its body as it arrives. Network errors become `Trouble`."""
    try:
        response = session.get(url, headers=headers, stream=True, timeout=(CONNECT_S, READ_S), auth=_anonymous)
    except requests.Timeout as error:
        raise Trouble(f"it did not answer within {READ_S:.0f} seconds", unreachable=True) from error
    except requests.exceptions.SSLError as error:
        raise Trouble("no secure connection to it can be made", unreachable=True) from error
    except requests.ConnectionError as error:
        raise Trouble("it cannot be reached", unreachable=True) from error
    except requests.RequestException as error:
        raise Trouble(f"{url!r} is no address that can be fetched", lasting=True) from error
    with response:
        yield response
        try:
            while chunk := response.raw.read1(_AT_ONCE, decode_content=False):
                yield chunk
        except urllib3.exceptions.ReadTimeoutError as error:
            raise Trouble(f"nothing arrived from it for {READ_S:.0f} seconds") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Trouble("the connection was cut") from error


def _anonymous(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keeps requests from sending what ~/.netrc holds: all the sources are public."""
    return request


def _extent(status: int, headers: Mapping[str, str]) -> tuple[int, int | None]:
    """Where in the file the body begins (-1: not told), and the file's whole size, when told.

    Google's storage tells the size of the object apart from that of the answer.
    """
    stored = headers.get("x-goog-stored-content-length", "")
    if status == 200:
        length = stored or headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
    if not match:
        return -1, None
    length = stored or match[2]
    return int(match[1]), int(length) if length.isdecimal() else None


def _strong_etag(headers: Mapping[str, str]) -> str:
    """The ETag if it promises equal bytes, else "": only such a one may stand in If-Range (RFC 9110, 13.1.5)."""
    etag = headers.get("ETag", "").strip()
    return etag if etag.startswith('"') else ""


def _linked(response: requests.Response) -> Digest | None:
    """The SHA-256 that the hub tells of a large file when it sends its client elsewhere."""
    for answer in (*response.history, response):
        if match := re.fullmatch(r'"?([0-9a-fA-F]{64})"?', answer.headers.get("X-Linked-Etag", "").strip()):
            return Digest("SHA-256", match[1])
    return None


def _md5(headers: Mapping[str, str]) -> Digest | None:
    """The MD5 that object stores publish: in x-goog-hash (base64), or as an ETag of 32 hexadecimal digits."""
    if match := re.search(r"\bmd5=([A-Za-z0-9+/]{22}==)", headers.get("x-goog-hash", "")):
        return Digest("MD5", b64decode(match[1]).hex())
    if match := re.fullmatch(r'"([0-9a-fA-F]{32})"', headers.get("ETag", "").strip()):
        return Digest("MD5", match[1])
    return None


def _hash_of(file: io.FileIO, kind: str, progress: Progress) -> str:
    names = {"SHA-256": "sha256", "MD5": "md5", "git SHA-1": "sha1"}
    hasher = hashlib.new(names[kind], usedforsecurity=False)
    if kind == "git SHA-1":
        hasher.update(f"blob {os.fstat(file.fileno()).st_size}\0".encode())
    file.seek(0)
    while chunk := file.read(_AT_ONCE):
        hasher.update(chunk)
        progress.advance(len(chunk))
    return hasher.hexdigest()
