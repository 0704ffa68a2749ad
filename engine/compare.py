"""Several runs held against each other: the settings in which they differ, and what came of it.

from engine import compare

both = compare([first.id, second.id])
print(both.differences, both.results, both.same_tokens.table, sep="\\n\\n")
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.config import SETTINGS
from engine.corpora.density import bits_per_byte, bytes_per_token
from engine.errors import RunError
from engine.files import object_in
from engine.history import History, Load, Measured, ancestors, history
from engine.metrics import Columns
from engine.run import load_run

WINDOW = 0.05  # a training loss is the mean over the last twentieth of the tokens, or seconds, up to where it is read

# Which end of a column is the good one. The others say how much was done rather than how well.
LOWER_IS_BETTER = {
    "train_loss": True,
    "val_loss": True,
    "best_val_loss": True,
    "perplexity": True,
    "bits_per_byte": True,
    "tokens_per_s": False,
    "elapsed_s": True,
    "wall_s": True,
    "memory_gib": True,
}


@dataclass(frozen=True)
class Reading:
    """The losses of all runs at one place of an axis, the furthest that every one of them has reached.

    Attributes:
        axis: `tokens` or `elapsed_s`.
        at: the place, in tokens or seconds; None when nothing was measured.
        table: a row a run, indexed by id. `step`: the last one up to there. `train_loss`: mean over the last twentieth
            of the way there, as a single step says little. `val_loss`: the last one measured up to there, and `val_at`:
            where that was, on the axis. Of a branch the steps of its parents count too, but no loss that they had on
            another text.
    """

    axis: str
    at: float | None
    table: pd.DataFrame


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other. A value that nobody measured is NaN or None.

    Attributes:
        settings: a row a setting, a column a run.
        results: a row a run, indexed by id:
            `name`, `state`, `parameters`, `steps`, `tokens` (a branch counts its parents' steps and tokens too);
            `train_loss`: nats per token, mean over the last twentieth of the run's own tokens; `val_loss`: the last one
            measured; `best_val_loss`: the lowest one; `perplexity`: e to the `val_loss`; `bits_per_byte`: the
            `val_loss` by the bytes of the validation text, where its tokens are here; `tokens_per_s`: median of its
            steps; `elapsed_s`: training time, pauses left out; `wall_s`: from its start to its last step, everything
            included, and both with what a branch's parents took up to it; `memory_gib`: the most that was measured.
        same_corpus: whether all are known to train on one text; otherwise their training losses cannot be compared.
        same_validation: whether all are known to validate on one; otherwise neither can their validation losses.
    """

    settings: pd.DataFrame
    results: pd.DataFrame
    same_corpus: bool
    same_validation: bool
    _read: Callable[[str], Reading] = field(repr=False)

    @cached_property
    def same_tokens(self) -> Reading:
        """The losses at the largest number of tokens that all have reached; read when they are asked for first."""
        return self._read("tokens")

    @cached_property
    def same_time(self) -> Reading:
        """The losses at the most seconds of training that all have reached; read when they are asked for first."""
        return self._read("elapsed_s")

    @property
    def differences(self) -> pd.DataFrame:
        """The settings in which the runs are not all alike."""
        return self.settings[[len(set(map(repr, row))) > 1 for row in self.settings.to_numpy()]]

    def best(self, column: str, table: pd.DataFrame | None = None) -> list[str]:
        """The ids of the runs with the best value of a column; none where the values cannot be compared.

        Args:
            column: of `LOWER_IS_BETTER`; of another one there is no best.
            table: `results`, or the table of a reading.
        """
        comparable = self.same_corpus if column == "train_loss" else self.same_validation
        if column not in LOWER_IS_BETTER or (column in _LOSSES and not comparable):
            return []
        values = (self.results if table is None else table)[column]
        values = values[np.isfinite(values)]
        if len(values) < 2:
            return []
        return list(values.index[values == (values.min() if LOWER_IS_BETTER[column] else values.max())])


