"""What was measured on the way to a run: of a branch, the rows of its parents up to the branch, then its own.

A branch counts its steps, tokens and seconds on from its parent's, so that the rows fit together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.errors import RunError
from engine.metrics import Columns


class Measured(Protocol):
    """What is read of a run: a `Run`, or something that was read before."""

    @property
    def info(self) -> dict[str, Any]: ...

    @property
    def state(self) -> str: ...

    def columns(self, *names: str) -> Columns: ...


Load = Callable[[str], Measured]  # raises RunError when there is no such run


@dataclass(frozen=True)
class History:
    """Columns of the metrics over all rows, (rows,) each.

    Attributes:
        columns: name -> values.
        own: the first row that the run measured itself; those before it are its parents'.
    """

    columns: Columns
    own: int

    def __getitem__(self, column: str) -> NDArray[Any]:
        return self.columns[column]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def where(self, rows: NDArray[np.bool_]) -> History:
        """Some of the rows, in their order; the same object when it is all of them."""
        if rows.all():
            return self
        columns = {name: values[rows] for name, values in self.columns.items()}
        return History(columns, int(np.count_nonzero(rows[: self.own])))


def ancestors(run_id: str, load: Load) -> list[tuple[str, int]]:
    """Where a run comes from, nearest first: its parent and the step it was branched at, then the parent's parent …

    It ends at a run from fresh weights, or at one that is no longer there.

    Raises:
        RunError: there is no run `run_id`.
    """
    found: list[tuple[str, int]] = []
    seen, info = {run_id}, load(run_id).info
    while (link := _parent(info)) and link[0] not in seen:
        try:
            info = load(link[0]).info
        except RunError:
            break
        seen.add(link[0])
        found.append(link)
    return found


def _parent(info: Mapping[str, Any]) -> tuple[str, int] | None:
    parent = info.get("parent")
    if not isinstance(parent, dict):
        return None
    run_id, step = parent.get("run"), parent.get("step")
    return (run_id, step) if isinstance(run_id, str) and type(step) is int else None


def history(run_id: str, load: Load, columns: Sequence[str]) -> History:
    """A run's rows and those before them.

    Args:
        run_id: of the run.
        load: reads a run.
        columns: of the metrics.

    Raises:
        RunError: there is no run `run_id`.
    """
    found = History(load(run_id).columns(*columns), 0)
    for parent, step in ancestors(run_id, load):
        rows = load(parent).columns("step", *columns)
        until = int(np.searchsorted(rows["step"], step, side="right"))
        joined = {name: np.concatenate([rows[name][:until], found[name]]) for name in columns}
        found = History(joined, found.own + until)
    return found
