"""How a driver, or another process, steers a run that trains: pause, resume, save now, stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event

POLL_S = 0.1  # how often a paused run looks for a request


class Control:
    """The wishes of whoever started a run. Every method may be called from any thread, or from a signal handler."""

    def __init__(self) -> None:
        self._stop = Event()
        self._paused = Event()
        self._save = Event()

    def apply(self, request: str | None) -> None:
        """Do what a word asks: pause, resume, save or stop; None asks nothing."""
        match request:
            case "pause":
                self._paused.set()
            case "resume":
                self._paused.clear()
            case "save":
                self._save.set()
            case "stop":
                self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether the run should end after the step at hand."""
        return self._stop.is_set()

    @property
    def paused(self) -> bool:
        """Whether the run should wait; a stop ends the waiting."""
        return self._paused.is_set() and not self._stop.is_set()

    def take_save_request(self) -> bool:
        """Whether a checkpoint was asked for; true once for each request."""
        wanted = self._save.is_set()
        self._save.clear()
        return wanted

    def wait_while_paused(self, each: Callable[[], None]) -> None:
        """Return when the run may go on; until then call `each` every tenth of a second."""
        while self.paused:
            each()
            time.sleep(POLL_S)
