"""Which tokens a step trains on: a pure function of (seed, epoch, position).

The training text is cut into windows of `context_length` tokens. Each epoch goes through all windows once, in an order
of its own. Because nothing but the seed and the position decides it, a resumed run continues exactly where it was.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.uint16]


def split(tokens: Tokens, val_fraction: float) -> tuple[Tokens, Tokens]:
    """Cut a text into its training part and, at its end, its validation part."""
    cut = len(tokens) - round(len(tokens) * val_fraction)
    return tokens[:cut], tokens[cut:]


def count_windows(tokens: int, context_length: int) -> int:
    """How many windows that many tokens make; each needs one token more than its length, for the last target."""
    return max(0, (tokens - 1) // context_length)


def order(seed: int, epoch: int, windows: int) -> NDArray[np.int64]:
    """The permutation in which an epoch visits the windows.

    Windows are sorted by a hash of (seed, epoch, index): splitmix64 (Steele, Lea and Flood 2014). Integer arithmetic
    alone, so that every machine and every version of numpy gives the same order.
    """
    key = _splitmix64(np.array([seed], dtype=np.uint64)) ^ np.uint64(epoch)
    hashes = _splitmix64(np.arange(windows, dtype=np.uint64) ^ _splitmix64(key))
    return np.argsort(hashes, kind="stable")


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class TrainingWindows:
    """The endless sequence of training windows, epoch after epoch.

    Args:
        tokens: the training part, one dimension.
        context_length: tokens per window.
        seed: decides the orders.
    """

    def __init__(self, tokens: Tokens, context_length: int, seed: int) -> None:
        self.tokens = tokens
        self.context_length = context_length
        self.seed = seed
        self.per_epoch = count_windows(len(tokens), context_length)
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def batch(self, position: int, count: int) -> NDArray[np.int64]:
        """The `count` windows that follow the first `position` ones, (count, context_length + 1).

        The last token of a row is the target of the one before it. A batch may begin in one epoch and end in the next.
        """
        return np.stack([self._window(position + i) for i in range(count)])

    def _window(self, position: int) -> NDArray[np.int64]:
        epoch, index = divmod(position, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, order(self.seed, epoch, self.per_epoch))
        start = int(self._order[1][index]) * self.context_length + self._shift(epoch)
        return self.tokens[start : start + self.context_length + 1].astype(np.int64)

    def _shift(self, epoch: int) -> int:
        """How far this epoch's windows are moved: they don't fill the text, so each epoch leaves out other tokens."""
        spare = len(self.tokens) - 1 - self.per_epoch * self.context_length
        return int(_splitmix64(np.array([self.seed ^ (epoch << 32)], dtype=np.uint64))[0] % np.uint64(spare + 1))


def validation_batches(tokens: Tokens, context_length: int, batch_size: int, limit: int) -> Iterator[NDArray[np.int64]]:
    """Batches of windows for measuring the validation loss, the same ones every time.

    Args:
        tokens: the validation part.
        limit: at most this many batches, spread evenly over the text.

    Yields:
        (up to batch_size, context_length + 1). A text of less than one window gives a single shorter one.
    """
    windows = count_windows(len(tokens), context_length)
    if windows == 0:
        if len(tokens) > 1:
            yield tokens[None, :].astype(np.int64)
        return
    wanted = min(windows, limit * batch_size)
    chosen = np.linspace(0, windows - 1, wanted).round().astype(int) if wanted > 1 else np.array([0])
    for first in range(0, wanted, batch_size):
        rows = [tokens[i * context_length :][: context_length + 1] for i in chosen[first : first + batch_size]]
        yield np.stack(rows).astype(np.int64)
