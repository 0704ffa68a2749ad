"""The list of all runs: one cheap row for each folder under `runs/`, whatever is in it.

A row is made of `run.json` and `labels.json` alone and kept until one of them changes, so that asking again costs a
few system calls a folder.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from engine.errors import storage_sentence
from engine.files import object_in, read_json
from engine.labels import LABELS_FILE, MAX_TAGS, read_labels, showable
from engine.paths import runs_dir
from engine.run import ACTIVE_STATES, STATES, is_id, load_run, run_lock

_LARGEST = 2**53  # beyond it a number counts nothing any more, and does not fit a column of 64-bit numbers


@dataclass(frozen=True)
class Summary:
    """A run in one line. What was not measured, or cannot be read, is None or empty.

    Attributes:
        id: the folder's name; see `engine.run.is_id`.
        state: one of `engine.run.STATES`.
        name, notes, tags, starred: what people say about it.
        config: the preset.
        corpus: what it trains on.
        step, total_steps: optimizer steps done, and planned.
        tokens: trained on.
        train_loss: of the last step, nats per token.
        val_loss: measured last, nats per token.
        best_val_loss: the lowest that was measured, nats per token.
        tokens_per_s: at the last step.
        elapsed_s: training time in seconds, pauses left out.
        created: when it was started, ISO 8601 in UTC.
        parent, parent_step: the run and step that it was branched from.
        problem: why this is not a whole run, a sentence; empty for a whole one.
    """

    id: str
    state: str = "interrupted"
    name: str = ""
    notes: str = ""
    tags: tuple[str, ...] = ()
    starred: bool = False
    config: str = ""
    corpus: str = ""
    step: int | None = None
    total_steps: int | None = None
    tokens: int | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    best_val_loss: float | None = None
    tokens_per_s: float | None = None
    elapsed_s: float | None = None
    created: str = ""
    parent: str = ""
    parent_step: int | None = None
    problem: str = ""

    @property
    def is_active(self) -> bool:
        """Whether some process trains it."""
        return self.state in ACTIVE_STATES


def list_summaries() -> list[Summary]:
    """Every folder under `runs/`, newest first; those that are no whole runs have a `problem`. Never raises."""
    parent = str(runs_dir())
    try:
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry)]
    except OSError:
        return []
    folders = [os.path.join(parent, name) for name in sorted(names, reverse=True)]
    with _lock:
        for gone in _cache.keys() - set(folders):
            del _cache[gone]
        found = [_summary(folder) for folder in folders]
    return [summary for summary in found if summary is not None]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is one, or a link to one; a link that leads nowhere or in a circle is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


Key = tuple[tuple[int, int, int] | None, ...]
_cache: dict[str, tuple[Key, Summary]] = {}
_lock = Lock()


def summary_of(run_id: str) -> Summary:
    """One run's row.

    Raises:
        RunError: there is none.
    """
    with _lock:
        return _summary(str(load_run(run_id).folder)) or Summary(run_id, "preparing")


def _summary(folder: str) -> Summary | None:
    """One folder's row; its state is asked anew while it claims to be active. None for a run that is just beginning."""
    try:
        key = (_file_key(f"{folder}/run.json"), _file_key(f"{folder}/{LABELS_FILE}"))
    except OSError as error:
        path = Path(folder)
        return Summary(showable(path.name), name=showable(path.name), problem=showable(storage_sentence(error, path)))
    if key[0] is None and run_lock(Path(folder)).is_held():
        return None
    known = _cache.get(folder)
    if known is None or known[0] != key:
        known = _cache[folder] = (key, _read(Path(folder)))
    summary = known[1]
    if summary.is_active and not run_lock(Path(folder)).is_held():
        return dataclasses.replace(summary, state="interrupted")
    return summary


def _file_key(path: str) -> tuple[int, int, int] | None:
    """Changes whenever the file is replaced or written; None when it is not there."""
    try:
        stat = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _read(folder: Path) -> Summary:
    """A folder's row with the state that `run.json` claims."""
    info = read_json(folder / "run.json") or {}
    labels = read_labels(folder)
    config, progress, parent = (object_in(info, name) for name in ("config", "progress", "parent"))
    told = info | labels
    tags = told.get("tags")
    return Summary(
        id=showable(folder.name),
        state=info["state"] if info.get("state") in STATES else "interrupted",
        name=_text(told, "name") or showable(folder.name),
        notes=_text(told, "notes"),
        tags=tuple(showable(tag) for tag in tags[:MAX_TAGS] if isinstance(tag, str)) if isinstance(tags, list) else (),
        starred=told.get("starred") is True,
        config=_text(config, "config"),
        corpus=_text(config, "corpus"),
        step=_count(progress, "step"),
        total_steps=_count(info, "total_steps"),
        tokens=_count(progress, "tokens"),
        train_loss=_number(progress, "train_loss"),
        val_loss=_number(progress, "val_loss"),
        best_val_loss=_number(progress, "best_val_loss"),
        tokens_per_s=_number(progress, "tokens_per_s"),
        elapsed_s=_number(progress, "elapsed_s"),
        created=_text(info, "created"),
        parent=_text(parent, "run"),
        parent_step=_count(parent, "step"),
        problem=_problem(folder, info),
    )


def _problem(folder: Path, info: Mapping[str, Any]) -> str:
    """Why a folder is not a whole run."""
    if not (folder / "run.json").exists():
        return "It has no run.json, so it is no run of this lab. Move it elsewhere, or delete it."
    if not is_id(folder.name):
        return "Its name is not the id of a run: those have only letters, digits, - and _. Rename the folder."
    if not info:
        return "Its run.json is damaged. Put it back from a backup, or delete the run."
    objects = {"config": info.get("config"), "progress": info.get("progress", {})}  # a run has no progress at first
    wrong = [name for name, value in objects.items() if not isinstance(value, dict)]
    wrong += ["state"] * (info.get("state") not in STATES)
    return f"Its run.json is damaged or foreign: {' and '.join(wrong)} cannot be read." if wrong else ""


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    return showable(value) if isinstance(value, str) else ""


def _number(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < _LARGEST:
        return None
    return value


def _count(values: Mapping[str, Any], name: str) -> int | None:
    value = _number(values, name)
    return None if value is None else int(value)
