"""Many runs in one chart: their curves over each other, and a setting against what came of it.

Figures are plain dicts in Plotly's form, as in `charts`.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from app.widgets.charts import (
    DASHES,
    MAX_POINTS,
    PALETTE,
    Figure,
    View,
    add_rungs,
    colour,
    colour_number,
    empty_figure,
    mark_not_finite,
    plain_figure,
    say_if_empty,
    smooth,
    thin,
    trace,
)
from engine.history import History

MOST_WITH_RAW = 6  # runs; of more the raw lines would hide each other
MOST_WITH_ALL_HOVER = 8  # runs whose validation losses have room in the box beside the cursor
POINTS = 24_000  # of a chart: what a browser draws without a wait
LEAST_POINTS = 150  # of a line
MARKERS = 2_000  # of a chart, which are validation losses: each takes a browser as long as ten points of a line
LEAST_MARKERS = 40  # of a line
LEGEND_HEIGHT = 80  # pixels: four rows; a longer legend scrolls
NEAR = {5: 0, 6: 3}  # places in the palette: indigo is near to blue, crimson to magenta
LONGEST_NAME = 34  # characters, in a legend of many runs

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """Something that is measured at every step, as a chart of several runs needs it.

    Attributes:
        column: of the metrics.
        title, unit: for people.
        hover: format of a value.
        smoothed: whether a moving average is drawn of it; what changes by plan needs none.
    """

    column: str
    title: str
    unit: str
    hover: str = ",.4~g"
    smoothed: bool = True


MEASURES = {
    measure.column: measure
    for measure in (
        Measure("train_loss", "Loss", "nats per token", ".4f"),
        Measure("learning_rate", "Learning rate", "", ".3e", smoothed=False),
        Measure("tokens_per_s", "Throughput", "tokens per second", ",.0f"),
        Measure("grad_norm", "Gradient norm", "", ".3f"),
        Measure("memory_gib", "Memory", "GiB", ",.2f", smoothed=False),
    )
}


@dataclass(frozen=True)
class RunCurve:
    """What is drawn of a run: at most so many points.

    Attributes:
        x, raw, smoothed: of the measured column, (points,) each.
        val_x, val: the validation losses where they were measured; empty for another column than the loss.
        not_finite: where the value was not a number, or, of what is not measured at every step, missing.
    """

    x: NDArray[Any]
    raw: Numbers
    smoothed: Numbers
    val_x: NDArray[Any]
    val: Numbers
    not_finite: NDArray[Any]


def drawn_columns(column: str, x: str) -> tuple[str, ...]:
    """The columns that `run_curve` draws."""
    return (x, column, "val_loss") if column == "train_loss" else (x, column)


def run_curve(rows: History, column: str, view: View, runs: int = 1) -> RunCurve:
    """A run's curve; of a branch from its parent's last step on, where it begins at its parent's value.

    Args:
        rows: with `drawn_columns`; a branch's parents' rows before its own, so that its moving average goes on from
            theirs.
        column: a key of `MEASURES`.
        view: the axis and the smoothing that are wanted.
        runs: how many there are in the chart: of many, each has fewer points.
    """
    most = most_points(runs)
    rows = rows.where(np.isfinite(rows[view.x]))
    weight = view.smoothing if MEASURES[column].smoothed else 0.0
    x, raw = rows[view.x], rows[column].astype(float, copy=False)
    smoothed = smooth(pd.Series(raw, copy=False), weight).to_numpy()
    first = rows.own
    if 0 < first < len(x) and x[first - 1] <= x[first]:  # a branch on another text counts its epochs anew
        first -= 1
    x, raw, smoothed = x[first:], raw[first:], smoothed[first:]
    chosen = thin(x, raw if runs <= MOST_WITH_RAW else smoothed, most) if len(x) else np.empty(0, dtype=np.int64)
    val = rows["val_loss"][first:] if column == "train_loss" else np.empty(0)
    measured = np.flatnonzero(np.isfinite(val))
    markers = min(MAX_POINTS, max(LEAST_MARKERS, MARKERS // runs))
    measured = measured[thin(x[measured], val[measured], markers)] if len(measured) > markers else measured
    return RunCurve(x[chosen], raw[chosen], smoothed[chosen], x[measured], val[measured], x[~np.isfinite(raw)][:10])


def most_points(runs: int) -> int:
    """How many points a line may have when so many runs are drawn."""
    lines = runs * (3 if runs <= MOST_WITH_RAW else 2)
    return min(MAX_POINTS, max(LEAST_POINTS, POINTS // max(1, lines)))


def overlay_figure(
    curves: Mapping[str, RunCurve],
    names: Mapping[str, str],
    column: str,
    view: View,
    rungs: Sequence[tuple[str, float]] = (),
) -> Figure:
    """The curves of several runs over each other: the moving average, the raw line faint behind it, validation points.

    Args:
        curves: by run id.
        names: of the runs, by id.
        column: a key of `MEASURES`.
        view: how they are looked at; its `parts` matter for the loss only.
        rungs: of the loss ladder that all of the runs share.
    """
    measure = MEASURES[column]
    figure = empty_figure(view, measure.unit)
    dashes = dict(zip(curves, _dashes(curves), strict=True))
    with_train = column != "train_loss" or "train" in view.parts
    for run_id, drawn in curves.items():
        style = _Style(run_id, _short(names[run_id], len(curves)), dashes[run_id], len(curves))
        if with_train:
            figure["data"] += _trained(drawn, style, measure, with_raw=measure.smoothed and view.smoothing > 0)
            mark_not_finite(figure, drawn.not_finite if column == "train_loss" else np.empty(0))
        if column == "train_loss" and "val" in view.parts:
            figure["data"] += [_validated(drawn, style, measure, with_train=with_train)]
    if column == "train_loss":
        add_rungs(figure, rungs)
    figure["layout"]["uirevision"] += f" {column}"
    figure["layout"]["yaxis"]["showspikes"] = False  # the line at the cursor is for x, which all runs share
    figure["layout"]["legend"] |= dict(groupclick="togglegroup", tracegroupgap=0, maxheight=LEGEND_HEIGHT)
    if len(curves) > 4:
        figure["layout"]["legend"] |= dict(entrywidth=250, font=dict(size=11))
    return say_if_empty(figure)


@dataclass(frozen=True)
class _Style:
    run_id: str
    name: str
    dash: str
    runs: int

    @property
    def alone(self) -> bool:
        return self.runs == 1

    @property
    def group(self) -> dict[str, str]:
        """A click on a run's name shows and hides all of its lines."""
        return {} if self.alone else {"legendgroup": self.run_id}


