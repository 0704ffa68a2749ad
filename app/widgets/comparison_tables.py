"""What differs between runs, and what came of it, as tables and as points of a chart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from app.widgets import address, formats
from app.widgets.chart_files import chart_files
from app.widgets.comparison_charts import scatter_figure
from app.widgets.comparison_data import Choice, compared
from app.widgets.plot import plot
from engine.compare import LOWER_IS_BETTER, Comparison
from engine.config import SETTINGS, label

BEST = "font-weight: 600; color: #148a64"  # on white and on the dark background it has a contrast of 4 and more
STAR = "★ "


def _gib(value: float) -> str:
    return f"{value:.2f} GiB"


def _perplexity(value: float) -> str:
    return formats.perplexity(math.log(value))


def _three(value: float) -> str:
    return f"{value:.3f}"


# Column -> title, how a value is written, what it is.
RESULTS: dict[str, tuple[str, Callable[[float], str], str]] = {
    "train_loss": (
        "training loss",
        _three,
        "Nats per token; the mean over the last twentieth of the run's tokens, as a single step says little.",
    ),
    "val_loss": ("validation loss", _three, "Nats per token, measured last."),
    "best_val_loss": ("lowest validation", _three, "The lowest validation loss that was measured."),
    "perplexity": ("perplexity", _perplexity, "e to the power of the validation loss."),
    "bits_per_byte": (
        "bits per byte",
        _three,
        "The validation loss by the bytes of its text. It can be held against models with other tokens.",
    ),
    "tokens_per_s": ("tokens/s", formats.count, "The median of its steps."),
    "elapsed_s": ("training time", formats.duration, "Pauses left out; of a branch with its parent's."),
    "wall_s": ("wall time", formats.duration, "From its start to its last step, pauses and stops included."),
    "memory_gib": ("peak memory", _gib, "The most that was measured."),
    "steps": ("steps", formats.count, "Of a branch with its parent's."),
    "tokens": ("tokens", formats.count, "Trained on; of a branch with its parent's."),
    "parameters": ("parameters", formats.short_count, "Weights of the model."),
}
_READ = {"end": "Where each run ended", "tokens": "At the same tokens", "time": "At the same time"}


def results(runs: Choice) -> None:
    """What came of each run, the best marked: where it ended, or where all had read as much or trained as long."""
    found = compared(runs)
    read = "end"
    if len(runs.ids) > 1:
        read = st.segmented_control(
            "Read the losses",
            list(_READ),
            format_func=_READ.get,
            required=True,
            key=address.keep("read", "end", list(_READ)),
        )
    if read == "end":
        columns = {name: (title, write, text) for name, (title, write, text) in RESULTS.items()}
        _table(runs, found, found.results, columns)
    else:
        _reading(runs, found, by_tokens=read == "tokens")
    if len(runs.ids) > 1:
        st.caption(_marks(found))


def _reading(runs: Choice, found: Comparison, *, by_tokens: bool) -> None:
    """The losses at the largest common place of an axis."""
    reading = found.same_tokens if by_tokens else found.same_time
    write = formats.count if by_tokens else formats.duration
    if reading.at is None:
        st.caption("Nothing was measured yet.")
        return
    where = f"{write(reading.at)} tokens" if by_tokens else write(reading.at)
    unit = "tokens" if by_tokens else "training time"
    st.markdown(f"All have reached **{where}**{'' if by_tokens else ' of training'}.")
    columns = {
        "train_loss": ("training loss", _three, f"The mean over the last twentieth of the {unit} up to there."),
        "val_loss": ("validation loss", _three, "The last one measured up to there."),
        "val_at": (f"measured at ({unit})", write, "Where that validation loss was measured."),
        "step": ("step", formats.count, "The last one up to there."),
    }
    _table(runs, found, reading.table, columns)


def _marks(found: Comparison) -> str:
    """What the stars mean, and where there are none."""
    text = f"{STAR}marks the best of a column."
    if not found.same_corpus:
        text += " The runs train on different texts, so training losses are not marked."
    if not found.same_validation:
        text += " They validate on different texts, so validation losses are not marked."
    return text


def _table(
    runs: Choice,
    found: Comparison,
    values: pd.DataFrame,
    columns: dict[str, tuple[str, Callable[[float], str], str]],
) -> None:
    """A row a run. The numbers stay numbers, so that a click on a title sorts by them."""
    best = {name: [runs.names[run_id] for run_id in found.best(name, values)] for name in columns}
    style = values[list(columns)].astype(float).rename(index=runs.names).style
    for name, (_, write, _) in columns.items():
        style = style.format(write, subset=[name], na_rep=formats.DASH)
        marked = pd.IndexSlice[best[name], [name]]
        style = style.format(lambda value, write=write: STAR + write(value), subset=marked, na_rep=formats.DASH)
        style = style.map(lambda _: BEST, subset=marked)
    config: dict[str, Any] = {
        name: st.column_config.NumberColumn(title, help=text) for name, (title, _, text) in columns.items()
    }
    st.dataframe(style, column_config=config, placeholder=formats.DASH)


def settings(runs: Choice) -> None:
    """A row a setting, a column a run."""
    found = compared(runs)
    several = len(runs.ids) > 1
    only = several and st.toggle("Differences only", key=address.keep("differences", True))
    shown = found.differences if only else found.settings
    if shown.empty:
        st.caption("These runs have the same settings.")
        return
    table = shown.map(_value).rename(index=label).reset_index(names=_SETTING)  # columns are ids: names may be alike
    titles = {i: st.column_config.TextColumn(formats.plain(name)) for i, name in runs.names.items()}
    titles[_SETTING] = st.column_config.TextColumn("setting", pinned=True)
    st.dataframe(table, hide_index=True, placeholder=formats.DASH, column_config=titles)


_SETTING = " setting"  # no run's id begins with a blank


def _value(value: Any) -> str | None:
    return None if value is None else formats.setting(value)


def scatter(runs: Choice) -> None:
    """Any setting against any result, a point a run."""
    found = compared(runs)
    if len(runs.ids) < 2:
        st.caption("Choose more runs to see how a result depends on a setting.")
        return
    differing = sorted(found.differences.index, key=lambda name: -found.settings.loc[name].nunique())
    names = ["parameters", *differing, *(name for name in SETTINGS if name not in differing)]
    results = [name for name in RESULTS if name in LOWER_IS_BETTER]
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        x = _pick("Setting", names, _setting_title, key="setting", first=1 if differing else 0)
        y = _pick("Result", results, lambda name: RESULTS[name][0].capitalize(), key="result")
        log_x = st.toggle("Log setting", key=address.keep("log_setting", False))
        log_y = st.toggle("Log result", key=address.keep("log_result", False))
    points = pd.DataFrame({"x": _numbers(_column(found, x)), "y": found.results[y]})
    titles = _setting_title(x), RESULTS[y][0].capitalize()
    with st.container(key="scatter"):
        plot(scatter_figure(points, runs.names, *titles, log_x=log_x, log_y=log_y), key="plot-scatter", height=380)
    chart_files("scatter", title=" against ".join(titles[::-1]), file=f"{y}-against-{x}".replace("_", "-"))


def _setting_title(name: str) -> str:
    return "Parameters" if name == "parameters" else label(name)


def _column(found: Comparison, name: str) -> pd.Series:
    return found.results["parameters"] if name == "parameters" else found.settings.loc[name]


def _numbers(values: pd.Series) -> pd.Series:
    """Numbers where all are; else words."""
    known = values.dropna()
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return values.astype(float)
    return values.map(_value)


def _pick(title: str, names: Sequence[str], write: Callable[[str], str], *, key: str, first: int = 0) -> str:
    key = address.keep(key, names[first], names)
    return st.selectbox(title, names, format_func=write, width=220, key=key)
