"""Charts are pure functions of measured rows."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.widgets import charts
from app.widgets.charts import MAX_POINTS, PALETTE, Curve, View, colour, smooth, thin
from engine.corpora.ladder import Ladder, Rung
from engine.corpora.statistics import Statistics, measure
from engine.metrics import METRICS


def metrics(losses: list[float], validation: dict[int, float] | None = None) -> pd.DataFrame:
    """A run's rows: step i has losses[i - 1]; validation where a step was measured."""
    steps = np.arange(1, len(losses) + 1)
    table = pd.DataFrame(dict.fromkeys(METRICS.names, np.nan), index=range(len(losses)))
    return table.assign(
        step=steps,
        tokens=steps * 64,
        epoch=steps / 10,
        elapsed_s=steps * 0.5,
        train_loss=losses,
        val_loss=[(validation or {}).get(step, np.nan) for step in steps],
        learning_rate=1e-3,
        tokens_per_s=1000.0,
        grad_norm=1.0,
    )


def loss_figure(*how) -> go.Figure:
    """The figure as Plotly's own object, which refuses whatever Plotly does not know."""
    return go.Figure(charts.loss_figure(*how))


def line_figure(*how) -> go.Figure:
    return go.Figure(charts.line_figure(*how))


def trace(figure, name: str):
    (found,) = [t for t in figure.data if t.name == name]
    return found


@pytest.mark.parametrize("weight", [0.3, 0.6, 0.99])
def test_smoothing_is_an_average_without_bias(weight: float) -> None:
    values = np.array([10.0, 4.0, 7.0, 1.0, 3.0])
    expected, biased = [], 0.0
    for t, value in enumerate(values, 1):
        biased = weight * biased + (1 - weight) * value
        expected.append(biased / (1 - weight**t))
    assert smooth(pd.Series(values), weight).to_numpy() == pytest.approx(expected)
    assert smooth(pd.Series(values), weight).iloc[0] == 10.0


def test_no_smoothing_leaves_values_as_they_are() -> None:
    values = pd.Series([3.0, 1.0, 2.0])
    assert smooth(values, 0).tolist() == [3.0, 1.0, 2.0]


def test_smoothing_passes_over_what_is_no_number() -> None:
    smoothed = smooth(pd.Series([4.0, np.nan, 2.0]), 0.5)
    assert np.isnan(smoothed[1])
    assert smoothed[2] == pytest.approx((0.5 * 4 + 2) / 1.5)


def test_validation_is_drawn_only_where_it_was_measured() -> None:
    rows = metrics([9.0, 8.0, 7.0, 6.0, 5.0, 4.0], {2: 8.5, 6: 6.5})
    drawn = trace(loss_figure([Curve("a", "a", rows)], View(smoothing=0.9)), "validation")
    assert list(drawn.x) == [2, 6]
    assert list(drawn.y) == [8.5, 6.5]
    assert "markers" in drawn.mode


@pytest.mark.parametrize("x", list(charts.AXES))
def test_every_axis_takes_its_column(x: str) -> None:
    rows = metrics([3.0, 2.0, 1.0], {3: 2.5})
    for drawn in loss_figure([Curve("a", "a", rows)], View(x=x)).data:
        wanted = rows[rows.val_loss.notna()] if drawn.name == "validation" else rows
        assert list(drawn.x) == list(wanted[x])


def test_the_raw_line_is_behind_the_smoothed_one_and_fainter() -> None:
    raw, smoothed = loss_figure([Curve("a", "a", metrics([3.0, 2.0, 1.0]))], View(smoothing=0.5)).data[:2]
    assert list(raw.y) == [3.0, 2.0, 1.0]
    assert raw.opacity < 1 and smoothed.opacity in (None, 1)
    assert list(smoothed.y) == pytest.approx([3.0, (0.5 * 3 + 2) / 1.5, (0.25 * 3 + 0.5 * 2 + 1) / 1.75], rel=1e-5)


