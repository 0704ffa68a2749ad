"""What a user sees when something is wrong: one sentence that says what, where, and what to do.

Every error that bad input, a full disk or a damaged file can cause is a `LabError`. Drivers (command line, app) print
`str(error)` and never a traceback; anything else that reaches them is a defect of the lab.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class LabError(Exception):
    """Base of all errors that are meant for the user; `str(error)` is the whole message."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one setting."""

    field: str
    message: str


class ConfigError(LabError):
    """All problems of a configuration, told together; `problems` lets a form put each beside its field."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(f"{p.field}: {p.message}" for p in problems))


class CorpusError(LabError):
    """A corpus that does not exist, cannot be read, or is too small."""


class RunError(LabError):
    """A run that does not exist, cannot be written, or is in the wrong state for what was asked."""


class RunBusyError(RunError):
    """Another run holds the device; `run_id` is the one that trains ("" if its name is not known yet)."""

    def __init__(self, message: str, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(message)


class CheckpointError(LabError):
    """A checkpoint that is missing, damaged, or does not fit."""


class TrainingError(LabError):
    """Training that cannot go on: memory or disk ran out, or see `DivergedError`."""


class OutOfMemoryError(TrainingError):
    """The device's or the computer's memory was not enough.

    Attributes:
        would_fit: changes that would fit by the estimate, each with `settings` (name -> value), and `saving` and
            `total` in bytes.
    """

    def __init__(self, message: str, would_fit: list[dict[str, Any]]) -> None:
        self.would_fit = would_fit
        super().__init__(message)


class DivergedError(TrainingError):
    """A loss or gradient that is not finite; the same run resumed would get there again."""


def storage_sentence(error: OSError, path: Path) -> str:
    """Say in one sentence why `path` could not be read or written, and what to do.

    Args:
        error: what the operating system answered.
        path: the file or folder that was meant.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk that holds {path} is full. Free some space, then try again."
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{path} may not be used: {error.strerror}. Change its permissions, or choose another folder."
    if error.errno == errno.EROFS:
        return f"{path} cannot be written: {error.strerror}. Make it writable, or choose another folder."
    return f"{path} cannot be used: {error.strerror or error}."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: of PyTorch, Python and the libraries, each says it in its own way."""
    words = str(error).lower()
    told = ("out of memory", "can't allocate memory", "bad_alloc", "alloc_failed")
    return isinstance(error, MemoryError) or any(word in words for word in told)


def first_line(error: BaseException) -> str:
    """What an error of a library says, short enough for a sentence: its kind, and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:200] if lines else type(error).__name__
