"""How long work tells how far it is, and how it is asked to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from engine.errors import LabError


class CancelledError(LabError):
    """The person who waited asked to stop; what can be kept is kept."""


@dataclass(frozen=True)
class Stage:
    """One stretch of work.

    Attributes:
        title: what is being done, such as "Downloading TinyStories".
        unit: of the numbers: "bytes", or a plural noun such as "books".
        done, total: how far; the total is None when nobody knows.
        kept: how much of `done` was there before this attempt, so that a speed is not flattered by it.
    """

    title: str
    unit: str = "bytes"
    done: int = 0
    total: int | None = None
    kept: int = 0


class Progress:
    """Handed to long work: it says what it does, and asks whether it should stop. Safe to use from several threads.

    Args:
        tell: called with the stage whenever something changed; must be quick, and throttles itself.
        cancelled: whether somebody asked to stop.
    """

    def __init__(
        self, tell: Callable[[Stage], None] = lambda stage: None, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        self._tell = tell
        self._cancelled = cancelled
        self._lock = threading.Lock()
        self.stage = Stage("")

    def begin(self, title: str, total: int | None = None, *, unit: str = "bytes", kept: int = 0) -> None:
        """Start a stage, of which `kept` is done already.

        Raises:
            CancelledError: somebody asked to stop.
        """
        self.check()
        with self._lock:
            self.stage = Stage(title, unit, kept, total, kept)
            self._tell(self.stage)

    def advance(self, amount: int) -> None:
        """`amount` more is done; negative when kept work turned out to be useless.

        Raises:
            CancelledError: somebody asked to stop.
        """
        self.check()
        with self._lock:
            old = self.stage
            self.stage = Stage(old.title, old.unit, old.done + amount, old.total, old.kept)
            self._tell(self.stage)

    def check(self) -> None:
        """Stop here if somebody asked for it.

        Raises:
            CancelledError: somebody did.
        """
        if self._cancelled():
            raise CancelledError("Cancelled.")