_LOSSES = ("train_loss", "val_loss", "best_val_loss", "perplexity", "bits_per_byte")
_MEASURED = ("step", "tokens", "elapsed_s", "time", "train_loss", "val_loss", "tokens_per_s", "memory_gib")


def compare(run_ids: Iterable[str], *, load: Load = load_run) -> Comparison:
    """Hold runs against each other.

    Args:
        run_ids: at least one; a repeated one counts once.
        load: reads a run; for what has been read already.

    Raises:
        RunError: there is no run of a name, no name, or one id where a list of them belongs.
    """
    if isinstance(run_ids, str):  # else its letters would be looked for, one by one
        raise RunError(f"compare takes a list of ids: compare([{run_ids!r}]).")
    ids = list(dict.fromkeys(run_ids))
    if not ids:
        raise RunError("There is nothing to compare: name at least one run.")
    known = cache(lambda run_id: _Known(load(run_id)))  # what is said of a parent of many is read once
    infos = {run_id: known(run_id).info for run_id in ids}
    return Comparison(
        settings=_settings(infos),
        results=_table({run_id: _results(run_id, known) for run_id in ids}),
        same_corpus=_all_the_same([_training_text(info) for info in infos.values()]),
        same_validation=_all_the_same([_validation_text(info) for info in infos.values()]),
        _read=lambda axis: _reading(ids, known, axis),
    )


class _Known:
    """A run whose info and state are read once. Its columns are not kept here: those of many runs would be too much."""

    def __init__(self, run: Measured) -> None:
        self.run, self.info, self.state = run, run.info, run.state

    def columns(self, *names: str) -> Columns:
        return self.run.columns(*names)


def _table(rows: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows.values()), index=pd.Index(rows, name="run"))


