"""A run as one file that another lab can import: a zip of what its folder holds, and of nothing else.

    run.json  labels.json  events.jsonl  metrics.parquet  samples.parquet
    checkpoints/step-000400/model.safetensors  optimizer.safetensors  state.json  manifest.json

Whoever made an archive may have meant harm. Its names are compared with the names above and never used as paths; its
sizes are measured while it is unpacked; and it becomes a run by one rename, once everything in it has been checked.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

import pyarrow as pa

from engine import archive_checks as checks
from engine.checkpoint import FILES, Checkpoint, list_checkpoints, verify
from engine.errors import CheckpointError, RunError, storage_sentence
from engine.files import fsync_folder, read_json, write_json
from engine.metrics import METRICS, SAMPLES
from engine.paths import runs_dir
from engine.run import Run, now, run_lock
from engine.tables import read_rows, write_parquet

MIB = 2**20
CHUNK = MIB  # bytes in memory at a time
MOST_FILES = 4_000  # nearly a thousand checkpoints
MOST_BYTES = 200 * 2**30  # of all files together, unpacked
MOST_TIMES = 100  # an archive unpacks to at most this many times its own size, beyond a few MiB; tensors hardly shrink
_PLAIN = {  # the files of a run beside its checkpoints, and the most bytes each may have
    "run.json": 4 * MIB,
    "labels.json": MIB,  # what people say about it: name, note, tags
    "events.jsonl": 64 * MIB,
    "metrics.parquet": 1024 * MIB,
    "samples.parquet": 256 * MIB,
}
_REQUIRED = ("run.json", "metrics.parquet", "samples.parquet")
_CHECKPOINT = re.compile(r"checkpoints/step-([0-9]{6,12})/([a-z]+\.(?:safetensors|json))")
_OF_CHECKPOINT = {name: 16 * 1024 * MIB if name.endswith(".safetensors") else 4 * MIB for name in FILES}
_OF_CHECKPOINT["manifest.json"] = 4 * MIB
_BROKEN = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OverflowError, zlib.error)
_DAMAGED = "{} cannot be imported: it is damaged, or not a run's archive."


# ------------------------------------------------------------------------------------------------- export


def write_archive(run: Run, path: Path, steps: Collection[int] | None = None) -> list[str]:
    """Write a run, which may be training, into a new zip file.

    Args:
        run: whose folder is read.
        path: of the archive.
        steps: of the checkpoints to take along; None takes all, () none.

    Returns:
        A sentence for each checkpoint that is damaged and was left out.

    Raises:
        RunError: its run.json is damaged, or it has more checkpoints than an import takes.
        CheckpointError: a step has no usable checkpoint.
        OSError: the disk is full or cannot be written.
    """
    try:
        checks.check_info(info := checks.read_strictly(run.folder / "run.json"))
    except (OSError, RunError) as error:
        raise RunError(f"Run {run.id} cannot be archived: {_one_line(error)}.") from error
    found, left_out = _sound_checkpoints(run, steps)  # before the tables: these then hold the steps of all of them
    with zipfile.ZipFile(path, "w") as archive:
        _add_text(archive, "run.json", json.dumps(info, indent=2, ensure_ascii=False) + "\n")
        if labels := read_json(run.folder / "labels.json"):
            _add_text(archive, "labels.json", json.dumps(labels, indent=2, ensure_ascii=False) + "\n")
        _add_text(archive, "events.jsonl", "".join(json.dumps(vars(event)) + "\n" for event in run.events))
        for name, schema in (("metrics", METRICS), ("samples", SAMPLES)):
            sink = pa.BufferOutputStream()
            write_parquet(read_rows(run.folder, name, schema), sink)
            _add_text(archive, f"{name}.parquet", sink.getvalue().to_pybytes())
        for checkpoint in found:
            if not _add_checkpoint(archive, checkpoint):
                if steps:
                    raise CheckpointError(f"Run {run.id} has no checkpoint at step {checkpoint.step} any more.")
                left_out.append(f"{checkpoint.path.name} was deleted meanwhile and left out.")
    return left_out


def _sound_checkpoints(run: Run, steps: Collection[int] | None) -> tuple[list[Checkpoint], list[str]]:
    """The checkpoints that are to be taken along, and a sentence for each that is damaged."""
    there = list_checkpoints(run.folder)
    missing = set(steps or ()) - {checkpoint.step for checkpoint in there}
    if missing:
        raise CheckpointError(f"Run {run.id} has no checkpoint at step {min(missing)}.")
    wanted = [checkpoint for checkpoint in there if steps is None or checkpoint.step in steps]
    if len(_PLAIN) + len(wanted) * len(_OF_CHECKPOINT) > MOST_FILES or sum(c.bytes for c in wanted) > MOST_BYTES:
        raise RunError(
            f"Run {run.id} has {len(wanted):,} checkpoints, more than one archive takes. Take one (RUN@STEP), or none."
        )
    sound, damaged = [], []
    for checkpoint in wanted:
        try:
            verify(checkpoint)
            sound.append(checkpoint)
        except CheckpointError as error:
            damaged.append(str(error))
    if steps and damaged:
        raise CheckpointError(damaged[0])
    return sound, damaged


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, time.localtime()[:6])
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    return entry


def _add_text(archive: zipfile.ZipFile, name: str, content: str | bytes) -> None:
    archive.writestr(_entry(name), content, zipfile.ZIP_DEFLATED)


def _add_checkpoint(archive: zipfile.ZipFile, checkpoint: Checkpoint) -> bool:
    """Stored as it is: the bytes of trained weights do not get fewer. False for one that a training run prunes now.

    Open files stay whole while their folder is deleted.
    """
    names = (*FILES, "manifest.json")
    files: list[BinaryIO] = []
    try:
        files += [(checkpoint.path / name).open("rb") for name in names]
        for name, file in zip(names, files, strict=True):
            entry = _entry(f"checkpoints/{checkpoint.path.name}/{name}")
            entry.file_size = os.fstat(file.fileno()).st_size  # decides whether sizes take 64 bits
            with archive.open(entry, "w") as target:
                shutil.copyfileobj(file, target, CHUNK)
    except FileNotFoundError:
        return False
    finally:
        for file in files:
            file.close()
    return True


# ------------------------------------------------------------------------------------------------- import


def import_archive(source: Path | BinaryIO) -> Run:
    """Unpack an archive into a new run, whole or not at all.

    The run keeps its id when that is new here, else it gets a fresh one. What it was branched from stays as it is told.

    Args:
        source: the archive's path, or a file that is open for reading and can seek.

    Raises:
        RunError: the file cannot be read, is not a run's archive, or holds anything that a run's folder does not; or
            the disk is full. Nothing is left behind.
    """
    name = source.name if isinstance(source, Path) else Path(str(getattr(source, "name", "The file"))).name
    try:
        with source.open("rb") if isinstance(source, Path) else _left_open(source) as file:
            runs_dir().mkdir(parents=True, exist_ok=True)
            with _staging() as folder:
                _unpack(_Bounded(file), folder)
                return _adopt(folder)
    except OSError as error:
        if error.errno == errno.EINVAL:  # the archive's directory leads to a place before its beginning
            raise RunError(_DAMAGED.format(name)) from error
        path = source if isinstance(source, Path) and error.filename == str(source) else runs_dir()
        raise RunError(storage_sentence(error, path)) from error
    except _BROKEN as error:
        raise RunError(_DAMAGED.format(name)) from error
    except RunError as error:
        raise RunError(f"{name} cannot be imported: {_one_line(error)}.") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).removesuffix(".")


@contextmanager
def _left_open(file: BinaryIO) -> Iterator[BinaryIO]:
    yield file


@contextmanager
def _staging() -> Iterator[Path]:
    """A hidden folder under `runs/`, which is gone afterwards unless it was renamed. No list of runs shows it."""
    for left in runs_dir().glob(".import-*"):
        with suppress(FileNotFoundError):  # another import has just become a run
            if time.time() - left.stat().st_mtime > 60 and not run_lock(left).is_held():  # its process was killed
                shutil.rmtree(left, ignore_errors=True)
    folder = runs_dir() / f".import-{secrets.token_hex(8)}"
    folder.mkdir()
    lock = run_lock(folder)
    try:
        lock.acquire(note=str(os.getpid()))
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


class _Bounded:
    """A file that is never read in large parts: `zipfile` believes what an archive says about its own directory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """Like that of the file."""
        if (size if size >= 0 else self.size - self._file.tell()) > CHUNK:
            raise RunError("its directory is larger than a run's can be")
        return self._file.read(size)


