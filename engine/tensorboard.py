"""A run as a TensorBoard event file, written without TensorFlow.

The file is a sequence of TFRecords (length, masked CRC-32C of it, data, masked CRC-32C of that), each an `Event`
message of tensorflow/core/util/event.proto in the wire format of protocol buffers.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pandas as pd

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


def _seconds(time: pd.Timestamp) -> float:
    return 0.0 if pd.isna(time) else time.timestamp()


def write_events(metrics: pd.DataFrame, samples: pd.DataFrame, folder: Path) -> None:
    """Write the event file of a run into `folder`.

    Args:
        metrics: columns of `engine.metrics.METRICS`; every number that was measured becomes a scalar of that name.
        samples: columns of `engine.metrics.SAMPLES`; prompt and text become a text.
        folder: that exists.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    start = _seconds(metrics["time"].iloc[0]) if len(metrics) else 0.0
    tags = [name for name in metrics.columns if name not in _LEFT_OUT]
    places = [metrics.columns.get_loc(name) for name in tags]
    at_time, at_step = metrics.columns.get_loc("time"), metrics.columns.get_loc("step")
    with (folder / f"events.out.tfevents.{int(start):010d}.lab").open("xb") as file:
        file.write(record(b"\x09" + struct.pack("<d", start) + _bytes(3, b"brain.Event:2")))
        for row in metrics.itertuples(index=False, name=None):
            known = [(tag, row[i]) for tag, i in zip(tags, places, strict=True) if not pd.isna(row[i])]
            file.write(_event(_seconds(row[at_time]), int(row[at_step]), [_scalar(*pair) for pair in known]))
        for sample in samples.itertuples(index=False):
            text = _text("sample", f"{sample.prompt}{sample.text}")
            file.write(_event(_seconds(sample.time), int(sample.step), [text]))
