"""A run is a folder: the training loop writes it, everything else reads it.

`Run` reads one, live or finished. `ActiveRun` is the one writer: it holds the run's lock, and the lock of the device.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pandas as pd

from engine.checkpoint import Checkpoint, forget_after, list_checkpoints
from engine.config import SETTINGS, TrainConfig, from_dict, to_dict
from engine.errors import CheckpointError, ConfigError, RunBusyError, RunError, storage_sentence
from engine.files import FolderLock, parse_json, read_json, remove_folder, remove_parts, remove_trash, write_json
from engine.labels import LABELS_FILE, read_labels
from engine.metrics import METRICS, SAMPLES, Columns
from engine.paths import runs_dir
from engine.plan import Plan
from engine.tables import (
    Signature,
    TableWriter,
    file_key,
    find_problems,
    read_columns,
    read_table,
    read_table_from,
    table_signature,
)

SCHEMA_VERSION = 1
ACTIVE_STATES = ("preparing", "running", "paused")
STATES = (*ACTIVE_STATES, "stopped", "completed", "failed", "interrupted")
REQUESTS = ("pause", "resume", "save", "stop")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,120}")


def now() -> str:
    """The time in UTC as ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Event:
    """Something that happened to a run, for its log."""

    time: str
    step: int
    kind: str  # started, resumed, paused, unpaused, saved, stopped, completed, failed, warning
    message: str


