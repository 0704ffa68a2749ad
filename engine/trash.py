"""Deleting runs so that it can be undone: a deleted run is in `runs/.trash/` until the trash is emptied.

A run is moved by one rename, so a process that is killed leaves it whole, here or there. Its folder in the trash is
named after the time and its id, such as `20261122T153012123456.20261122-153012-nano-verdict-7f3a`.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from engine.errors import RunError, storage_sentence
from engine.files import remove_folder, remove_trash
from engine.labels import showable
from engine.paths import runs_dir
from engine.run import Run, is_id, run_lock

_TIME = "%Y%m%dT%H%M%S%f"


def trash_dir() -> Path:
    """The folder that holds deleted runs."""
    return runs_dir() / ".trash"


@dataclass(frozen=True)
class Trashed:
    """A run in the trash.

    Attributes:
        entry: what it is called there; the same id can be there more than once.
        run_id: the id it had, and gets back.
        deleted: when, in UTC.
    """

    entry: str
    run_id: str
    deleted: datetime

    @property
    def folder(self) -> Path:
        """Where it is now."""
        return trash_dir() / self.entry

    @property
    def name(self) -> str:
        """The run's name, or its id when nobody can read the name."""
        name = Run(self.folder).info.get("name")
        return showable(name) if isinstance(name, str) and name else self.run_id

    @property
    def bytes(self) -> int:
        """What its files take on the disk; what vanishes meanwhile counts nothing."""
        total = 0
        for folder, _, files in os.walk(self.folder):
            for file in files:
                try:
                    total += os.lstat(os.path.join(folder, file)).st_size
                except OSError:
                    continue
        return total


def trash_run(run_id: str) -> Trashed:
    """Move a run, or what is left of a damaged one, to the trash. The disk space comes back when that is emptied.

    Raises:
        RunError: there is none, it is being trained, or it cannot be moved. It is then where it was.
    """
    folder = _folder_of(run_id)
    lock = run_lock(folder)
    try:
        if not lock.acquire(patience_s=0.2):
            raise RunError(f"Run {run_id} is being trained now. Stop it first, then delete it.")
        trash_dir().mkdir(exist_ok=True)
        trashed = _new_entry(run_id)
        folder.rename(trashed.folder)
    except OSError as error:
        raise RunError(f"Run {run_id} cannot be deleted. {storage_sentence(error, folder)}") from error
    finally:
        lock.release()
    return trashed


def _folder_of(run_id: str) -> Path:
    folder = runs_dir() / run_id
    if not is_id(run_id):
        raise RunError(f"{run_id!r} is not the id of a run; ids look like 20261122-153012-nano-verdict-7f3a.")
    if not folder.is_dir():
        raise RunError(f"There is no run {run_id} in {runs_dir()}.")
    return folder


def _new_entry(run_id: str) -> Trashed:
    while True:
        deleted = datetime.now(UTC)
        trashed = Trashed(f"{deleted:{_TIME}}.{run_id}", run_id, deleted)
        if not trashed.folder.exists():  # the same run, restored and deleted within a microsecond: as good as never
            return trashed


def list_trash() -> list[Trashed]:
    """What is in the trash, the last deleted first. What was not put there by `trash_run` is left out."""
    try:
        names = sorted(os.listdir(trash_dir()), reverse=True)
    except OSError:
        return []
    return [trashed for name in names if (trashed := _parse(name))]


def _parse(entry: str) -> Trashed | None:
    time, _, run_id = entry.partition(".")
    try:
        deleted = datetime.strptime(time, _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None
    return Trashed(entry, run_id, deleted) if is_id(run_id) else None


def restore_run(name: str) -> Run:
    """Undo a deletion.

    Args:
        name: an entry of the trash, or the id of a run, of which the last deleted is taken.

    Raises:
        RunError: it is not in the trash, there is a run with its id again, or it cannot be moved. Nothing has changed.
    """
    found = next((trashed for trashed in list_trash() if name in (trashed.entry, trashed.run_id)), None)
    if found is None:
        raise RunError(f"There is no run {name!r} in the trash.")
    folder = runs_dir() / found.run_id
    if folder.exists():
        raise RunError(f"Run {found.run_id} cannot be restored: there is a run with this id. Delete that one first.")
    try:
        found.folder.rename(folder)
    except OSError as error:
        raise RunError(f"Run {found.run_id} cannot be restored. {storage_sentence(error, folder)}") from error
    return Run(folder)


def empty_trash(entries: Collection[str] | None = None) -> int:
    """Delete for good what is in the trash, or those entries of it. Returns how many runs were deleted.

    Raises:
        RunError: one cannot be deleted; those before it are gone.
    """
    remove_trash(trash_dir())  # what an earlier call was killed in
    gone = 0
    for trashed in list_trash():
        if entries is None or trashed.entry in entries:
            try:
                _remove(trashed.folder)
            except OSError as error:
                raise RunError(
                    f"Run {trashed.run_id} cannot be deleted for good. {storage_sentence(error, trashed.folder)}"
                ) from error
            gone += 1
    return gone


def _remove(folder: Path) -> None:
    if folder.is_symlink():  # a run that is kept elsewhere: what the link leads to is not ours to delete
        folder.unlink()
    else:
        remove_folder(folder)
