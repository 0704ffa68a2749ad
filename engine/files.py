"""Writing so that a reader, or a crash, sees the old file or the new one and nothing between."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from engine.errors import CorpusError

_LOOKS_S = 10.0  # how long a lock that others only look at is waited for: a gap comes within milliseconds


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write(temporary)` for a file beside `path`, then fsync it and move it into place.

    Args:
        path: the file that will exist, whole, afterwards.
        write: fills the temporary file that it is given.

    Raises:
        OSError: when the disk is full or the folder cannot be written; `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def require_space(folder: Path, size: int, what: str) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        folder: where it will be written.
        size: bytes it will take, an estimate on the safe side.
        what: will be written, in the plural, for the message.

    Raises:
        CorpusError: there is less free.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise CorpusError(
            f"{what[:1].upper()}{what[1:]} need about {size / 1e6:,.1f} MB, and the disk that holds {folder} has "
            f"{free / 1e6:,.1f} MB free. Free some space, then try again."
        )


def remove_parts(path: Path) -> None:
    """Delete what killed writers of `path` left beside it; its name may be a pattern. Only for its one writer."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON, atomically. NaN and infinities are refused: they are not JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(path, lambda temporary: _write_text(temporary, text))


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let no other caller for this folder in, of this process or another, until the block ends. It may not nest.

    Raises:
        OSError: the folder cannot be opened.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # some network drives lock no folders
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_temporary(path: Path, text: str) -> None:
    """Replace `path` for readers of this moment, without waiting for the disk: it may be lost when power fails."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`, or None when there is none, or it is torn or foreign."""
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def object_in(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The JSON object that stands under a name; {} for anything else, which a damaged or foreign file may hold."""
    value = values.get(name)
    return value if isinstance(value, dict) else {}


def parse_json(text: str) -> Any:
    """Like `json.loads`, for values that will be written and shown: JSON can spell half of a surrogate pair,
    which is no character and no file can keep; a question mark stands for it then.

    Raises:
        ValueError: it is no JSON.
        RecursionError: it is nested too deep.
    """
    value = json.loads(text)
    if r"\ud" in text.lower():
        value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    return value


def remove_folder(folder: Path) -> None:
    """Delete a folder in one visible step: it is first renamed to a hidden name, then emptied."""
    grave = folder.with_name(f".trash-{folder.name}-{time.time_ns()}")
    folder.rename(grave)
    shutil.rmtree(grave, ignore_errors=True)


def remove_trash(parent: Path) -> None:
    """Finish what `remove_folder` was killed in, for folders inside `parent`."""
    for grave in parent.glob(".trash-*"):
        shutil.rmtree(grave, ignore_errors=True)


class FolderLock:
    """An advisory lock (flock) that ends with the process that holds it, however it ends.

    The file stays; only the lock on it matters. What the holder writes into it tells others who it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self, note: str = "", patience_s: float = 1.0) -> bool:
        """Take the lock; False when another holder keeps it for longer than `patience_s` seconds.

        Those who only look (`is_held`) have it for an instant too, many pages nearly all the time: they do not count
        as holders, and their gaps are waited for.
        """
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        began = time.monotonic()
        while not _flock(handle, fcntl.LOCK_EX):
            is_held = self.is_held()
            if time.monotonic() - began >= (patience_s if is_held else patience_s + _LOOKS_S):
                os.close(handle)
                return False
            time.sleep(0.02 if is_held else 0.001)
        try:
            os.ftruncate(handle, 0)
            os.write(handle, note.encode())
        except OSError:
            os.close(handle)
            raise
        self._handle = handle
        return True

    @property
    def is_mine(self) -> bool:
        """Whether this object holds the lock."""
        return self._handle is not None

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def note(self) -> str:
        """What the last holder wrote about itself."""
        try:
            return self.path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def is_held(self) -> bool:
        """Whether some process, this one included, holds the lock now."""
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return not _flock(handle, fcntl.LOCK_SH)
        finally:
            os.close(handle)


def _flock(handle: int, kind: int) -> bool:
    """Take a lock of a kind on an open file; False when another one keeps it from being taken now."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