def _settings(infos: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    columns = {run_id: [object_in(info, "config").get(name) for name in SETTINGS] for run_id, info in infos.items()}
    return pd.DataFrame(columns, index=pd.Index(SETTINGS, name="setting"), dtype=object)


def _training_text(info: Mapping[str, Any]) -> Any:
    """What tells the text of a run from another one's; None when it is not known."""
    return info.get("corpus_sha256")


def _validation_text(info: Mapping[str, Any]) -> Any:
    """The same of its validation text."""
    own = _training_text(info)
    return info.get("val_corpus_sha256") or (own and (own, object_in(info, "config").get("val_fraction")))


def _all_the_same(texts: list[Any]) -> bool:
    return len(texts) == 1 or (texts[0] is not None and all(text == texts[0] for text in texts))


def _results(run_id: str, load: Load) -> dict[str, Any]:
    run = load(run_id)
    info, own = run.info, History(run.columns(*_MEASURED), 0)
    there = len(own) > 0
    measured = _finite(own["val_loss"])
    val_loss = float(measured[-1]) if len(measured) else math.nan
    density = _bytes_per_token(info)
    return {
        "name": str(info.get("name") or run_id),
        "state": run.state,
        "parameters": _number(info.get("parameters")),
        "steps": float(own["step"][-1]) if there else math.nan,
        "tokens": float(own["tokens"][-1]) if there else math.nan,
        "train_loss": _level(own, "tokens", own["tokens"][-1], _begin(info, own)) if there else math.nan,
        "val_loss": val_loss,
        "best_val_loss": float(measured.min()) if len(measured) else math.nan,
        "perplexity": math.exp(val_loss) if val_loss < 700 else math.nan,
        "bits_per_byte": bits_per_byte(val_loss, density) if density else math.nan,
        "tokens_per_s": _of_finite(np.median, own["tokens_per_s"]),
        "elapsed_s": float(own["elapsed_s"][-1]) if there else math.nan,
        "wall_s": _wall_s(info, own["time"])
        + sum(_wall_s_until(step, load(run)) for run, step in ancestors(run_id, load)),
        "memory_gib": _of_finite(np.max, own["memory_gib"]),
    }


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    there = np.isfinite(values)
    return values if there.all() else values[there]


def _of_finite(what: Callable[[NDArray[Any]], Any], values: NDArray[Any]) -> float:
    values = _finite(values)
    return float(what(values)) if len(values) else math.nan


def _wall_s(info: Mapping[str, Any], times: NDArray[np.datetime64]) -> float:
    try:
        last = pd.Timestamp(times[-1]).tz_localize("UTC")
        seconds = (last - datetime.fromisoformat(info["created"])).total_seconds()
    except (IndexError, KeyError, TypeError, ValueError):
        return math.nan
    return float(seconds) if seconds >= 0 else math.nan


def _wall_s_until(step: int, parent: Measured) -> float:
    """What a parent took to get from its start to a step; nothing when it was branched where it began itself."""
    rows = parent.columns("step", "time")
    times = rows["time"][: int(np.searchsorted(rows["step"], step, side="right"))]
    return _wall_s(parent.info, times) if len(times) else 0.0


def _begin(info: Mapping[str, Any], own: History) -> float:
    """Where a run's own tokens begin, to a step."""
    return float(own["tokens"][0]) if info.get("parent") else 0.0


def _bytes_per_token(info: Mapping[str, Any]) -> float | None:
    """Of the validation text."""
    config = object_in(info, "config")
    if info.get("val_corpus_sha256"):
        return bytes_per_token(str(config.get("val_corpus")), info["val_corpus_sha256"])
    share = config.get("val_fraction")
    if not isinstance(share, float):
        return None
    return bytes_per_token(str(config.get("corpus")), info.get("corpus_sha256", ""), share)


# ------------------------------------------------------------------------------------------------- readings


def _without_other_texts(run_id: str, load: Load, rows: History) -> History:
    """Leave out the losses that a branch's parents measured on another text than its own."""
    info, columns = load(run_id).info, dict(rows.columns)
    for (parent, end), (_, begin) in pairwise([*ancestors(run_id, load), ("", -1)]):
        its_own = (rows["step"] > begin) & (rows["step"] <= end)
        for column, text in (("train_loss", _training_text), ("val_loss", _validation_text)):
            if text(load(parent).info) != text(info):
                columns[column] = np.where(its_own, math.nan, columns[column])
    return History(columns, rows.own)


def _reading(run_ids: Iterable[str], load: Load, axis: str) -> Reading:
    def rows(run_id: str) -> History:
        """One run's at a time: those of many long ones would be too much."""
        read = history(run_id, load, ("step", axis, "train_loss", "val_loss"))
        return _without_other_texts(run_id, load, read).where(np.isfinite(read[axis]))

    places = (_finite(history(run_id, load, [axis])[axis]) for run_id in run_ids)
    at = min((float(there[-1]) for there in places if len(there)), default=None)
    return Reading(axis, at, _table({run_id: _read_at(rows(run_id), axis, at) for run_id in run_ids}))


def _read_at(rows: History, axis: str, at: float | None) -> dict[str, float]:
    end = 0 if at is None else int(np.searchsorted(rows[axis], at, side="right"))
    measured = np.flatnonzero(np.isfinite(rows["val_loss"][:end]))
    last = measured[-1] if len(measured) else None
    return {
        "step": float(rows["step"][end - 1]) if end else math.nan,
        "train_loss": math.nan if at is None else _level(rows, axis, at),
        "val_loss": math.nan if last is None else float(rows["val_loss"][last]),
        "val_at": math.nan if last is None else float(rows[axis][last]),
    }


def _level(rows: History, axis: str, at: float, begin: float = 0.0) -> float:
    """The mean training loss over the last twentieth of the way from `begin` to `at`, of the last step there at least.

    Not a number when one of them was none: a run that diverged there has no loss.
    """
    places: NDArray[Any] = rows[axis]
    end = int(np.searchsorted(places, at, side="right"))
    first = min(int(np.searchsorted(places, at - (at - begin) * WINDOW, side="right")), end - 1)
    level = float(np.mean(rows["train_loss"][first:end])) if end else math.nan
    return level if math.isfinite(level) else math.nan
