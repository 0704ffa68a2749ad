"""Measured rows in, figures out. Knows nothing of Streamlit or of where rows come from.

A figure is a plain dict in Plotly's own form, which `go.Figure(figure)` takes too (a test holds it so). Building it as
a `go.Figure` would cost ten times as much, and a live view builds four of them a second beside the training.

Colours are those of `PALETTE`, for a light background; whoever shows a figure on another one exchanges them.
"""

from __future__ import annotations

import hashlib
import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tsdownsample import MinMaxLTTBDownsampler

from engine.corpora.ladder import Ladder
from engine.corpora.statistics import Statistics
from engine.metrics import Columns

MAX_POINTS = 1000  # per line: about one for each pixel of a wide chart
PALETTE = ("#0f66b8", "#d1570b", "#0b8467", "#b13f86", "#8a6d00", "#3b3f9e", "#c2334b", "#5d6b7a")
ALARM = PALETTE[6]
NEUTRAL = PALETTE[7]
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
    """A run, as a chart needs it: `metrics` has those columns of `engine.metrics.METRICS` that it draws."""

    run_id: str
    name: str
    metrics: Columns | pd.DataFrame


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
    averaged = values.ewm(alpha=1 - weight, adjust=True, ignore_na=True).mean()
    missing = values.isna()
    return averaged.mask(missing) if missing.any() else averaged


