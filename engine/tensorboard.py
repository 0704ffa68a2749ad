"""A run as a TensorBoard event file, written without TensorFlow.

The file is a sequence of TFRecords (length, masked CRC-32C of it, data, masked CRC-32C of that), each an `Event`
message of tensorflow/core/util/event.proto in the wire format of protocol buffers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.metrics import METRICS, SAMPLES
from engine.tables import read_rows

_LEFT_OUT = ("step", "time")  # they place an event; everything else in the table is a scalar


def _table() -> list[int]:
    """CRC-32C (Castagnoli, RFC 3720 appendix B.4) of every byte, reflected."""
    values = list(range(256))
    for _ in range(8):
        values = [value >> 1 ^ 0x82F63B78 * (value & 1) for value in values]
    return values


_CRC = _table()


def _masked_crc(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF  # tensorflow/core/lib/hash/crc32c.h


def record(data: bytes) -> bytes:
    """One TFRecord."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked_crc(length)) + data + struct.pack("<I", _masked_crc(data))


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _event(seconds: float, step: int, values: list[bytes]) -> bytes:
    head = b"\x09" + struct.pack("<d", seconds) + _number(2, step)
    return record(head + _bytes(5, b"".join(_bytes(1, value) for value in values)))


def _scalar(tag: str, value: float) -> bytes:
    """Single precision, as everywhere in TensorBoard; what is larger than that holds is infinite."""
    try:
        packed = struct.pack("<f", value)
    except OverflowError:
        packed = struct.pack("<f", float("inf") if value > 0 else float("-inf"))
    return _bytes(1, tag.encode()) + b"\x15" + packed


def _text(tag: str, text: str) -> bytes:
    """A text for the plugin that renders Markdown: indented as a code block, so that it is shown as it is."""
    shown = "\n".join("    " + line for line in text.splitlines()).encode("utf-8", "replace")
    shape = _bytes(2, _number(1, 1))
    tensor = _number(1, 7) + _bytes(2, shape) + _bytes(8, shown)  # DT_STRING, one string
    return _bytes(1, tag.encode()) + _bytes(8, tensor) + _bytes(9, _bytes(1, _bytes(1, b"text")))


def write_events(run: Path, folder: Path) -> None:
    """Write the event file of a run: every number that was measured, NaN too, as a scalar, and samples as texts.

    Args:
        run: its folder.
        folder: where the file is written; it exists.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    metrics, samples = (read_rows(run, *table) for table in (("metrics", METRICS), ("samples", SAMPLES)))
    first = next(_rows(metrics), {})
    start = _seconds(first)
    tags = [name for name in METRICS.names if name not in _LEFT_OUT]
    with (folder / f"events.out.tfevents.{int(start):010d}.lab").open("xb") as file:
        file.write(record(b"\x09" + struct.pack("<d", start) + _bytes(3, b"brain.Event:2")))
        for row in _rows(metrics):
            scalars = [_scalar(tag, row[tag]) for tag in tags if row[tag] is not None]
            file.write(_event(_seconds(row), row["step"], scalars))
        for row in _rows(samples):
            text = _text("sample", f"{row['prompt'] or ''}{row['text'] or ''}")
            file.write(_event(_seconds(row), row["step"], [text]))


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows, times in ms. Not through pandas: there a NaN that was measured is the same as no measurement."""
    table = table.set_column(table.column_names.index("time"), "time", table["time"].cast(pa.int64()))
    for batch in table.to_batches(10_000):
        yield from batch.to_pylist()


def _seconds(row: Mapping[str, Any]) -> float:
    return (row.get("time") or 0) / 1000