@given(
    length=st.integers(0, 5000),
    seed=st.integers(0, 2**32 - 1),
    most=st.integers(20, 1000),
    gaps=st.floats(0, 1),
)
def test_thinning_keeps_ends_extremes_and_the_bound(length: int, seed: int, most: int, gaps: float) -> None:
    random = np.random.default_rng(seed)
    y = random.normal(size=length)
    y[random.random(length) < gaps] = np.nan
    chosen = thin(np.arange(length, dtype=float), y, most)
    assert len(chosen) <= max(most, 2) and (np.diff(chosen) > 0).all()
    if length:
        assert chosen[0] == 0 and chosen[-1] == length - 1
    if np.isfinite(y).any():
        assert np.nanmin(y) in y[chosen] and np.nanmax(y) in y[chosen]


def test_a_long_run_is_thinned_line_by_line() -> None:
    losses = np.random.default_rng(0).normal(5, 1, 50_000)
    losses[31_234], losses[777] = 40.0, -3.0
    figure = loss_figure([Curve("a", "a", metrics(losses.tolist()))], View())
    raw = trace(figure, "training, raw")
    assert len(raw.x) <= MAX_POINTS
    assert {40.0, -3.0} <= set(raw.y)
    assert len(json.dumps(charts.loss_figure([Curve("a", "a", metrics(losses.tolist()))], View()))) < 60_000  # bytes
    assert list(raw.x) == list(trace(figure, "training, smoothed").x)  # so that a hover tells both of a step


@pytest.mark.parametrize("length", [5, 5000])
def test_nan_is_a_gap_and_is_marked(length: int) -> None:
    losses = [2.0] * length
    losses[3] = float("nan")
    figure = loss_figure([Curve("a", "a", metrics(losses))], View())
    raw = trace(figure, "training, raw")
    assert raw.y[list(raw.x).index(4)] is None and raw.connectgaps is False
    assert [shape.x0 for shape in figure.layout.shapes] == [4]
    text = json.dumps(charts.loss_figure([Curve("a", "a", metrics(losses))], View()))
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_infinity_is_a_gap_too() -> None:
    figure = loss_figure([Curve("a", "a", metrics([2.0, float("inf"), 1.0]))], View(smoothing=0))
    assert trace(figure, "training").y == (2.0, None, 1.0)
    assert [shape.x0 for shape in figure.layout.shapes] == [2]


def test_a_runs_colour_follows_its_id_alone() -> None:
    ids = [f"20261122-1530{i:02}-nano-verdict-{i:04x}" for i in range(60)]
    assert {colour(run_id) for run_id in ids} == set(PALETTE)
    assert colour("20261122-153012-nano-verdict-7f3a") == "#3b3f9e"  # a changed rule would recolour everyone's runs
    rows = metrics([2.0, 1.0])
    alone = loss_figure([Curve(ids[3], "it", rows)], View(smoothing=0)).data[0]
    among = loss_figure([Curve(i, i, rows) for i in ids[:5]], View(smoothing=0, parts=("train",))).data[3]
    panel = line_figure(Curve(ids[3], "it", rows), "grad_norm", View(), "").data[0]
    assert alone.line.color == among.line.color == panel.line.color == colour(ids[3])


def test_runs_of_one_colour_differ_by_their_dashes() -> None:
    same = [f"run-{i}" for i in range(200) if colour(f"run-{i}") == PALETTE[0]][:3]
    figure = loss_figure([Curve(i, i, metrics([2.0, 1.0])) for i in same], View(smoothing=0, parts=("train",)))
    assert len({drawn.line.dash for drawn in figure.data}) == 3


@pytest.mark.parametrize(("parts", "names"), [(("train",), ["a", "b"]), (("val",), ["a, validation", "b, validation"])])
def test_an_overlay_shows_what_was_asked_for(parts: tuple[str, ...], names: list[str]) -> None:
    rows = metrics([2.0, 1.0], {2: 1.5})
    figure = loss_figure([Curve("a", "a", rows), Curve("b", "b", rows)], View(smoothing=0, parts=parts))
    assert [drawn.name for drawn in figure.data if drawn.showlegend] == names


def test_a_zoom_is_kept_until_the_axes_are_others() -> None:
    rows = metrics([2.0, 1.0])

    def revision(view: View) -> str:
        return loss_figure([Curve("a", "a", rows)], view).layout.uirevision

    assert revision(View()) == revision(View(smoothing=0.9))
    assert len({revision(View()), revision(View(x="tokens")), revision(View(log_y=True))}) == 3