def thin(x: NDArray[Any], y: NDArray[np.float64], most: int = MAX_POINTS) -> NDArray[np.int64]:
    """Which points to draw: at most `most`, the ends and the extremes among them, and a gap where `y` is not a number.

    MinMaxLTTB (Van Der Donckt et al. 2023, arXiv:2305.00332) keeps the visible shape of a long line.
    """
    if len(y) <= most:
        return np.arange(len(y))
    broken = ~np.isfinite(y)
    if not broken.any():  # nothing has to be picked out, which costs more than all the rest
        return _thin_whole(x, y, most)
    ends, finite = [0, len(y) - 1], np.flatnonzero(~broken)
    gaps = np.flatnonzero(broken & ~np.concatenate([[False], broken[:-1]]))[: most // 4]  # the first of each gap
    chosen = finite[_thin_whole(x[finite], y[finite], most - len(gaps) - len(ends))]
    return np.unique(np.concatenate([ends, gaps, chosen]))


def _thin_whole(x: NDArray[Any], y: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """The same for a line without gaps."""
    if len(y) <= most:
        return np.arange(len(y))
    musts = [0, len(y) - 1, int(y.argmin()), int(y.argmax())]
    shape = MinMaxLTTBDownsampler().downsample(x, y, n_out=most - len(musts))
    return np.unique(np.concatenate([musts, shape.astype(np.int64)]))


def loss_columns(view: View) -> tuple[str, ...]:
    """The columns that `loss_figure` draws."""
    return (view.x, "train_loss", "val_loss")


def loss_figure(curves: Sequence[Curve], view: View, rungs: Sequence[tuple[str, float]] = ()) -> Figure:
    """Training loss, raw and smoothed, and the validation loss where it was measured; one run or several.

    Args:
        curves: of the runs.
        view: how they are looked at.
        rungs: names and losses of the loss ladder, drawn as lines where they are near the curves: see `add_rungs`.
    """
    figure = empty_figure(view, "nats per token")
    taken: dict[int, int] = {}
    for curve in curves:
        number = colour_number(curve.run_id)
        repeats = taken[number] = taken.get(number, -1) + 1  # runs of one colour differ by their dashes
        alone = len(curves) == 1
        if "train" in view.parts:
            _add_training(figure, curve, view, DASHES[repeats % len(DASHES)], alone=alone)
        if "val" in view.parts:
            _add_validation(figure, curve, view, alone=alone)
    add_rungs(figure, rungs)
    return say_if_empty(figure)


def _add_training(figure: Figure, curve: Curve, view: View, dash: str, *, alone: bool) -> None:
    tint = colour(curve.run_id)
    x, raw = _columns(curve.metrics, view.x, "train_loss")
    chosen = thin(x, raw)
    name = "training" if alone else curve.name
    if view.smoothing > 0:
        line = dict(color=tint, width=1)
        figure["data"] += [trace(x[chosen], raw[chosen], f"{name}, raw", line, opacity=0.4, showlegend=alone)]
    smoothed = smooth(pd.Series(raw), view.smoothing).to_numpy()
    label = f"{name}, smoothed" if alone and view.smoothing > 0 else name
    line = dict(color=tint, width=2, dash=dash)
    figure["data"] += [trace(x[chosen], smoothed[chosen], label, line, showlegend=True)]
    mark_not_finite(figure, x[~np.isfinite(raw)])


def _add_validation(figure: Figure, curve: Curve, view: View, *, alone: bool) -> None:
    x, measured = _columns(curve.metrics, view.x, "val_loss")
    there = ~np.isnan(measured)
    x, measured = x[there], measured[there]
    chosen = thin(x, measured)
    name = "validation" if alone else f"{curve.name}, validation"
    tint = PALETTE[(colour_number(curve.run_id) + (1 if alone else 0)) % len(PALETTE)]
    drawn = trace(x[chosen], measured[chosen], name, dict(color=tint, width=1, dash="dot"))
    marker = dict(color=tint, size=8 if len(chosen) <= 40 else 5, symbol="diamond")
    legend = alone or "train" not in view.parts
    figure["data"] += [drawn | dict(mode="lines+markers", marker=marker, showlegend=legend)]


def mark_not_finite(figure: Figure, places: NDArray[Any]) -> None:
    """A line has a gap where its value is not a number; the mark says that it was measured, and was none."""
    at = dict(yref="paper", line=dict(color=ALARM, width=1, dash="dash"))
    for x in places[:10].tolist():
        figure["layout"]["shapes"] += [dict(type="line", x0=x, x1=x, y0=0, y1=1, **at)]
        text = dict(text="not a number", showarrow=False, font=dict(color=ALARM), xanchor="right")
        at_x = math.log10(x) if figure["layout"]["xaxis"]["type"] == "log" and x > 0 else x  # unlike a shape's
        figure["layout"]["annotations"] += [dict(x=at_x, y=1, yref="paper", **text)]


RUNG_REACH = 0.5  # nats above and below the curves
LABEL_HEIGHT = 0.05  # of a chart's height, about: labels that are nearer to one another become one


def add_rungs(figure: Figure, rungs: Sequence[tuple[str, float]]) -> None:
    """A thin line with a label for each rung within `RUNG_REACH` of what is drawn.

    The others would squeeze the curves; a falling curve gets near them in its time. On a log axis, where half a nat can
    be decades, a rung is no further below the lowest point than half of it.
    """
    layout = figure["layout"]
    is_log = layout["yaxis"]["type"] == "log"
    drawn = [y for line in figure["data"] for y in line["y"] if y is not None and (y > 0 or not is_log)]
    if not drawn or not rungs:
        return
    lowest = max(min(drawn) - RUNG_REACH, min(drawn) / 2 if is_log else -math.inf)
    near = [rung for rung in rungs if lowest <= rung[1] <= max(drawn) + RUNG_REACH]
    line = dict(type="line", xref="paper", x0=0, x1=1, layer="below", opacity=0.5, line=dict(color=NEUTRAL, width=1))
    layout["shapes"] += [line | dict(y0=loss, y1=loss) for _, loss in near]

    def place(loss: float) -> float:
        return math.log10(loss) if is_log else loss  # an annotation's place on a log axis, unlike a shape's

    places = [place(y) for y in (min(drawn), max(drawn), *(loss for _, loss in near))]
    label = dict(xref="paper", x=1, xanchor="right", yanchor="bottom", showarrow=False, borderpad=0)
    for group in _near_rungs(near, place, LABEL_HEIGHT * (max(places) - min(places))):
        text = " · ".join(f"{html.escape(name, quote=False)} {loss:.2f}" for name, loss in group)
        font = dict(color=NEUTRAL, size=10)
        layout["annotations"] += [label | dict(y=place(group[0][1]), text=text, font=font)]


def _near_rungs(
    rungs: Sequence[tuple[str, float]], place: Callable[[float], float], height: float
) -> list[list[tuple[str, float]]]:
    """Rungs, falling, in groups that share a label: it stands on the highest line of its group."""
    groups: list[list[tuple[str, float]]] = []
    for rung in sorted(rungs, key=lambda rung: -rung[1]):
        if groups and place(groups[-1][0][1]) - place(rung[1]) <= height:
            groups[-1].append(rung)
        else:
            groups.append([rung])
    return groups


def line_figure(
    curve: Curve,
    column: str,
    view: View,
    unit: str,
    *,
    hover: str = ",.4~g",
    marks: Sequence[tuple[str, float]] = (),
) -> Figure:
    """One measured column of one run, as it is.

    Args:
        marks: names and values of lines to compare it with.
    """
    figure = empty_figure(view, unit)
    x, y = _columns(curve.metrics, view.x, column)
    chosen = thin(x, y)
    line = dict(color=colour(curve.run_id), width=1.5)
    figure["data"] = [trace(x[chosen], y[chosen], unit, line, hover=hover, showlegend=False)]
    if column == "learning_rate":
        figure["layout"]["yaxis"]["exponentformat"] = "e"  # 3e-4, as one sets it, and not 300µ
    add_rungs(figure, marks)
    return say_if_empty(figure)


# ------------------------------------------------------------------------------------------------- corpora


def rank_frequency_figure(statistics: Statistics) -> Figure:
    """How often the tokens of a corpus occur, the most frequent first; both axes logarithmic."""
    figure = plain_figure("Rank of the token", "occurrences", log_x=True, log_y=True)
    figure["layout"]["xaxis"]["unifiedhovertitle"] = dict(text="rank %{x:,}")
    ranks, counts = np.array(statistics.curve).T
    known = {rank: token.shown for rank, token in enumerate(statistics.frequent, start=1)}
    line = trace(ranks, counts.astype(float), "occurrences", dict(color=PALETTE[0], width=2), showlegend=False)
    line["hovertemplate"] = "%{y:,} × %{text}<extra></extra>"
    line["text"] = [html.escape(known.get(rank, "a token"), quote=False) for rank in ranks.tolist()]
    figure["data"] = [line]
    return figure


def document_lengths_figure(statistics: Statistics) -> Figure:
    """How many documents are how long, lengths on a log axis. Of one document there is no distribution: it says so."""
    figure = plain_figure("Tokens of a document", "documents", log_x=True)
    lengths = statistics.lengths
    if lengths.count == 1:
        figure = say_if_empty(figure)
        figure["layout"]["annotations"][0]["text"] = f"one document of {lengths.max:,} tokens"
        return figure
    left, right = np.array(lengths.edges[:-1]), np.array(lengths.edges[1:])
    ranges = [f"{a:,} to {b - 1:,} tokens" if b - a > 1 else f"{a:,} tokens" for a, b in zip(left, right, strict=True)]
    figure["layout"] |= dict(hovermode="closest", bargap=0)
    # A bin holds whole numbers from `left` to below `right`: bars touch, and each is as wide as its bin.
    bars = dict(type="bar", x=((left + right) / 2).tolist(), width=(right - left).tolist(), y=list(lengths.documents))
    hover = dict(text=ranges, textposition="none", hovertemplate="%{text}: %{y:,} documents<extra></extra>")
    figure["data"] = [bars | hover | dict(marker=dict(color=PALETTE[0]), showlegend=False)]
    return figure


def ladder_figure(ladder: Ladder) -> Figure:
    """The rungs from guessing down to trigrams, each with its loss and its perplexity."""
    figure = plain_figure("nats per token", "")
    layout = figure["layout"]
    layout["hovermode"] = False  # the labels say it all
    layout["xaxis"] |= dict(showgrid=True, rangemode="tozero")
    layout["yaxis"] |= dict(type="category", autorange="reversed", showgrid=False)
    losses = [rung.loss for rung in ladder.rungs]
    labels = [f"{loss:.2f} · perplexity {math.exp(loss):,.0f}" for loss in losses]
    bars = dict(type="bar", orientation="h", y=[rung.name for rung in ladder.rungs], x=losses, text=labels)
    figure["data"] = [bars | dict(textposition="auto", marker=dict(color=PALETTE[0]), showlegend=False)]
    return figure


def plain_figure(x: str, y: str, *, log_x: bool = False, log_y: bool = False) -> Figure:
    """Axes of something else than a run."""
    figure = empty_figure(View(log_x=log_x, log_y=log_y), y)
    figure["layout"]["xaxis"]["title"] = dict(text=x)
    del figure["layout"]["xaxis"]["unifiedhovertitle"]
    figure["layout"]["uirevision"] = x
    return figure


# ------------------------------------------------------------------------------------------------- parts


def say_if_empty(figure: Figure) -> Figure:
    """Axes without a curve would show numbers that nobody measured."""
    if not any(line["x"] for line in figure["data"]):
        layout = figure["layout"]
        layout["xaxis"]["visible"] = layout["yaxis"]["visible"] = layout["showlegend"] = False
        layout["annotations"] = [dict(text="nothing measured yet", showarrow=False)]
    return figure


def _columns(metrics: Columns | pd.DataFrame, x: str, y: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Two columns where the first was measured."""
    at, values = np.asarray(metrics[x]), np.asarray(metrics[y], float)
    there = ~np.isnan(at)
    return (at, values) if there.all() else (at[there], values[there])


def trace(
    x: NDArray[np.float64], y: NDArray[np.float64], name: str, line: dict[str, Any], *, hover: str = ".4f", **more: Any
) -> dict[str, Any]:
    """A trace in SVG: on a machine without a GPU, WebGL takes the cores that train."""
    return dict(
        type="scatter",
        x=short(x),
        y=short(y),
        name=html.escape(name, quote=False),  # Plotly reads names as HTML
        mode="lines" if len(x) > 2 else "lines+markers",  # a single point has no line
        line=line,
        connectgaps=False,
        hovertemplate=f"%{{y:{hover}}}",
        **more,
    )


def short(values: NDArray[Any]) -> list[float | None]:
    """Six digits are more than a chart can show, and half the text to send; None for what is not finite."""
    if values.dtype.kind != "f":
        return values.tolist()
    finite = np.isfinite(values)
    known = np.where(finite, values, 0.0)
    place = 5 - np.floor(np.log10(np.abs(known), where=known != 0, out=np.zeros_like(known))).astype(int)
    up, down = 10.0 ** np.clip(place, 0, 300), 10.0 ** np.clip(-place, 0, 300)  # one of them is 1
    rounded = (np.round(known * up / down) / up * down).astype(object)
    rounded[~finite] = None
    return rounded.tolist()


_HOVER = {"elapsed_s": "%{x:,.1f} s", "epoch": "epoch %{x:.3f}", "tokens": "%{x:,} tokens", "step": "step %{x:,}"}


def empty_figure(view: View, unit: str) -> Figure:
    """The axes of a chart of runs, without a line yet; `unit` is that of y."""
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


def memory_figure(parts: Mapping[str, float], here: tuple[str, float] | None, cards: Mapping[str, float]) -> Figure:
    """What a run holds, part beside part, against what devices have.

    Args:
        parts: name -> GiB.
        here: name and GiB of the device at hand, if the parts are for it.
        cards: name -> GiB of others; larger ones than the next above the total are left out.
    """
    figure = plain_figure("GiB", "")
    layout = figure["layout"]
    total = sum(parts.values())
    layout |= dict(barmode="stack", hovermode="closest", bargap=0.3)
    figure["data"] = [
        dict(
            type="bar",
            orientation="h",
            y=["memory"],
            x=short(np.array([size])),
            name=f"{name} {size:.2f}",
            marker=dict(color=PALETTE[min(number, len(PALETTE) - 1)]),  # the last: a GPU's context, or the process
            hovertemplate=f"{name}: %{{x:.2f}} GiB<extra></extra>",
        )
        for number, (name, size) in enumerate(parts.items())
        if size > 0
    ]
    own, at = here or ("", -math.inf)
    above = min((limit for limit in cards.values() if limit > total), default=total)
    end = 1.08 * max(total, above, at if at < 2 * total or not cards else 0)
    apart = {name: limit for name, limit in cards.items() if abs(limit - at) > end / 8 or at > end}  # as labels need it
    shown = {name: limit for name, limit in (({own: at} if here else {}) | apart).items() if limit <= end}
    for name, limit in shown.items():
        line = dict(color=ALARM, width=2) if name == own else dict(color=NEUTRAL, width=1, dash="dot")
        layout["shapes"] += [dict(type="line", x0=limit, x1=limit, y0=0, y1=1, yref="paper", line=line)]
    labels = [f'<span style="color:{ALARM}">{name}</span>' if name == own else name for name in shown]
    ticks = dict(tickmode="array", tickvals=list(shown.values()), ticktext=labels, tickangle=0)
    layout["xaxis"] |= ticks | dict(range=[0, end], showgrid=False, title=None)
    layout["yaxis"] |= dict(type="category", showgrid=False, showticklabels=False)
    layout["legend"] |= dict(traceorder="normal", title=dict(text="GiB"))
    return figure
