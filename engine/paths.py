"""Where the lab keeps its data. Both folders can be moved by an environment variable, for example to a larger disk."""

from __future__ import annotations

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
ASSETS = Path(__file__).resolve().parent / "assets"


def runs_dir() -> Path:
    """The folder that holds all runs: `$LAB_RUNS`, or `runs/` in the project."""
    return Path(os.environ.get("LAB_RUNS") or PROJECT / "runs")


def corpora_dir() -> Path:
    """The folder that holds all corpora: `$LAB_CORPORA`, or `corpora/` in the project."""
    return Path(os.environ.get("LAB_CORPORA") or PROJECT / "corpora")