def test_log_axes_and_shared_hover() -> None:
    layout = loss_figure([Curve("a", "a", metrics([2.0, 1.0]))], View(log_x=True, log_y=True)).layout
    assert (layout.xaxis.type, layout.yaxis.type, layout.hovermode) == ("log", "log", "x unified")


@pytest.mark.parametrize("losses", [[], [3.0]])
def test_a_run_without_a_curve_yet_is_no_error(losses: list[float]) -> None:
    curve = Curve("a", "a", metrics(losses))
    assert len(loss_figure([curve], View()).data) == 3
    drawn = line_figure(curve, "learning_rate", View(), "").data[0]
    assert "markers" in drawn.mode  # a single point has no line


def test_lines_are_svg() -> None:
    rows = metrics(list(np.linspace(5, 1, 3000)), {10: 3.0})
    figures = [
        loss_figure([Curve("a", "a", rows)], View()),
        line_figure(Curve("a", "a", rows), "grad_norm", View(), ""),
    ]
    assert {drawn.type for figure in figures for drawn in figure.data} == {"scatter"}


# ------------------------------------------------------------------------------------------------ the loss ladder

LADDER = (("uniform", 10.82), ("unigram", 7.1), ("bigram", 6.212), ("trigram", 6.18))


def rung_lines(figure: go.Figure) -> list[float]:
    return [shape.y0 for shape in figure.layout.shapes if shape.y0 == shape.y1]


def with_rungs(losses: list[float], rungs=LADDER, view: View | None = None, **validation) -> go.Figure:
    return loss_figure([Curve("a", "a", metrics(losses, **validation))], view or View(smoothing=0), rungs)


def test_rungs_are_labelled_lines_over_the_whole_width() -> None:
    figure = with_rungs([10.9, 8.0, 5.0])
    assert rung_lines(figure) == [10.82, 7.1, 6.212, 6.18]
    for shape in figure.layout.shapes:
        assert (shape.xref, shape.x0, shape.x1, shape.yref or "y") == ("paper", 0, 1, "y")
        assert shape.line.color == charts.NEUTRAL and shape.line.color in PALETTE  # so that themes exchange it
    labels = {note.text: note.y for note in figure.layout.annotations}
    assert labels == {"uniform 10.82": 10.82, "unigram 7.10": 7.1, "bigram 6.21 · trigram 6.18": 6.212}
    assert {(note.xref, note.x, note.xanchor) for note in figure.layout.annotations} == {("paper", 1, "right")}
    assert [drawn.name for drawn in figure.data] == ["training", "validation"]  # and nothing more in the legend


def test_labels_part_when_there_is_room() -> None:
    figure = with_rungs([6.3, 6.1])
    assert [note.text for note in figure.layout.annotations] == ["bigram 6.21", "trigram 6.18"]


def test_far_rungs_do_not_squeeze_the_curve() -> None:
    assert rung_lines(with_rungs([6.6, 5.0])) == [7.1, 6.212, 6.18]
    assert rung_lines(with_rungs([10.8, 7.5])) == [10.82, 7.1]
    assert rung_lines(with_rungs([3.0, 2.0])) == []
    assert rung_lines(with_rungs([3.0, 2.0], validation={2: 5.9})) == [6.212, 6.18]  # validation is drawn too


def test_a_rungs_label_is_on_its_line_on_a_log_axis() -> None:
    figure = with_rungs([10.9, 5.0], view=View(smoothing=0, log_y=True))
    assert rung_lines(figure) == [10.82, 7.1, 6.212, 6.18]  # a shape's place is the loss itself
    assert figure.layout.annotations[0].y == pytest.approx(np.log10(10.82))
    low = (("low", 0.02), ("half", 0.25), ("near", 0.9))
    assert rung_lines(with_rungs([0.6, 0.4], low, View(smoothing=0, log_y=True))) == [0.25, 0.9]
    assert rung_lines(with_rungs([0.6, 0.4], low)) == [0.02, 0.25, 0.9]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("losses", [[], [float("nan")]])
