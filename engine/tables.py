"""Parquet tables that grow while others read them.

A Parquet file has no footer, and so cannot be read, until it is closed. A growing table is therefore a compacted file
and a folder of small immutable segments:

    metrics.parquet           compacted rows
    metrics/000017.parquet    segments, joined by the reader; the last row of a step wins

Every file is written beside its target, fsynced and renamed, so a process killed at any moment leaves a readable table.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from engine.files import remove_parts, write_atomic
from engine.kept import KeptColumns

FLUSH_S = 1.0  # a row is on disk at most this long after it was logged
COMPACT_AT = 90  # segments: every minute and a half of training

Signature = tuple[tuple[str, int, int], ...]


class TableWriter:
    """Appends rows to one table. There is one writer per table: the holder of the run's lock.

    Args:
        folder: of the run.
        name: of the table, such as `metrics`.
        schema: columns and types; one of them is `step`.
    """

    def __init__(self, folder: Path, name: str, schema: pa.Schema) -> None:
        self.path = folder / f"{name}.parquet"
        self.segments = folder / name
        self.schema = schema
        self.segments.mkdir(exist_ok=True)
        remove_parts(self.path)
        remove_parts(self.segments / "*.parquet")
        existing = _segment_files(self.segments)
        self._next = int(existing[-1].stem) + 1 if existing else 1
        self._open_segments = len(existing)
        self._rows: list[dict[str, Any]] = []
        self._flushed_at = -FLUSH_S  # so that the first row is on disk, and on the chart, at once
        self._appended_at = time.monotonic()

    def append(self, row: dict[str, Any]) -> None:
        """Log a row, and flush if the row after it would come too late to do it."""
        now = time.monotonic()
        row_takes = now - self._appended_at
        self._appended_at = now
        self._rows.append(row)
        if now + row_takes - self._flushed_at >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write the pending rows as a segment; after an error they are still pending.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        self._write_pending()
        if self._open_segments >= COMPACT_AT:
            self.compact()

    def _write_pending(self) -> None:
        if self._rows:
            table = pa.Table.from_pylist(self._rows, schema=self.schema)
            _write(table, self.segments / f"{self._next:06d}.parquet")
            self._next += 1
            self._open_segments += 1
            self._rows = []
        self._flushed_at = time.monotonic()

    def compact(self, last_step: int | None = None) -> None:
        """Join everything into the one file, then delete the segments.

        Args:
            last_step: forget all rows after this step; a resume repeats them.
        """
        self._write_pending()
        segments = _segment_files(self.segments)
        joined, damaged = _join(self.path.parent, self.path.stem, self.schema, self.schema.names)
        if self.path in damaged and not _set_aside(self.path):
            return
        _write(joined, self.path)
        for path in segments:
            if path not in damaged:
                path.unlink(missing_ok=True)
        self._open_segments = 0
        if last_step is not None:  # apart from the above: killed in between, there is no gap in the steps
            _write(joined.filter(pc.field("step") <= last_step), self.path)


def _set_aside(path: Path) -> bool:
    """Move a file that is no table of ours out of the way; False when it only could not be read just now."""
    try:
        pq.ParquetFile(path).close()
    except OSError:
        return False
    except pa.ArrowException:
        pass
    number = 1 + sum(1 for _ in path.parent.glob(f"{path.stem}.damaged-*"))
    path.rename(path.with_name(f"{path.stem}.damaged-{number}"))
    return True


def _write(table: pa.Table, path: Path) -> None:
    write_atomic(path, lambda temporary: write_parquet(table, temporary))


def write_parquet(table: pa.Table, sink: Any) -> None:
    """Write a table such that it is quickly read again.

    Whole numbers and times, which grow by about the same from row to row, are kept as differences: a million steps are
    then read eight times as fast as compressed ones. LZ4 unpacks the rest three times as fast as Snappy.

    Args:
        sink: a path or a file.
    """
    growing = {f.name for f in table.schema if pa.types.is_integer(f.type) or pa.types.is_timestamp(f.type)}
    pq.write_table(
        table,
        sink,
        compression="LZ4",
        use_dictionary=[name for name in table.column_names if name not in growing],
        column_encoding=dict.fromkeys(growing, "DELTA_BINARY_PACKED"),
    )


def read_table(folder: Path, name: str, schema: pa.Schema) -> tuple[pd.DataFrame, list[str]]:
    """All rows of a table, sorted by step, one a step, and a sentence for each file that had to be skipped.

    Never raises because of what is on disk; a table that is not there is an empty one.
    """
    joined, damaged = _join(folder, name, schema, schema.names)
    return joined.to_pandas(), _problems(damaged)


def read_table_from(folder: Path, name: str, schema: pa.Schema, step: int) -> pd.DataFrame:
    """The rows of this step and later ones, as `read_table` has them. Of large files without any, only the steps are
    read."""
    joined, _ = _join(folder, name, schema, schema.names, first=step)
    return joined.filter(pc.field("step") >= step).to_pandas()


def read_columns(
    folder: Path, name: str, schema: pa.Schema, columns: Sequence[str]
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Some columns of the same rows, (rows,) each; the others are not read. They are not to be written into.

    Floats are NaN where nothing was measured. A file with damage inside of another column is not skipped.
    """
    joined, damaged = _join(folder, name, schema, columns)
    return {column: joined[column].to_numpy() for column in columns}, _problems(damaged)


