"""What must be true of an archive's files before they may be called a run. A file that is not as the lab writes it is
refused with the reason, and none is opened by anything that could run code.

As a command, for `check_tables_apart`: `python -m engine.archive_checks FOLDER`.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.checkpoint import list_checkpoints, verify
from engine.checkpoint_layout import Shape, optimizer_problem, weights_problem
from engine.config import TrainConfig
from engine.errors import CheckpointError, RunError
from engine.metrics import METRICS, SAMPLES
from engine.paths import PROJECT
from engine.run import SCHEMA_VERSION, STATES, is_id, parse_event, read_config
from engine.tables import read_rows

MOST_ROWS = 5_000_000  # of a table; nano takes weeks for as many steps on a CPU
MOST_PROCESSES = 4096
MOST_TEXT = 256 * 2**20  # bytes of all samples together
MOST_OUTLINE = 2**20  # bytes of what a Parquet file tells of itself; a run's take some thousand
MOST_HEADER = 2 * 2**20  # bytes of the names and shapes of tensors; those of xlarge take 100,000
MOST_TOLD = 100_000  # characters of what computed a run; of many processes each may tell something else
MOST_MEMORY = 3 * 2**30  # bytes for reading a table of the most rows
MOST_SECONDS = 300
_CODECS = {"LZ4", "SNAPPY", "UNCOMPRESSED"}  # what the lab writes or wrote; none makes more than 255 bytes of one
_TIMES = (0, 253_402_300_799_999)  # ms, 1970 to 9999

_INFO = {  # run.json: what it must hold, and of which kind
    "schema_version": int,
    "id": str,
    "name": str,
    "notes": str,
    "tags": list,
    "state": str,
    "error": str,
    "created": str,
    "config": dict,
    "total_steps": int,
    "windows": int,
    "train_tokens": int,
    "val_tokens": int,
    "progress": dict,
}
_INFO_OR_NULL = {  # what it may hold
    "ended": str,
    "parent": dict,
    "requested": dict,
    "environment": dict,
    "corpus_sha256": str,
    "val_corpus_sha256": str,
    "exercise": dict,
    "imported": dict,
    "world_size": int,
}
_PARENT = {"run": str, "step": int, "changes": dict}
_WORDS = {int: "a whole number", str: "a text", list: "a list", dict: "an object"}


def read_strictly(path: Path) -> dict[str, Any]:
    """A JSON object all of whose numbers are finite and below 2⁶³.

    Raises:
        RunError: it is something else.
    """
    try:
        value = json.loads(
            path.read_text(encoding="utf-8"), parse_constant=_no_number, parse_float=_finite, parse_int=_within_64_bits
        )
    except (ValueError, RecursionError) as error:
        raise RunError(f"its {path.name} is no JSON of the lab's kind") from error
    if not isinstance(value, dict):
        raise RunError(f"its {path.name} is no JSON object")
    return value


def _no_number(word: str) -> float:
    raise ValueError(word)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _within_64_bits(text: str) -> int:
    value = int(text)
    if abs(value) >= 2**63:
        raise ValueError(text)
    return value


def check_info(info: dict[str, Any]) -> TrainConfig:
    """Hold the content of a `run.json` to its schema; returns its settings.

    Raises:
        RunError: it is not a run's, or one of another version of the lab.
    """
    if info.get("schema_version") != SCHEMA_VERSION:
        raise RunError(f"its run.json is not of version {SCHEMA_VERSION}, which this lab reads")
    _check_kinds(info, _INFO, required=True)
    _check_kinds(info, _INFO_OR_NULL, required=False)
    if not is_id(info["id"]):
        raise RunError("the id in its run.json is not the id of a run")
    if info["state"] not in STATES:
        raise RunError("the state in its run.json is none that a run can have")
    if not all(isinstance(tag, str) for tag in info["tags"]):
        raise RunError("the tags in its run.json are not texts")
    if min(info[name] for name in ("total_steps", "windows", "train_tokens", "val_tokens")) < 0:
        raise RunError("its run.json counts something below zero")
    if not 1 <= (info.get("world_size") or 1) <= MOST_PROCESSES:
        raise RunError("the world_size in its run.json is none that a run can have")
    try:
        datetime.fromisoformat(info["created"]).astimezone()
    except (ValueError, OverflowError) as error:
        raise RunError("the time in its run.json is none") from error
    if info.get("parent") is not None:
        _check_kinds(info["parent"], _PARENT, required=True)
    for name in ("machine", "packages"):
        _check_kinds(info.get("environment") or {}, {name: dict}, required=False)
    _check_arithmetic(info.get("arithmetic"), "run.json")
    for name in ("corpus_sha256", "val_corpus_sha256"):  # these name files of the ladder's cache
        if not re.fullmatch(r"[0-9a-f]{64}", info.get(name) or "0" * 64):
            raise RunError(f"the {name} in its run.json is no SHA-256")
    _check_numbers(info["progress"], "run.json")
    return read_config(info["config"], info["id"])


def _check_arithmetic(told: Any, where: str) -> None:
    """What computed a run or a checkpoint: short texts, as a log repeats them."""
    if told is not None and (
        not isinstance(told, dict) or not all(isinstance(v, str) for v in told.values()) or len(str(told)) > MOST_TOLD
    ):
        raise RunError(f"the arithmetic in {where} is no list of short texts")


def _check_kinds(values: Mapping[str, Any], kinds: Mapping[str, type], *, required: bool) -> None:
    for name, kind in kinds.items():
        value = values.get(name)
        if value is None and not required:
            continue
        if not isinstance(value, kind) or isinstance(value, bool):
            raise RunError(f"{name} in its run.json is not {_WORDS[kind]}")


def _check_numbers(progress: Any, where: str) -> None:
    if not isinstance(progress, dict) or not all(isinstance(v, int | float | None) for v in progress.values()):
        raise RunError(f"the progress in its {where} is not made of numbers")


def check_events(path: Path) -> None:
    """Hold `events.jsonl` to one event a line."""
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="strict").splitlines(), 1):
        if parse_event(line) is None:
            raise RunError(f"line {number} of its events.jsonl is no event")


def check_tables_apart(folder: Path) -> None:
    """Like `check_tables`, in a process of its own with limited memory.

    What reads Parquet can end its process over bytes that somebody made up: here that would be the app with a training.
    """
    command = [sys.executable, "-m", "engine.archive_checks", str(folder.absolute())]
    try:
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RunError("its tables take too long to read") from error
    if done.returncode:
        refused = done.returncode == _REFUSED
        raise RunError(done.stdout.strip() if refused else "it has a table that cannot be read")


_REFUSED = 3


def _main(folder: Path) -> int:
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = MOST_MEMORY if hard == resource.RLIM_INFINITY else min(MOST_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        check_tables(folder)
    except RunError as error:
        print(error)
        return _REFUSED
    return 0


def check_tables(folder: Path) -> None:
    """Read both tables through, a part at a time, then as a reader does.

    Raises:
        RunError: one is damaged, foreign, or would need more memory than a run's table may.
    """
    for name, schema in (("metrics", METRICS), ("samples", SAMPLES)):
        path = folder / f"{name}.parquet"
        try:
            rows = _check_table(path, schema)
            if len(read_rows(folder, name, schema)) != rows:
                raise ValueError("its columns are not of one length")
        except (OSError, pa.ArrowException, ValueError) as error:
            raise RunError(f"its {path.name} is no table that can be read") from error


def _check_table(path: Path, schema: pa.Schema) -> int:
    """Returns how many rows it has."""
    _check_outline_size(path)
    with pq.ParquetFile(path) as file:
        _check_outline(file, path.name, schema)
        texts = [field.name for field in file.schema_arrow if field.type == pa.string()]
    # Texts stay in their dictionaries: a long one that is repeated a million times is seen before it is written out.
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        text_size, last = 0, -1
        for batch in file.iter_batches(batch_size=50_000):
            last = _check_rows(batch, path.name, last)
            text_size += sum(_text_bytes(batch.column(name)) for name in texts)
            if text_size > MOST_TEXT:
                raise RunError(f"its {path.name} holds more text than {MOST_TEXT // 2**20} MiB")
        return int(file.metadata.num_rows)


def _check_outline_size(path: Path) -> None:
    """Before it is read: it may take a hundred times as much memory."""
    with path.open("rb") as file:
        most = file.seek(-8, os.SEEK_END)  # its size, and "PAR1"
        if MOST_OUTLINE < int.from_bytes(file.read(4), "little") <= most:
            raise RunError(f"its {path.name} is made of more parts than a run's")


def _check_outline(file: pq.ParquetFile, name: str, schema: pa.Schema) -> None:
    """What the file tells of itself: columns, number of rows, compression."""
    for field in file.schema_arrow:
        if field.name not in schema.names or field.type != schema.field(field.name).type:
            raise RunError(f"its {name} has a column {field.name!r} that a run's has not")
    if len(set(file.schema_arrow.names)) < len(file.schema_arrow.names) or "step" not in file.schema_arrow.names:
        raise RunError(f"its {name} has no column for the step, or one twice")
    if file.metadata.num_rows > MOST_ROWS:
        raise RunError(f"its {name} has more than {MOST_ROWS:,} rows")
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    if any(group.column(i).compression not in _CODECS for group in groups for i in range(group.num_columns)):
        raise RunError(f"its {name} is compressed in a way that the lab does not use")


def _check_rows(batch: pa.RecordBatch, name: str, last: int) -> int:
    """Steps rise from row to row and over batches, times are of this age; returns the last step."""
    steps = batch.column("step")
    values = steps.to_numpy(zero_copy_only=False)
    if steps.null_count or (len(values) and not (values[0] > last and bool((values[1:] > values[:-1]).all()))):
        raise RunError(f"the steps in its {name} do not rise from row to row")
    if "time" in batch.schema.names:
        span = pc.min_max(batch.column("time").cast(pa.int64())).as_py()
        if span["min"] is not None and not _TIMES[0] <= span["min"] <= span["max"] <= _TIMES[1]:
            raise RunError(f"its {name} has a time that is out of range")
    return int(values[-1]) if len(values) else last


def _text_bytes(column: pa.Array) -> int:
    if pa.types.is_dictionary(column.type):
        lengths = pc.binary_length(column.dictionary).take(column.indices)
    else:
        lengths = pc.binary_length(column)
    return int(pc.sum(lengths).as_py() or 0)


def check_checkpoints(folder: Path, config: TrainConfig) -> None:
    """Hold every checkpoint to its manifest, and its tensors to the format and to the settings; none is loaded.

    Raises:
        RunError: one is damaged, holds anything but tensors, or others than a run of these settings has.
    """
    for checkpoint in list_checkpoints(folder):
        try:
            verify(checkpoint)
        except CheckpointError as error:
            reason = checkpoint.problem or "its files are not those that its manifest names"
            raise RunError(f"the checkpoint {checkpoint.path.name} in it is damaged: {reason}") from error
        read_strictly(checkpoint.path / "state.json")
        manifest = read_strictly(checkpoint.path / "manifest.json")
        _check_arithmetic(manifest.get("arithmetic"), f"{checkpoint.path.name}/manifest.json")
        _check_numbers(dict(checkpoint.progress), f"{checkpoint.path.name}/manifest.json")
        weights = _shapes(checkpoint.path / "model.safetensors", {"F32"})
        state = _shapes(checkpoint.path / "optimizer.safetensors", {"F32", "U8"})
        problem = weights_problem(weights, config.model) or optimizer_problem(state, config.model, config.optimizer)
        if problem:
            raise RunError(f"the checkpoint {checkpoint.path.name} in it does not fit the run's settings: {problem}")


def _shapes(path: Path, kinds: set[str]) -> dict[str, Shape]:
    """Names and shapes of a file's tensors, which must be numbers of these kinds."""
    from safetensors import SafetensorError, safe_open

    where = f"{path.parent.name}/{path.name} in it"
    with path.open("rb") as head:
        if MOST_HEADER < int.from_bytes(head.read(8), "little") <= path.stat().st_size:
            raise RunError(f"{where} names more tensors than a run has")
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {tensor.get_dtype() for tensor in tensors.values()}
            shapes = {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{where} does not hold tensors in safetensors format") from error
    if found - kinds:
        raise RunError(f"{where} holds numbers of another kind than the lab's: {min(found - kinds)}")
    return shapes


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))