def test_rungs_alone_are_no_chart(losses: list[float], log: bool) -> None:
    figure = with_rungs(losses, view=View(log_y=log))
    assert rung_lines(figure) == []
    assert not [note for note in figure.layout.annotations if "gram" in note.text]


def test_a_loss_chart_without_rungs_is_as_it_was() -> None:
    rows = metrics([3.0, 2.0])
    assert charts.loss_figure([Curve("a", "a", rows)], View(), ()) == charts.loss_figure(
        [Curve("a", "a", rows)], View()
    )
    assert not loss_figure([Curve("a", "a", rows)], View()).layout.shapes


# ------------------------------------------------------------------------------------------------ corpora


def documents(lengths: list[int]) -> Statistics:
    ids = np.concatenate([np.append(np.arange(length) % 300, 50256) for length in lengths])
    return measure(ids.astype(np.uint16)[:-1])


def test_the_rank_frequency_curve_is_that_of_the_statistics() -> None:
    found = documents([10, 200, 500])
    figure = go.Figure(charts.rank_frequency_figure(found))
    (drawn,) = figure.data
    assert tuple(zip(drawn.x, drawn.y, strict=True)) == found.curve
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "log")
    assert drawn.text[0] == found.frequent[0].shown and drawn.text[-1] == "a token"


def test_tokens_are_no_html_in_a_chart() -> None:
    figure = charts.rank_frequency_figure(measure(np.full(5, 27, dtype=np.uint16)))
    assert figure["data"][0]["text"] == ["&lt;"]


def test_bars_fill_the_bins_of_the_document_lengths() -> None:
    found = documents([3, 3, 8, 40, 900])
    figure = go.Figure(charts.document_lengths_figure(found))
    (bars,) = figure.data
    assert sum(bars.y) == 5 and figure.layout.xaxis.type == "log"
    for x, width, left, right in zip(bars.x, bars.width, found.lengths.edges, found.lengths.edges[1:], strict=False):
        assert (x - width / 2, x + width / 2) == (left, right)
    assert bars.text[0] == "3 tokens" and bars.text[-1].endswith("to 900 tokens")


def test_one_document_is_told_and_not_drawn() -> None:
    figure = go.Figure(charts.document_lengths_figure(documents([1234])))
    assert not figure.data and not figure.layout.xaxis.visible
    assert [note.text for note in figure.layout.annotations] == ["one document of 1,234 tokens"]


def test_the_ladder_is_a_bar_a_rung_with_its_value() -> None:
    rungs = (Rung("uniform", 10.8249, "…"), Rung("unigram", 6.5, "…"))
    figure = go.Figure(charts.ladder_figure(Ladder(rungs, 10, 10, 10, 12, False)))
    (bars,) = figure.data
    assert (bars.y, bars.x, bars.orientation) == (("uniform", "unigram"), (10.8249, 6.5), "h")
    assert bars.text == ("10.82 · perplexity 50,257", "6.50 · perplexity 665")
    assert figure.layout.yaxis.autorange == "reversed"  # the first rung is the top one


def test_figures_of_corpora_are_json() -> None:
    found = documents([3, 30, 300])
    ladder = Ladder((Rung("uniform", 10.8249, "…"),), 10, 10, 10, 12, False)
    for figure in (
        charts.rank_frequency_figure(found),
        charts.document_lengths_figure(found),
        charts.document_lengths_figure(documents([5])),
        charts.ladder_figure(ladder),
        charts.loss_figure([Curve("a", "a", metrics([7.0, 6.0]))], View(), LADDER),
    ):
        json.dumps(figure, allow_nan=False)


def test_numbers_are_sent_with_six_digits() -> None:
    values = [1234567.89, 3.14159265, -0.000123456789, 0.0, 5e-324, 2.5e20, np.nan, np.inf]
    sent = charts.short(np.array(values))
    assert sent[-2:] == [None, None]
    assert sent[:-2] == pytest.approx([float(f"{value:.6g}") for value in values[:-2]], rel=1e-12)
    assert sent[:4] == [1234570.0, 3.14159, -0.000123457, 0.0]
    assert charts.short(np.array([100_000_001])) == [100_000_001]
