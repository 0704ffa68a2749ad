"""Chosen runs as they are now, and what is worked out from them: once for all tabs, not again while nothing changed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.widgets import snapshot
from app.widgets.charts import View
from app.widgets.comparison_charts import RunCurve, drawn_columns, overlay_figure, run_curve
from engine.compare import Comparison, compare
from engine.corpora.ladder import cached_ladder
from engine.environment import give_back_memory
from engine.errors import RunError
from engine.history import Load, ancestors, history
from engine.run import Run, load_run

Rungs = tuple[tuple[str, float], ...]
THREADS = min(4, os.cpu_count() or 1)  # each holds some columns of a run for a moment
LARGE = 20 * 2**20  # bytes of metrics, from which on comparing takes a moment
HEAD_START_S = 0.3  # for the browser, which draws the curves, often on the same cores
State = tuple[Path, tuple[Any, ...]]  # a run's folder, and its signature


@dataclass(frozen=True)
class Choice:
    """Runs, and the state that they and the runs they were branched from are in.

    Attributes:
        states: of each chosen run, in their order: its own and those of its ancestors, nearest first.
    """

    states: tuple[tuple[State, ...], ...]

    @property
    def ids(self) -> list[str]:
        """Of the chosen runs."""
        return [states[0][0].name for states in self.states]

    @property
    def names(self) -> dict[str, str]:
        """Of the chosen runs by id, each another one."""
        names = {run_id: str(_info(*states[0]).get("name") or run_id) for run_id, states in self.by_id.items()}
        all_names = list(names.values())
        told = {i: name if all_names.count(name) == 1 else f"{name} ({i[-4:]})" for i, name in names.items()}
        again = list(told.values())
        return {i: name if again.count(name) == 1 else f"{names[i]} ({i})" for i, name in told.items()}

    @property
    def by_id(self) -> dict[str, tuple[State, ...]]:
        """The states by run id."""
        return dict(zip(self.ids, self.states, strict=True))


def choice(runs: Sequence[Run]) -> Choice:
    """The runs as they are now."""
    return Choice(tuple(_states(run) for run in runs))


def _states(run: Run) -> tuple[State, ...]:
    own = (run.folder, run.signature)
    if not _info(*own).get("parent"):
        return (own,)
    found = []
    for run_id, _ in ancestors(run.id, load_run):
        parent = Run(run.folder.with_name(run_id))
        found.append((parent.folder, parent.signature))
    return (own, *found)


@lru_cache(maxsize=512)
def _info(folder: Path, signature: tuple[Any, ...]) -> dict[str, Any]:
    """Without metrics, which names don't need."""
    return Run(folder).info


def _load(states: Sequence[State]) -> Load:
    """Reads the runs in these states, and no others."""
    known = {folder.name: (folder, signature) for folder, signature in states}

    def load(run_id: str) -> snapshot.Snapshot:
        if run_id not in known:
            raise RunError(f"There is no run {run_id}.")
        return snapshot.read(*known[run_id])

    return load


@lru_cache(maxsize=4)
def compared(chosen: Choice) -> Comparison:
    """Settings and results of the runs."""
    if sum(_table_bytes(states[0][0]) for states in chosen.states) > LARGE:
        time.sleep(HEAD_START_S)
    found = compare(chosen.ids, load=_load([state for states in chosen.states for state in states]))
    give_back_memory()
    return found


def _table_bytes(folder: Path) -> int:
    try:
        return (folder / "metrics.parquet").stat().st_size
    except OSError:
        return 0


@lru_cache(maxsize=16)
def overlay(chosen: Choice, column: str, view: View, rungs: Rungs) -> str:
    """The curves of the runs over each other, as JSON."""
    runs = len(chosen.ids)
    with ThreadPoolExecutor(THREADS) as pool:  # reading and averaging leave Python's lock to others
        curves = pool.map(lambda states: _curve(states, column, view.x, view.smoothing, runs), chosen.states)
        by_id = dict(zip(chosen.ids, curves, strict=True))
    give_back_memory()  # columns of millions of rows, of which some thousand points are left
    return json.dumps(overlay_figure(by_id, chosen.names, column, view, rungs))


@lru_cache(maxsize=256)
def _curve(states: tuple[State, ...], column: str, x: str, smoothing: float, runs: int) -> RunCurve:
    run_id = states[0][0].name
    rows = history(run_id, _load(states), drawn_columns(column, x))
    return run_curve(rows, column, View(x=x, smoothing=smoothing), runs)


def shared_rungs(chosen: Choice) -> Rungs:
    """The rungs of the loss ladder, when all runs are on the same texts: those of other texts mean something else."""
    texts = {_texts(_info(*states[0])) for states in chosen.states}
    text = texts.pop()
    ladder = cached_ladder(*text) if text and not texts else None
    return tuple((rung.name, rung.loss) for rung in ladder.rungs) if ladder else ()


def _texts(info: Mapping[str, Any]) -> tuple[str, str | None, float] | None:
    """What names the ladder of a run."""
    config = info.get("config")
    fraction = config.get("val_fraction") if isinstance(config, dict) else None
    if not isinstance(fraction, float):
        return None
    return str(info.get("corpus_sha256")), info.get("val_corpus_sha256"), fraction


@lru_cache(maxsize=512)
def problems(folder: Path, signature: tuple[Any, ...], column: str, x: str) -> list[str]:
    """A sentence for each damaged file of a run; of the metrics only what is drawn is looked at."""
    return Run(folder).problems_in(*drawn_columns(column, x))