def _trained(drawn: RunCurve, style: _Style, measure: Measure, *, with_raw: bool) -> list[dict[str, Any]]:
    tint = colour(style.run_id)
    is_loss = measure.column == "train_loss"
    name = "training" if style.alone and is_loss else style.name
    lines = []
    if with_raw and style.runs <= MOST_WITH_RAW:
        faint = trace(drawn.x, drawn.raw, f"{name}, raw", dict(color=tint, width=1), opacity=0.35, showlegend=False)
        lines += [faint | style.group if style.alone else _silent(faint | style.group)]
    line = dict(color=tint, width=2, dash=style.dash)
    lines += [trace(drawn.x, drawn.smoothed, name, line, hover=measure.hover, showlegend=True) | style.group]
    return lines


def _validated(drawn: RunCurve, style: _Style, measure: Measure, *, with_train: bool) -> dict[str, Any]:
    name = "validation" if style.alone else f"{style.name}, validation"
    tint = PALETTE[(colour_number(style.run_id) + (1 if style.alone else 0)) % len(PALETTE)]
    size = 8 if style.runs <= 4 and len(drawn.val) <= 40 else 5
    line = trace(drawn.val_x, drawn.val, name, dict(color=tint, width=1, dash="dot"), hover=measure.hover)
    line |= dict(mode="lines+markers", marker=dict(color=tint, size=size, symbol="diamond"))
    line |= dict(showlegend=style.alone or not with_train) | style.group
    return _silent(line) if with_train and style.runs > MOST_WITH_ALL_HOVER else line


def _silent(line: dict[str, Any]) -> dict[str, Any]:
    """Without a place in the box beside the cursor."""
    return {key: value for key, value in line.items() if key != "hovertemplate"} | dict(hoverinfo="skip")


def _dashes(run_ids: Iterable[str]) -> Iterator[str]:
    """Runs of one colour, or of two that are hard to tell apart, differ by their dashes."""
    taken: dict[int, int] = {}
    for run_id in run_ids:
        number = NEAR.get(colour_number(run_id), colour_number(run_id))
        yield DASHES[taken.get(number, 0) % len(DASHES)]
        taken[number] = taken.get(number, 0) + 1


def _short(name: str, runs: int) -> str:
    """A name that leaves room for others: its beginning and its end, where names of a series differ."""
    if runs <= 4 or len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 13]} … {name[-10:]}"


def scatter_figure(
    points: pd.DataFrame, names: Mapping[str, str], x_title: str, y_title: str, *, log_x: bool, log_y: bool
) -> Figure:
    """A point a run: a setting against a result.

    Args:
        points: columns `x` and `y`, indexed by run id; `x` may hold words.
        names: of the runs, by id.
    """
    is_number = pd.api.types.is_numeric_dtype(points["x"])
    figure = plain_figure(x_title, y_title, log_x=log_x and is_number, log_y=log_y)
    figure["layout"] |= dict(hovermode="closest", showlegend=False)
    figure["layout"]["uirevision"] = f"{x_title} {y_title} {log_x} {log_y}"
    if not is_number:
        figure["layout"]["xaxis"]["type"] = "category"
    points = points.dropna()
    if points.empty:
        return say_if_empty(figure)
    figure["data"] = [
        dict(
            type="scatter",
            mode="markers",
            x=points["x"].tolist() if is_number else [html.escape(str(x), quote=False) for x in points["x"]],
            y=[float(f"{y:.6g}") for y in points["y"]],
            text=[html.escape(names[run_id], quote=False) for run_id in points.index],
            marker=dict(size=11, color=[colour(run_id) for run_id in points.index]),
            hovertemplate="%{text}<br>%{x}: %{y}<extra></extra>",
        )
    ]
    return figure
