"""One file from one address: continued where it was cut, tried again with patience, verified before it is there."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter

from engine.corpora.patience import Trouble
from engine.corpora.progress import Progress
from engine.corpora.transfer import Remote, Transfer
from engine.errors import CorpusError
from engine.files import FolderLock, fsync_folder
from engine.paths import corpora_dir


class FetchError(CorpusError):
    """A file that could not be fetched; the message is whole.

    Attributes:
        reason: the part of the message that says why.
        host: that was asked.
        unreachable: the server never answered.
    """

    def __init__(self, remote: Remote, trouble: Trouble, kept: int) -> None:
        self.reason = str(trouble)
        self.host = remote.host
        self.unreachable = trouble.unreachable
        advice = f"{remote.url} was asked; try again later, or name another place in {remote.variable}."
        if not trouble.lasting:
            advice = "Try again" + (
                f": {readable(kept)} are kept and will not be fetched again." if kept else " later."
            )
        super().__init__(f"Corpus {remote.name} could not be downloaded from {remote.host}: {self.reason}. {advice}")


def sources_dir() -> Path:
    """The folder of what was fetched and is not a corpus yet; made when it is not there."""
    folder = corpora_dir() / ".sources"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def alone(name: str, progress: Progress) -> Iterator[None]:
    """Wait until nobody else, in this process or another, is at the same corpus."""
    lock = FolderLock(sources_dir() / f"{name}.lock")
    while not lock.acquire(patience_s=0.1):
        progress.check()
    try:
        yield
    finally:
        lock.release()


def readable(size: int) -> str:
    """Bytes for people: `1.4 MiB`."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size} bytes"


def new_session() -> requests.Session:
    """Connections that are used again, from several threads too."""
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=16))
    return session


def settle(part: Path, target: Path) -> None:
    """Move a finished file into place so that it is there whole, or not at all, even when power fails."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(target)
    fsync_folder(target.parent)


def fetch(
    remote: Remote, target: Path, partial: Path, progress: Progress, session: requests.Session | None = None
) -> None:
    """Make `target` exist, with the right content. Does nothing when it is there.

    What arrived of an attempt stays in `partial`, whatever ended it, and the next one continues it. Several processes
    may ask for the same file: one fetches it and the others wait.

    Args:
        remote: what to fetch.
        target: the file that is put in place when it is complete and verified.
        partial: on the same disk; a small file beside it says of which version it is a part.
        progress: told the bytes.
        session: whose connections are used; a new one by default.

    Raises:
        FetchError: it could not be had.
        CancelledError: somebody asked to stop.
        OSError: the disk refuses.
    """
    with _claimed(partial, target, progress) as file:
        if file is None:
            return
        with contextlib.nullcontext(session) if session else new_session() as connections:
            transfer = Transfer(remote, file, partial, progress, connections)
            try:
                transfer.run()
            except Trouble as trouble:
                raise FetchError(remote, trouble, transfer.kept) from trouble
        settle(partial, target)
        transfer.note.unlink(missing_ok=True)


@contextlib.contextmanager
def _claimed(partial: Path, target: Path, progress: Progress) -> Iterator[io.FileIO | None]:
    """The partial file, open, and locked for this process; None once another one has finished the work."""
    while not target.exists():
        progress.check()
        with io.FileIO(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+") as file:
            if not _try_lock(file):
                time.sleep(0.05)
            elif not _is_at(file, partial):
                pass  # it was moved into place while this process waited for the lock
            elif target.exists():
                partial.unlink()
            else:
                yield file
                return
    yield None


def _try_lock(file: io.FileIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: io.FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
