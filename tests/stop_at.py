"""A control that stops a training by itself."""

from __future__ import annotations

from engine.control import Control


class StopAt(Control):
    """Stops once so many steps are logged."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    @property
    def stopping(self) -> bool:
        """Asked before each step."""
        self.step -= 1
        return self.step < 0 or super().stopping