def _unpack(file: Any, folder: Path) -> None:
    """Write what an archive holds into an empty folder, after its directory was found to be that of a run."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        limits = _check_directory(entries)
        told, most = sum(entry.file_size for entry in entries), 16 * MIB + MOST_TIMES * file.size
        if told > min(most, MOST_BYTES):
            raise RunError(f"it would unpack to {told / 1e9:,.1f} GB, more than a run of its size can hold")
        free = shutil.disk_usage(folder).free
        if told + 64 * MIB > free:
            needs = f"it needs {told / 1e9:,.2f} GB, and the disk of {runs_dir()} has {free / 1e9:,.2f} GB free"
            raise RunError(needs)
        for entry in entries:
            target = folder.joinpath(*entry.orig_filename.split("/"))  # it is one of our own names by now
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as packed, target.open("xb") as unpacked:
                _copy(packed, unpacked, limits[entry.orig_filename])
                if unpacked.tell() != entry.file_size:
                    raise zipfile.BadZipFile("not of the size that it tells")


def _check_directory(entries: list[zipfile.ZipInfo]) -> dict[str, int]:
    """Refuse everything that is not a plain file of a run, each once; returns the largest size of each."""
    if len(entries) > MOST_FILES:
        raise RunError(f"it holds {len(entries):,} files, more than a run does")
    limits: dict[str, int] = {}
    places = set()
    for entry in entries:
        name = entry.orig_filename
        if entry.filename != name:  # newer Pythons take another name out of an extra field
            raise RunError(f"it holds {_short(entry.filename)}, which is no file of a run")
        limit = _limit(name)
        if limit is None:
            raise RunError(f"it holds {_short(name)}, which is no file of a run")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if entry.is_dir() or kind not in (0, stat.S_IFREG) or entry.external_attr & 0x10:  # MS-DOS: a folder
            raise RunError(f"{name} in it is a link or something else that is no plain file")
        if entry.flag_bits & 0x2041:
            raise RunError("it is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise RunError(f"{name} in it is compressed in a way that the lab does not use")
        if name in limits or entry.header_offset in places:
            raise RunError(f"{name} is in it more than once")
        if entry.file_size > limit:
            raise RunError(f"{name} in it is larger than a run's can be")
        limits[name] = limit
        places.add(entry.header_offset)
    if missing := [name for name in _REQUIRED if name not in limits]:
        raise RunError(f"it holds no {missing[0]}, so it is not a run's archive")
    return limits


def _limit(name: str) -> int | None:
    """The most bytes that a file of this name may have; None when no run has such a file."""
    match = _CHECKPOINT.fullmatch(name)
    if match is None:
        return _PLAIN.get(name)
    step, file = match.groups()
    return _OF_CHECKPOINT.get(file) if step == f"{int(step):06d}" else None


def _short(name: str) -> str:
    return ascii(name if len(name) <= 60 else name[:60] + "…")


def _copy(source: IO[bytes], target: IO[bytes], limit: int) -> None:
    """Copy to the end and put it on disk; sizes count as they are, not as they were told."""
    written = 0
    while chunk := source.read(CHUNK):
        written += len(chunk)
        if written > limit:
            raise RunError("one of its files is larger than it tells")
        target.write(chunk)
    target.flush()
    os.fsync(target.fileno())


def _adopt(folder: Path) -> Run:
    """Check what was unpacked and make it a run by one rename."""
    config = checks.check_info(info := checks.read_strictly(folder / "run.json"))
    if (folder / "labels.json").exists():
        checks.read_strictly(folder / "labels.json")
    if (folder / "events.jsonl").exists():
        checks.check_events(folder / "events.jsonl")
    checks.check_checkpoints(folder, config)
    checks.check_tables_apart(folder)
    first_id = info["id"]
    info["imported"] = {"id": first_id, "time": now()}
    for _ in range(20):
        target = runs_dir() / info["id"]
        write_json(folder / "run.json", info)
        if not target.exists():
            folder.rename(target)
            fsync_folder(runs_dir())
            return Run(target)
        info["id"] = f"{first_id[:110]}-{secrets.token_hex(2)}"
    raise RunError(f"there are too many runs called {first_id} here")
