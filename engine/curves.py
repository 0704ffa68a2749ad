"""A measured curve, and the few robust numbers that can be read off it at any length.

Medians stand in for means throughout: a single odd step must not decide what is said about a thousand. Of a long curve
an even sample is looked at, so that a million rows cost hardly more than ten thousand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from engine.metrics import Columns

Floats = NDArray[np.float64]

NORMAL = 1 / 0.6745  # the median of |x| of a normal variable is 0.6745 standard deviations
MOST_LOOKED_AT = 20_000  # values, or pairs of neighbours, for one number about the whole curve
MOST_IN_BLOCK = 101  # values that the median of a block is taken of
END_SHARE = 10  # the level at the end is that of the last tenth,
END_ROWS = (5, 1000)  # of at least and at most so many steps


@dataclass(frozen=True)
class Curve:
    """The steps at which something was measured, and its finite values there; both (n,), in order of the steps."""

    steps: NDArray[Any]  # whole numbers, or floats
    values: Floats

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def noise(self) -> float:
        """Standard deviation from step to step, by the differences of neighbours: a trend hardly adds to it."""
        if len(self) < 3:
            return 0.0
        first = np.arange(0, len(self) - 1, 1 + len(self) // MOST_LOOKED_AT)
        return float(np.median(np.abs(self.values[first + 1] - self.values[first])) * NORMAL / math.sqrt(2))

    @cached_property
    def middle(self) -> float:
        """The median of all values; NaN without any."""
        return median(self.values[:: 1 + len(self) // MOST_LOOKED_AT])

    @property
    def start(self) -> float:
        """The level of the first three steps; NaN without any."""
        return median(self.values[:3])

    @property
    def end_rows(self) -> int:
        """How many of the last steps the level at the end is taken of."""
        return min(len(self), max(END_ROWS[0], min(END_ROWS[1], len(self) // END_SHARE)))

    @property
    def end(self) -> float:
        """The level at the end; NaN without any steps."""
        return median(self.values[len(self) - self.end_rows :])

    @property
    def last_step(self) -> int:
        """The last step; 0 without any."""
        return int(self.steps[-1]) if len(self) else 0

    def after(self, step: float) -> Curve:
        """The part after a step."""
        first = int(np.searchsorted(self.steps, step, side="right"))
        return Curve(self.steps[first:], self.values[first:])

    def level_at(self, step: float) -> float:
        """The level around a step, over as many steps as the one at the end; NaN without any."""
        middle, half = int(np.searchsorted(self.steps, step)), self.end_rows // 2 + 1
        return median(self.values[max(0, middle - half) : middle + half])

    def blocks(self, most: int, least: int = 1) -> Curve:
        """The medians of consecutive stretches of equal length, each at its first step.

        Args:
            most: stretches, at most.
            least: steps in a stretch, at least. What does not fill a stretch is left out at the beginning, so that the
                last one ends with the curve.
        """
        size = max(least, -(-len(self) // most))
        count = len(self) // size
        values = self.values[len(self) - count * size :].reshape(count, size)
        steps = self.steps[len(self) - count * size :: size]
        sample = values[:, :: -(-size // MOST_IN_BLOCK)]
        return Curve(steps[:count], np.median(sample, axis=1) if count else np.empty(0))

    def stays_below(self, level: float) -> int | None:
        """The first step from which on no value is above the level; None when the last one is."""
        above = np.flatnonzero(self.values > level)
        first = int(above[-1]) + 1 if len(above) else 0
        return int(self.steps[first]) if first < len(self) else None


def curve(metrics: pd.DataFrame | Columns, column: str) -> Curve:
    """A column of the metrics against their steps; what is missing or not finite is left out."""
    if column not in metrics or "step" not in metrics:
        return Curve(np.empty(0), np.empty(0))
    steps, values = _numbers(metrics["step"]), _numbers(metrics[column])
    there = np.isfinite(values)
    if steps.dtype == np.float64:
        there &= np.isfinite(steps)
    return Curve(steps, values) if there.all() else Curve(steps[there], values[there])


def _numbers(column: ArrayLike) -> NDArray[Any]:
    """Floats, or whole numbers without gaps, as they are: copies of a million rows cost more than all that is read."""
    values = np.asarray(column)
    if values.dtype in (np.float64, np.int64):
        return values
    numbers = pd.to_numeric(pd.Series(column), errors="coerce")
    return np.asarray(numbers.to_numpy(dtype=np.float64, na_value=np.nan))


def median(values: Floats) -> float:
    """The median; NaN of nothing."""
    return float(np.median(values)) if len(values) else math.nan
