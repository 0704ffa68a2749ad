"""Long work on a terminal: its stages as progress bars on standard error, and Ctrl-C as a wish to stop."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from engine.corpora import jobs
from engine.corpora.progress import Stage


class Bars:
    """One bar a stage: `tell` is called with each `Stage`, `close` at the end."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._title = ""

    def tell(self, stage: Stage) -> None:
        """Show how far the work is."""
        if self._bar is None or stage.title != self._title or stage.total != self._bar.total:
            self._begin(stage)
        self._bar.update(stage.done - self._bar.n)

    def _begin(self, stage: Stage) -> None:
        from tqdm import tqdm

        self.close()
        self._title = stage.title
        in_bytes = stage.unit == "bytes"
        self._bar = tqdm(
            desc=stage.title,
            initial=stage.kept,
            total=stage.total,
            unit="B" if in_bytes else f" {stage.unit}",
            unit_scale=in_bytes,
            dynamic_ncols=True,
            delay=0.5,  # work that is done at once needs no bar
            mininterval=0.2 if sys.stderr.isatty() else 10,
        )

    def close(self) -> None:
        """Leave the last bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def interruptible(name: str) -> Iterator[None]:
    """The first SIGINT or SIGTERM cancels this process' job on a corpus, as the app's button does.

    A second SIGINT ends it at once.
    """
    asked = False

    def cancel(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True
        jobs.cancel(name)

    before = {number: signal.signal(number, cancel) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