class Run:
    """A run as a reader sees it. Every property reads the folder anew; nothing raises because a file is torn.

    Attributes:
        id: the folder's name.
        folder: its path.
    """

    def __init__(self, folder: Path) -> None:
        self.id = folder.name
        self.folder = folder

    def __repr__(self) -> str:
        return f"Run({self.id!r}, {self.state})"

    @property
    def info(self) -> dict[str, Any]:
        """`run.json` with the labels that people gave the run: id, name, notes, tags, starred, state, config, parent,
        environment, progress. When `run.json` is damaged, only the labels are there."""
        return (read_json(self.folder / "run.json") or {}) | read_labels(self.folder)

    @property
    def state(self) -> str:
        """One of `STATES`. `interrupted` is said of a run that claims to be active while nobody holds its lock."""
        return self.state_of(self.info)

    def state_of(self, info: Mapping[str, Any]) -> str:
        """The state, when `info` is at hand already."""
        state = info.get("state")
        if state in ACTIVE_STATES:
            return cast(str, state) if self.is_locked else "interrupted"
        return cast(str, state) if state in STATES else "interrupted"

    @property
    def is_locked(self) -> bool:
        """Whether a process is training it now."""
        return run_lock(self.folder).is_held()

    @property
    def config(self) -> TrainConfig:
        """The settings it trains with, every automatic value filled in.

        Raises:
            RunError: `run.json` is damaged.
        """
        return read_config(self.info.get("config"), self.id)

    @property
    def total_steps(self) -> int:
        """Optimizer steps that were planned; 0 when `run.json` is damaged."""
        total = self.info.get("total_steps")
        return total if isinstance(total, int) else 0

    @property
    def world_size(self) -> int:
        """Processes that trained it together when it was last started."""
        size = self.info.get("world_size")
        return size if isinstance(size, int) and size > 0 else 1

    @property
    def metrics(self) -> pd.DataFrame:
        """One row a step, columns of `engine.metrics.METRICS`."""
        return read_table(self.folder, "metrics", METRICS)[0]

    def columns(self, *names: str) -> Columns:
        """Some columns of the metrics; the others are not read. They are not to be written into.

        Raises:
            KeyError: the metrics have no such column.
        """
        return read_columns(self.folder, "metrics", METRICS, names)[0]

    def metrics_from(self, step: int) -> pd.DataFrame:
        """The metrics of a step and of later ones; cheap while a long run grows."""
        return read_table_from(self.folder, "metrics", METRICS, step)

    @property
    def samples(self) -> pd.DataFrame:
        """Generated texts, columns of `engine.metrics.SAMPLES`."""
        return read_table(self.folder, "samples", SAMPLES)[0]

    @property
    def problems(self) -> list[str]:
        """A sentence for each damaged or foreign file that readers skip."""
        return self.problems_in(*METRICS.names)

    def problems_in(self, *names: str) -> list[str]:
        """The same for a reader of some columns of the metrics; the others are not read."""
        found = [] if read_json(self.folder / "run.json") else ["run.json is missing or damaged."]
        found += find_problems(self.folder, "metrics", METRICS, names)
        found += find_problems(self.folder, "samples", SAMPLES, SAMPLES.names)
        found += [f"{path.name} was set aside: it is no table of this run." for path in self.folder.glob("*.damaged-*")]
        return found + [f"{c.path.name}: {c.problem}" for c in self.checkpoints if c.problem]

    @property
    def signature(self) -> tuple[Any, ...]:
        """Changes whenever there may be news in the run's state, metrics, samples or events; cheap to ask."""
        files = [file_key(self.folder / name) for name in ("run.json", LABELS_FILE, "events.jsonl")]
        tables: list[Signature] = [table_signature(self.folder, name) for name in ("metrics", "samples")]
        return (self.is_locked, *files, *tables)

    @property
    def events(self) -> list[Event]:
        """The run's log, oldest first; a torn last line is left out."""
        try:
            lines = (self.folder / "events.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        return [event for line in lines if (event := parse_event(line))]

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """All checkpoints by step, damaged ones marked."""
        return list_checkpoints(self.folder)

    def request(self, what: str) -> None:
        """Ask the process that trains this run, whichever it is, to `pause`, `resume`, `save` or `stop`.

        Raises:
            RunError: nobody is training it, or it cannot be written.
        """
        assert what in REQUESTS
        if not self.is_locked:
            raise RunError(f"Run {self.id} is not being trained now.")
        try:
            write_json(self.folder / f"request-{what}.json", {"time": now()})  # one file a wish: none hides another
        except OSError as error:
            raise RunError(storage_sentence(error, self.folder)) from error


def read_config(values: Any, run_id: str) -> TrainConfig:
    """The config stored in a run; settings that a newer lab no longer has are ignored.

    Raises:
        RunError: it is damaged.
    """
    if not isinstance(values, dict):
        raise RunError(f"Run {run_id} cannot be used: its run.json is missing or damaged.")
    try:
        return from_dict({name: value for name, value in values.items() if name in SETTINGS})
    except ConfigError as error:
        problems = "; ".join(f"{problem.field}: {problem.message.removesuffix('.')}" for problem in error.problems)
        raise RunError(
            f"Run {run_id} cannot be used: its run.json holds a setting that is out of range ({problems})."
        ) from error


def parse_event(line: str) -> Event | None:
    """The event in a line of `events.jsonl`; None when it is torn or foreign."""
    try:
        value = parse_json(line)
        return Event(str(value["time"]), int(value["step"]), str(value["kind"]), str(value["message"]))
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def is_id(name: str) -> bool:
    """Whether a run can have this name for its id: letters, digits, - and _, and never a path."""
    return _ID.fullmatch(name) is not None


def list_runs() -> list[Run]:
    """All runs, newest first. Folders without a `run.json` are foreign and left out."""
    try:
        folders = [path for path in runs_dir().iterdir() if is_id(path.name) and (path / "run.json").exists()]
    except OSError:
        return []
    return [Run(path) for path in sorted(folders, key=lambda path: path.name, reverse=True)]


def load_run(run_id: str) -> Run:
    """The run called `run_id`.

    Raises:
        RunError: there is none; what is no plain folder name, such as `../x`, is refused unread.
    """
    if not isinstance(run_id, str) or not is_id(run_id):
        raise RunError(f"{run_id!r} is not the id of a run; ids look like 20261122-153012-nano-verdict-7f3a.")
    folder = runs_dir() / run_id
    if not (folder / "run.json").is_file():
        raise RunError(f"There is no run {run_id} in {runs_dir()}.")
    return Run(folder)


def delete_checkpoint(run_id: str, step: int) -> None:
    """Delete one checkpoint of a run; its log says so.

    Raises:
        RunError: there is no such run, it is being trained, or the checkpoint cannot be deleted.
        CheckpointError: it is not there.
    """
    run = load_run(run_id)
    lock = run_lock(run.folder)
    try:
        if not lock.acquire(patience_s=0.2):
            raise RunError(f"Run {run_id} is being trained now. Stop it first, then delete the checkpoint.")
        found = [checkpoint for checkpoint in run.checkpoints if checkpoint.step == step]
        if not found:
            raise CheckpointError(f"Run {run_id} has no checkpoint at step {step} any more.")
        remove_folder(found[0].path)
        _append_event(run.folder, Event(now(), step, "deleted", f"Deleted the checkpoint at step {step}."))
    except OSError as error:
        raise RunError(f"The checkpoint cannot be deleted. {storage_sentence(error, run.folder)}") from error
    finally:
        lock.release()


def active_runs() -> list[Run]:
    """The runs that some process is training now, newest first.

    They are those that hold a device: what it costs to ask does not grow with the number of runs.
    """
    held = {FolderLock(path).note() for path in runs_dir().glob(".lock-*") if FolderLock(path).is_held()}
    runs = [Run(runs_dir() / run_id) for run_id in sorted(held, reverse=True) if is_id(run_id)]
    return [run for run in runs if run.is_locked and run.state in ACTIVE_STATES]


class ActiveRun:
    """A run that this process may write. `open` makes it so, by the device's lock and the run's; `close` ends it.

    Args:
        run_id: of the run; its folder is made when it is not there.
        plan: what the run will do; `plan.config` is the resolved config.
        info: the content of `run.json`.
        start_from: the checkpoint to continue from (its own, or for a branch the parent's); None for fresh weights.
        devices: of this machine that it trains on; none stands for that of the config alone.
        lock: the run's lock, when it was taken already.
    """

    def __init__(
        self,
        run_id: str,
        plan: Plan,
        info: dict[str, Any],
        start_from: Checkpoint | None = None,
        devices: Sequence[str] = (),
        lock: FolderLock | None = None,
    ) -> None:
        self.id = run_id
        self.folder = runs_dir() / run_id
        self.plan = plan
        self.config = plan.config
        self.start_from = start_from
        self._info = info
        self._device_locks = [device_lock(device) for device in devices or (self.config.device,)]
        self._lock = lock or run_lock(self.folder)
        self._progress_at = 0.0

    @property
    def reader(self) -> Run:
        """The same run as others see it."""
        return Run(self.folder)

    @property
    def is_branch(self) -> bool:
        """Whether it starts from a checkpoint of another run."""
        return self.start_from is not None and self.start_from.run_id != self.id

    @property
    def keeps_text(self) -> bool:
        """Whether it goes on in the text of the checkpoint it starts from; a branch on another text does not."""
        return not self.is_branch or bool(self._info["progress"]["position"])

    @property
    def keeps_optimizer(self) -> bool:
        """Whether the checkpoint it starts from has a state for its optimizer."""
        return "optimizer" not in (self._info["parent"] or {}).get("changes", {}) or not self.is_branch

    @property
    def progress(self) -> dict[str, Any]:
        """The last logged step's numbers: step, position, losses and so on; what was not finite is None."""
        return dict(self._info["progress"])

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return int(self._info["progress"]["step"])

    def open(self) -> ActiveRun:
        """Take the locks, make the folder, open the tables.

        Raises:
            RunBusyError: another run holds the device, or another process trains this run. Nothing was changed.
            RunError: the folder cannot be written.
        """
        try:
            runs_dir().mkdir(parents=True, exist_ok=True)
            for lock in self._device_locks:
                if not lock.acquire(note=self.id, patience_s=0.3):
                    raise _busy(lock)
            self.folder.mkdir(exist_ok=True)
            if not (self._lock.is_mine or self._lock.acquire(note=str(os.getpid()))):
                raise RunBusyError(f"Run {self.id} is already being trained.", self.id)
            self._open_tables()
            remove_trash(runs_dir())
            self.set_state("preparing")
        except OSError as error:
            self._give_up()
            raise RunError(storage_sentence(error, self.folder)) from error
        except BaseException:
            self._give_up()
            raise
        return self

    def _give_up(self) -> None:
        self.close()
        if not (self.folder / "run.json").exists():  # a new run that never came to be
            shutil.rmtree(self.folder, ignore_errors=True)

    def _open_tables(self) -> None:
        while self.take_request():  # of a process that is gone
            pass
        self._metrics = TableWriter(self.folder, "metrics", METRICS)
        self._samples = TableWriter(self.folder, "samples", SAMPLES)
        remove_parts(self.folder / "run.json")

    def rewind(self) -> None:
        """Forget the rows and checkpoints after the checkpoint that is resumed from: they are made anew.

        Only once that checkpoint was loaded: had it been damaged, they would be all that is left of their steps.
        """
        if self.start_from and not self.is_branch:
            self._metrics.compact(last_step=self.start_from.step)
            self._samples.compact(last_step=self.start_from.step)
            forget_after(self.folder, self.start_from.step)

    def close(self) -> None:
        """Give the locks back. The state should have been set to a final one before."""
        self._lock.release()
        for lock in self._device_locks:
            lock.release()

    def log(self, row: dict[str, Any]) -> None:
        """Log one step; `time` is filled in. On disk within a second."""
        self._metrics.append({"time": datetime.now(UTC), **row})
        self._note_progress(row)

    def _note_progress(self, row: dict[str, Any]) -> None:
        progress = self._info["progress"]
        for name in ("step", "position", "epoch", "tokens", "elapsed_s", "train_loss", "tokens_per_s", "memory_gib"):
            progress[name] = _finite(row.get(name))
        if row.get("val_loss") is not None:
            progress["val_loss"], progress["val_step"] = _finite(row["val_loss"]), row["step"]
            best = progress.get("best_val_loss")
            if progress["val_loss"] is not None and (best is None or progress["val_loss"] < best):
                progress["best_val_loss"], progress["best_val_step"] = progress["val_loss"], row["step"]
        if time.monotonic() - self._progress_at > 5:
            self._write_info()

    def log_sample(self, row: dict[str, Any]) -> None:
        """Log one generated text; `time` is filled in. On disk at once."""
        self._samples.append({"time": datetime.now(UTC), **row})
        self._samples.flush()

    def event(self, kind: str, message: str, step: int | None = None) -> None:
        """Append to the run's log."""
        _append_event(self.folder, Event(now(), self.step if step is None else step, kind, message))

    def flush(self) -> None:
        """Put everything that was logged on disk now, for example before something that takes long."""
        self._metrics.flush()
        self._samples.flush()

    def set_state(self, state: str, error: str = "") -> None:
        """Change the state in `run.json`; `error` is the sentence for a failed run."""
        assert state in STATES and state != "interrupted"
        self._info["state"] = state
        self._info["error"] = error
        if state not in ACTIVE_STATES:
            self._info["ended"] = now()
        self._write_info()

    def note(self, **facts: Any) -> None:
        """Add facts to `run.json`, for example the true number of parameters."""
        self._info.update(facts)
        self._write_info()

    def _write_info(self) -> None:
        write_json(self.folder / "run.json", self._info)
        self._progress_at = time.monotonic()

    def finish(self) -> None:
        """Flush and compact: a run that ended is one file a table."""
        self._metrics.compact()
        self._samples.compact()

    def take_request(self) -> str | None:
        """What another process asked for with `Run.request`, once and oldest first; None when there is nothing."""
        asked = [(key, what) for what in REQUESTS if (key := file_key(self.folder / f"request-{what}.json"))]
        if not asked:
            return None
        what = min(asked, key=lambda entry: entry[0][1])[1]  # by the time it was written
        (self.folder / f"request-{what}.json").unlink(missing_ok=True)
        return what


def _append_event(folder: Path, event: Event) -> None:
    with (folder / "events.jsonl").open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        torn = file.read() not in (b"", b"\n")  # by a disk that was full
        file.write((b"\n" * torn) + json.dumps(dataclasses.asdict(event)).encode() + b"\n")


def _finite(value: Any) -> Any:
    """JSON has no NaN; a value that is not finite is left out of the progress (the metrics have it)."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run_lock(folder: Path) -> FolderLock:
    """The lock that the process that trains a run holds."""
    return FolderLock(folder / "lock")


def device_lock(device: str) -> FolderLock:
    """The lock that lets one run at a time train on a device of this machine."""
    return FolderLock(runs_dir() / f".lock-{device.replace(':', '-')}")


def _busy(lock: FolderLock) -> RunBusyError:
    run_id = lock.note()
    who = f"Run {run_id}" if run_id else "Another run"
    return RunBusyError(f"{who} is training on this device now. Stop it first, or wait until it is done.", run_id)


def new_id(config: TrainConfig) -> str:
    """An id for a new run, such as 20261122-153012-nano-verdict-7f3a: local time, preset, corpus, a random end."""
    corpus = re.sub(r"[^A-Za-z0-9]+", "-", config.corpus)[:40]
    return f"{datetime.now():%Y%m%d-%H%M%S}-{config.config}-{corpus}-{secrets.token_hex(2)}"


def new_info(run_id: str, plan: Plan, *, name: str = "", notes: str = "", **facts: Any) -> dict[str, Any]:
    """The first content of `run.json`.

    Args:
        run_id: of the run.
        plan: what it will do.
        name: for people; made from preset and corpus when empty.
        notes: for people.
        facts: environment, corpus, requested settings, parent.
    """
    config = plan.config
    return {
        "schema_version": SCHEMA_VERSION,
        "id": run_id,
        "name": name or f"{config.config} on {config.corpus}",
        "notes": notes,
        "tags": [],
        "state": "preparing",
        "error": "",
        "created": now(),
        "ended": None,
        "config": to_dict(config),
        "total_steps": plan.total_steps,
        "windows": plan.windows,
        "train_tokens": plan.train_tokens,
        "val_tokens": plan.val_tokens,
        "world_size": plan.world_size,
        "parent": None,
        "progress": {"step": 0, "position": 0, "epoch": 0.0, "tokens": 0, "elapsed_s": 0.0},
        **facts,
    }
