"""Measured rows in, figures out. Knows nothing of Streamlit or of where rows come from.

A figure is a plain dict in Plotly's own form, which `go.Figure(figure)` takes too (a test holds it so). Building it as
a `go.Figure` would cost ten times as much, and a live view builds four of them a second beside the training.

Colours are those of `PALETTE`, for a light background; whoever shows a figure on another one exchanges them.
"""

from __future__ import annotations

import hashlib
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tsdownsample import MinMaxLTTBDownsampler

MAX_POINTS = 1000  # per line: about one for each pixel of a wide chart
PALETTE = ("#0f66b8", "#d1570b", "#0b8467", "#b13f86", "#8a6d00", "#3b3f9e", "#c2334b", "#5d6b7a")
ALARM = PALETTE[6]
Figure = dict[str, Any]
DASHES = ("solid", "dash", "dot", "dashdot")

# What x can be: column of the metrics -> title of the axis.
AXES = {"step": "Step", "tokens": "Tokens", "elapsed_s": "Training time", "epoch": "Epoch"}


@dataclass(frozen=True)
class View:
    """How a person looks at curves.

    Attributes:
        x: a column of `AXES`.
        smoothing: 0 (none) to 0.99, the weight of the past in the moving average.
        log_x, log_y: logarithmic axes.
        parts: which losses: `train`, `val` or both.
    """

    x: str = "step"
    smoothing: float = 0.6
    log_x: bool = False
    log_y: bool = False
    parts: tuple[str, ...] = ("train", "val")


@dataclass(frozen=True)
class Curve:
    """A run, as a chart needs it: `metrics` has the columns of `engine.metrics.METRICS`."""

    run_id: str
    name: str
    metrics: pd.DataFrame


def colour_number(run_id: str) -> int:
    """The run's place in the palette; it follows the id alone, so it is the same on every page and every day."""
    return hashlib.sha256(run_id.encode()).digest()[0] % len(PALETTE)


def colour(run_id: str) -> str:
    """The run's colour."""
    return PALETTE[colour_number(run_id)]


def smooth(values: pd.Series, weight: float) -> pd.Series:
    """Exponential moving average without the bias towards the start value: m_t = Σ wᵗ⁻ⁱ xᵢ / Σ wᵗ⁻ⁱ.

    This is Adam's bias correction (Kingma and Ba 2015, section 3). Values that are not numbers stay so, and are passed
    over by the average.
    """
    if weight <= 0:
        return values
    return values.ewm(alpha=1 - weight, adjust=True, ignore_na=True).mean().where(values.notna())


