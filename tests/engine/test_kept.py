"""Columns kept in memory come back as they were, take little where they say little, and never exceed their bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.kept import MOST_TINY, KeptColumns

ROWS = 50_000
NOISE = np.random.default_rng(0).normal(size=ROWS)
EVEN = np.arange(ROWS) * 1024 + 1024
FILE = ("runs/a/metrics.parquet", 1, 1)
PACKED: dict[str, Any] = {
    "steps": EVEN,
    "mostly missing": pa.array(NOISE, mask=np.arange(ROWS) % 1000 != 0),
    "missing": pa.nulls(ROWS, pa.float64()),
    "constant": np.full(ROWS, 1e-3),
    "rising now and then": np.arange(ROWS) // 5000 / 7,
    "texts": pa.array(["the same prompt"] * ROWS),
}
WHOLE: dict[str, Any] = {
    "noise": NOISE,
    "one step twice": np.concatenate([EVEN[:-1], EVEN[-2:-1]]),
    "falling": EVEN[::-1],
    "a step without a number": pa.array(EVEN, mask=np.arange(ROWS) == 7),
    "not a number, and missing": pa.array(np.where(NOISE > 1, np.nan, NOISE), mask=NOISE < -1),
    "first alike, then not": np.where(np.arange(ROWS) < 10_000, 0.0, NOISE),
    "to the ends of 64 bits": np.array([-(2**63), 2**63 - 1] * (ROWS // 2)),
    "times": pa.array(EVEN * 3 % 1_000_003).cast(pa.timestamp("ms", tz="UTC")),
}


def read(values: Any) -> pa.ChunkedArray:
    """As a file has it."""
    file = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": values}), file)
    return pq.ParquetFile(pa.BufferReader(file.getvalue())).read()["x"]


@pytest.mark.parametrize("name", [*PACKED, *WHOLE, "few"])
def test_a_column_comes_back_as_it_was(name: str) -> None:
    values = {**PACKED, **WHOLE, "few": [1.0, None]}[name]
    column = read(values)
    kept = KeptColumns(2**30)
    kept.put(FILE, name, column)
    found = kept.get(FILE, name)
    assert found.type == column.type and found.null_count == column.null_count
    assert repr(found.to_pylist()) == repr(column.to_pylist())  # NaN is not equal to itself
    assert kept.bytes == (column.nbytes if name in WHOLE else 0)


def test_the_oldest_make_room_and_a_newer_file_replaces_the_older() -> None:
    column = pa.chunked_array([NOISE])
    kept = KeptColumns(3 * column.nbytes)
    for name in ("a", "b", "c"):
        kept.put(FILE, name, column)
    assert kept.get(FILE, "a") is not None  # used last now
    kept.put(FILE, "d", column)
    assert kept.get(FILE, "b") is None and kept.bytes == 3 * column.nbytes
    assert kept.has(FILE, "a") and not kept.has(FILE, "b") and not kept.has((FILE[0], 2, 1), "a")
    newer = (FILE[0], 2, 1)
    kept.put(newer, "a", column)
    assert kept.get(FILE, "a") is None and kept.get(newer, "a") is not None
    assert kept.bytes == 3 * column.nbytes
    for number in range(MOST_TINY + 10):  # segments of a run that goes on for hours
        kept.put((f"{number}.parquet", 1, 1), "a", pa.chunked_array([[1.0]]))
    assert len(kept._tiny) == MOST_TINY and kept.get(("9.parquet", 1, 1), "a") is None
    assert kept.get(newer, "a") is not None and kept.has(("10.parquet", 1, 1), "a")
