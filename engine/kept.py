"""Columns of files in memory: those that were used last, up to so many bytes. Threads may share it.

Many columns of a training are mostly missing, the same for long, or evenly spaced; such ones take next to nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

FileKey = tuple[str, int, int]  # path, time of the last change, size
Packed: TypeAlias = "pa.ChunkedArray | range"
TINY = 2**14  # bytes
MOST_TINY = 10_000  # columns: those of 900 segments
WORTH = 4  # times smaller is what is packed
SAMPLE = 2000  # rows


class KeptColumns:
    """Forgets the large columns that were not used for longest when a new one would be too much.

    Tiny ones, which take as long to read, stay: of these there may be many.

    Args:
        most_bytes: of all large columns together.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._large: OrderedDict[tuple[str, str], tuple[FileKey, Packed]] = OrderedDict()
        self._tiny: OrderedDict[tuple[str, str], tuple[FileKey, Packed]] = OrderedDict()
        self._lock = Lock()

    def get(self, file: FileKey, name: str) -> pa.ChunkedArray | None:
        """The column of this name as the file has it now; None when it has to be read."""
        key = (file[0], name)
        with self._lock:
            shelf = self._tiny if key in self._tiny else self._large
            kept, packed = shelf.get(key, (None, range(0)))
            if kept != file:
                return None
            shelf.move_to_end(key)
        return _unpack(packed)

    def has(self, file: FileKey, name: str) -> bool:
        """Whether `get` has it; its turn to be forgotten stays as it is."""
        key = (file[0], name)
        with self._lock:
            kept = self._tiny.get(key) or self._large.get(key)
        return kept is not None and kept[0] == file

    def put(self, file: FileKey, name: str, column: pa.ChunkedArray) -> None:
        """Keep a column, instead of the one that the file had under this name before."""
        key, packed = (file[0], name), _pack(column)
        with self._lock:
            self._tiny.pop(key, None)
            self.bytes -= _bytes(self._large.pop(key)[1]) if key in self._large else 0
            if _bytes(packed) <= TINY:
                self._tiny[key] = (file, packed)
            else:
                self._large[key] = (file, packed)
                self.bytes += _bytes(packed)
            while self.bytes > self.most_bytes:
                self.bytes -= _bytes(self._large.popitem(last=False)[1][1])
            while len(self._tiny) > MOST_TINY:
                self._tiny.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._large.clear()
            self._tiny.clear()
            self.bytes = 0


def _bytes(packed: Packed) -> int:
    return 0 if isinstance(packed, range) else int(packed.nbytes)


def _pack(column: pa.ChunkedArray) -> Packed:
    """Evenly spaced whole numbers as a range, few different values as runs of each, everything else as it is."""
    if column.nbytes <= TINY:
        return column
    if column.type == pa.int64() and not column.null_count:
        values = column.to_numpy()
        apart = int(values[1]) - int(values[0])
        even = range(int(values[0]), int(values[-1]) + 1, apart) if apart > 0 else range(0)
        if len(even) == len(values) and (np.diff(values) == apart).all():
            return even
    for length in (SAMPLE, len(column)):  # what does not pay at the beginning is not tried on all
        begin = column.slice(0, length)
        runs = pc.run_end_encode(begin)
        if runs.nbytes * WORTH > begin.nbytes:
            return column
    return runs


def _unpack(packed: Packed) -> pa.ChunkedArray:
    if isinstance(packed, range):
        return pa.chunked_array([np.arange(len(packed)) * packed.step + packed.start])
    return pc.run_end_decode(packed) if pa.types.is_run_end_encoded(packed.type) else packed