def thin(x: NDArray[Any], y: NDArray[np.float64], most: int = MAX_POINTS) -> NDArray[np.int64]:
    """Which points to draw: at most `most`, the ends and the extremes among them, and a gap where `y` is not a number.

    MinMaxLTTB (Van Der Donckt et al. 2023, arXiv:2305.00332) keeps the visible shape of a long line.
    """
    if len(y) <= most:
        return np.arange(len(y))
    finite = np.flatnonzero(np.isfinite(y))
    if len(finite) == 0:
        return np.array([0, len(y) - 1])
    broken = ~np.isfinite(y)
    gaps = np.flatnonzero(broken & ~np.concatenate([[False], broken[:-1]]))[: most // 4]  # the first of each gap
    musts = {0, len(y) - 1, int(finite[y[finite].argmin()]), int(finite[y[finite].argmax()]), *gaps.tolist()}
    room = most - len(musts)
    if len(finite) > room:
        finite = finite[
            MinMaxLTTBDownsampler().downsample(x[finite].astype(float), y[finite], n_out=room).astype(np.int64)
        ]
    return np.array(sorted(musts.union(finite.tolist())))


def loss_figure(curves: Sequence[Curve], view: View) -> Figure:
    """Training loss, raw and smoothed, and the validation loss where it was measured; one run or several."""
    figure = _figure(view, "nats per token")
    taken: dict[int, int] = {}
    for curve in curves:
        number = colour_number(curve.run_id)
        repeats = taken[number] = taken.get(number, -1) + 1  # runs of one colour differ by their dashes
        alone = len(curves) == 1
        if "train" in view.parts:
            _add_training(figure, curve, view, DASHES[repeats % len(DASHES)], alone=alone)
        if "val" in view.parts:
            _add_validation(figure, curve, view, alone=alone)
    return _say_if_empty(figure)


def _add_training(figure: Figure, curve: Curve, view: View, dash: str, *, alone: bool) -> None:
    tint = colour(curve.run_id)
    x, raw = _columns(curve.metrics, view.x, "train_loss")
    chosen = thin(x, raw)
    name = "training" if alone else curve.name
    if view.smoothing > 0:
        line = dict(color=tint, width=1)
        figure["data"] += [_line(x[chosen], raw[chosen], f"{name}, raw", line, opacity=0.4, showlegend=alone)]
    smoothed = smooth(pd.Series(raw), view.smoothing).to_numpy()
    label = f"{name}, smoothed" if alone and view.smoothing > 0 else name
    line = dict(color=tint, width=2, dash=dash)
    figure["data"] += [_line(x[chosen], smoothed[chosen], label, line, showlegend=True)]
    _mark_not_finite(figure, x[~np.isfinite(raw)])


def _add_validation(figure: Figure, curve: Curve, view: View, *, alone: bool) -> None:
    x, measured = _columns(curve.metrics[curve.metrics.val_loss.notna()], view.x, "val_loss")
    chosen = thin(x, measured)
    name = "validation" if alone else f"{curve.name}, validation"
    tint = PALETTE[(colour_number(curve.run_id) + (1 if alone else 0)) % len(PALETTE)]
    drawn = _line(x[chosen], measured[chosen], name, dict(color=tint, width=1, dash="dot"))
    marker = dict(color=tint, size=8, symbol="diamond")
    legend = alone or "train" not in view.parts
    figure["data"] += [drawn | dict(mode="lines+markers", marker=marker, showlegend=legend)]


def _mark_not_finite(figure: Figure, places: NDArray[Any]) -> None:
    """A line has a gap where its value is not a number; the mark says that it was measured, and was none."""
    at = dict(yref="paper", line=dict(color=ALARM, width=1, dash="dash"))
    for x in places[:10].tolist():
        figure["layout"]["shapes"] += [dict(type="line", x0=x, x1=x, y0=0, y1=1, **at)]
        text = dict(text="not a number", showarrow=False, font=dict(color=ALARM), xanchor="right")
        at_x = math.log10(x) if figure["layout"]["xaxis"]["type"] == "log" and x > 0 else x  # unlike a shape's
        figure["layout"]["annotations"] += [dict(x=at_x, y=1, yref="paper", **text)]


def line_figure(curve: Curve, column: str, view: View, unit: str, *, hover: str = ",.4~g") -> Figure:
    """One measured column of one run, as it is."""
    figure = _figure(view, unit)
    x, y = _columns(curve.metrics, view.x, column)
    chosen = thin(x, y)
    line = dict(color=colour(curve.run_id), width=1.5)
    figure["data"] = [_line(x[chosen], y[chosen], unit, line, hover=hover, showlegend=False)]
    return _say_if_empty(figure)


def _say_if_empty(figure: Figure) -> Figure:
    """Axes without a curve would show numbers that nobody measured."""
    if not any(line["x"] for line in figure["data"]):
        layout = figure["layout"]
        layout["xaxis"]["visible"] = layout["yaxis"]["visible"] = layout["showlegend"] = False
        layout["annotations"] = [dict(text="nothing measured yet", showarrow=False)]
    return figure


def _columns(metrics: pd.DataFrame, x: str, y: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    rows = metrics[metrics[x].notna()]
    return rows[x].to_numpy(), rows[y].to_numpy(float)


def _line(
    x: NDArray[np.float64], y: NDArray[np.float64], name: str, line: dict[str, Any], *, hover: str = ".4f", **more: Any
) -> dict[str, Any]:
    """A trace in SVG: on a machine without a GPU, WebGL takes the cores that train."""
    return dict(
        type="scatter",
        x=[_short(value) for value in x.tolist()],
        y=[_short(value) if math.isfinite(value) else None for value in y.tolist()],
        name=html.escape(name, quote=False),  # Plotly reads names as HTML
        mode="lines" if len(x) > 2 else "lines+markers",  # a single point has no line
        line=line,
        connectgaps=False,
        hovertemplate=f"%{{y:{hover}}}",
        **more,
    )


def _short(value: float) -> float:
    """Six digits are more than a chart can show, and half the text to send."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


_HOVER = {"elapsed_s": "%{x:,.1f} s", "epoch": "epoch %{x:.3f}", "tokens": "%{x:,} tokens", "step": "step %{x:,}"}


def _figure(view: View, unit: str) -> Figure:
    axis = dict(zeroline=False, automargin=True)
    return dict(
        data=[],
        layout=dict(
            margin=dict(l=8, r=16, t=8, b=8),
            hovermode="x unified",
            legend=dict(orientation="h", y=1.02, yanchor="bottom", x=0),
            xaxis=axis
            | dict(
                title=dict(text=AXES[view.x]),
                showgrid=False,
                spikethickness=1,
                spikedash="solid",
                type="log" if view.log_x else "linear",
                unifiedhovertitle=dict(text=_HOVER[view.x]),
                ticksuffix=" s" if view.x == "elapsed_s" else "",
            ),
            yaxis=axis | dict(title=dict(text=unit), type="log" if view.log_y else "linear"),
            shapes=[],
            annotations=[],
            uirevision=f"{view.x} {view.log_x} {view.log_y}",  # a zoom is kept until the axes are others
        ),
    )
