"""The engine of the LLM pretraining lab: a plain Python library that trains small GPTs and keeps what it measured.

    from engine import TrainConfig, train

    run = train(TrainConfig(config="nano", corpus="verdict", epochs=3))
    print(run.metrics.tail(), run.samples.text.iloc[-1])

Importing it is cheap: torch is loaded when something is trained or generated.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

# Arrow reads these when it is loaded: it is to take memory as it needs it, not a gigabyte at once, and to give back
# what nobody took again for a second. Sooner, it would take the same pages from the system over and over while it
# reads.
os.environ.setdefault("MIMALLOC_ARENA_EAGER_COMMIT", "0")
os.environ.setdefault("MIMALLOC_PURGE_DELAY", "1000")
# And torch's threads this: one that waits for another looks for some microseconds, then sleeps. By default it looks for
# milliseconds, which is no faster, and several times slower where somebody else wants the cores too.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# And cuBLAS this: with other scratch memory it may not repeat its sums bit for bit (see engine/repeatable.py).
if os.environ.get("CUBLAS_WORKSPACE_CONFIG") != ":16:8":
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"

if TYPE_CHECKING:
    from engine.compare import Comparison, compare
    from engine.config import ModelConfig, TrainConfig
    from engine.errors import LabError
    from engine.generate import generate
    from engine.run import Run, list_runs, load_run
    from engine.start import branch_run, resume_run
    from engine.train import train
    from engine.trash import restore_run, trash_run

_PUBLIC = {
    "Comparison": "engine.compare",
    "LabError": "engine.errors",
    "ModelConfig": "engine.config",
    "Run": "engine.run",
    "TrainConfig": "engine.config",
    "branch_run": "engine.start",
    "compare": "engine.compare",
    "generate": "engine.generate",
    "list_runs": "engine.run",
    "load_run": "engine.run",
    "restore_run": "engine.trash",
    "resume_run": "engine.start",
    "train": "engine.train",
    "trash_run": "engine.trash",
}
__all__ = [
    "Comparison",
    "LabError",
    "ModelConfig",
    "Run",
    "TrainConfig",
    "branch_run",
    "compare",
    "generate",
    "list_runs",
    "load_run",
    "restore_run",
    "resume_run",
    "train",
    "trash_run",
]


class _Engine(ModuleType):
    """Keeps `engine.train` and `engine.generate` functions, though modules have these names too.

    Python binds a submodule to its package's attribute of the same name when it is first imported; for public names
    that is not wanted here. The modules stay importable: `from engine.train import …`, `python -m engine.train`.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Engine


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