def find_problems(folder: Path, name: str, schema: pa.Schema, columns: Sequence[str]) -> list[str]:
    """The sentences of `read_columns` alone; what is in memory is not made ready to be read."""
    wanted = ["step", *columns]
    files = [folder / f"{name}.parquet", *_segment_files(folder / name)]
    return _problems([path for path in files if not _is_kept(path, wanted) and _read_file(path, schema, wanted)[1]])


def read_rows(folder: Path, name: str, schema: pa.Schema) -> pa.Table:
    """The same rows as Arrow has them, types and missing values kept."""
    return _join(folder, name, schema, schema.names)[0]


def _problems(damaged: Sequence[Path]) -> list[str]:
    return [f"{path.name} in {path.parent.name} is damaged or foreign and was left out." for path in damaged]


def table_signature(folder: Path, name: str) -> Signature:
    """Changes exactly when the table's files do; costs a few system calls."""
    return tuple(
        key for path in [folder / f"{name}.parquet", *_segment_files(folder / name)] if (key := file_key(path))
    )


def _segment_files(folder: Path) -> list[Path]:
    try:
        names = [name for name in os.listdir(folder) if name.endswith(".parquet") and name[:-8].isdecimal()]
    except OSError:
        return []
    return [folder / name for name in sorted(names, key=lambda name: int(name[:-8]))]


def _join(
    folder: Path, name: str, schema: pa.Schema, columns: Sequence[str], *, first: int | None = None
) -> tuple[pa.Table, list[Path]]:
    """These columns, and `step`, of all rows that can be read; and the files that cannot.

    Args:
        first: a step; files that end before it are left out.
    """
    wanted = list(dict.fromkeys(["step", *columns]))
    # Segments are read before the compacted file: what a compaction moves meanwhile is then seen twice, not lost.
    segments = _segment_files(folder / name)
    newer = [_read_from(path, schema, wanted, first) for path in segments]
    compacted = folder / f"{name}.parquet"
    oldest = _read_from(compacted, schema, wanted, first)
    tables = [table for table, _ in (oldest, *newer) if table is not None]
    damaged = [path for path, (_, bad) in zip([compacted, *segments], [oldest, *newer], strict=True) if bad]
    joined = pa.concat_tables(tables) if tables else schema.empty_table().select(wanted)
    return _last_row_wins(joined), damaged


def _last_row_wins(table: pa.Table) -> pa.Table:
    steps = table["step"].to_numpy()
    if len(steps) < 2 or bool((steps[1:] > steps[:-1]).all()):
        return table
    _, first_from_the_end = np.unique(steps[::-1], return_index=True)
    return table.take(len(steps) - 1 - first_from_the_end)


def file_key(path: Path) -> tuple[str, int, int] | None:
    """Changes whenever the file is replaced or written; None when it is not there."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return (str(path), stat.st_mtime_ns, stat.st_size)


SMALL = 2**20  # bytes: of a smaller file all columns are read at once, as opening it costs more than they do
KEPT = KeptColumns(160 * 2**20)  # two curves of ten runs with a million rows each


def _read_file(path: Path, schema: pa.Schema, columns: Sequence[str]) -> tuple[pa.Table | None, bool]:
    """Columns of one file's rows, from memory where they were read before; and whether the file is damaged."""
    key = file_key(path)
    if key is None:
        return None, False  # deleted by a compaction, or never written
    found = {column: KEPT.get(key, column) for column in columns}
    missing = [column for column, values in found.items() if values is None]
    try:
        if missing:
            read = _read_parquet(path, schema, schema.names if key[2] < SMALL else missing)
            if file_key(path) != key:
                return _read_file(path, schema, columns)  # it was replaced meanwhile
            for column, values in read.items():
                KEPT.put(key, column, values)
            found |= {column: read[column] for column in missing}
        return pa.table(found), False
    except FileNotFoundError:
        return None, False
    except MemoryError:  # Arrow's is an ArrowException too: the file may well be sound
        raise
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None, True


def _read_from(
    path: Path, schema: pa.Schema, columns: Sequence[str], first: int | None
) -> tuple[pa.Table | None, bool]:
    """`_read_file`, or nothing of a file that ends before the step `first`."""
    if first is not None:
        steps, _ = _read_file(path, schema, ["step"])
        last = steps["step"][-1].as_py() if steps is not None and len(steps) else None
        if last is not None and last < first:
            return None, False
    return _read_file(path, schema, columns)


def _is_kept(path: Path, columns: Sequence[str]) -> bool:
    key = file_key(path)
    return key is not None and all(KEPT.has(key, column) for column in columns)


def _read_parquet(path: Path, schema: pa.Schema, columns: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    """Columns of a file as the schema has them; absent ones are null. Without `step` the file is not ours."""
    with pq.ParquetFile(path) as file:
        if "step" not in file.schema_arrow.names:
            raise KeyError("step")
        table = file.read(list(columns))
        absent = pa.chunked_array([pa.nulls(file.metadata.num_rows)])
    return {
        column: (table.column(column) if column in table.column_names else absent).cast(schema.field(column).type)
        for column in columns
    }
