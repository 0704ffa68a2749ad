"""The comparison of runs: what is drawn of each, what the tables say, and what the address keeps."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from app.widgets import comparison, comparison_charts, comparison_data
from app.widgets.charts import AXES, MAX_POINTS, View, colour, colour_number, smooth
from app.widgets.comparison_charts import MEASURES, NEAR, RunCurve, overlay_figure, run_curve, scatter_figure
from app.widgets.comparison_data import choice, overlay, shared_rungs
from engine import tables
from engine.config import TrainConfig, to_dict
from engine.history import History
from engine.kept import KeptColumns
from engine.run import Run, load_run, run_lock
from tests.many_rows import write_runs

Make = Callable[..., Path]

A, B, C = (f"20261122-15301{i}-nano-verdict-000{i}" for i in (1, 2, 3))
NAMES = {A: "a", B: "b", C: "c"}


def rows(steps: range, losses: list[float], own: int = 0, **columns: Any) -> History:
    at = np.array(steps)
    base = {"step": at, "epoch": at / 10, "tokens": at * 64, "elapsed_s": at * 0.5, "train_loss": np.array(losses)}
    return History(base | {"val_loss": np.full(len(at), np.nan)} | columns, own)


def overlaid(curves: dict[str, RunCurve], column: str = "train_loss", view: View | None = None, rungs=()) -> go.Figure:
    """Plotly's own figure refuses what it does not know, and JSON what is no number."""
    figure = overlay_figure(curves, NAMES, column, view or View(), rungs)
    json.dumps(figure, allow_nan=False)
    return go.Figure(figure)


# ------------------------------------------------------------------------------------------------ curves


def test_a_branch_begins_at_its_parents_value_and_step() -> None:
    losses = [9.0] * 40 + [5.0] * 10
    drawn = run_curve(rows(range(1, 51), losses, own=40), "train_loss", View(smoothing=0.9))
    assert drawn.x.tolist() == list(range(40, 51))
    assert drawn.raw[0] == 9.0 and drawn.raw[1] == 5.0
    assert drawn.smoothed == pytest.approx(smooth(pd.Series(losses), 0.9).to_numpy()[39:])  # goes on from its parent's


@pytest.mark.parametrize("x", ["tokens", "elapsed_s"])
def test_a_branch_begins_at_its_own_tokens_and_time(x: str) -> None:
    drawn = run_curve(rows(range(1, 51), [5.0] * 50, own=40), "train_loss", View(x=x))
    assert drawn.x[0] == {"tokens": 40 * 64, "elapsed_s": 20.0}[x]


def test_a_branch_on_another_text_does_not_go_back_in_epochs() -> None:
    epochs = np.array([1.0, 2.0, 3.0, 0.5, 1.0])
    drawn = run_curve(rows(range(1, 6), [5.0] * 5, own=3, epoch=epochs), "train_loss", View(x="epoch"))
    assert drawn.x.tolist() == [0.5, 1.0]


def test_validation_is_drawn_where_it_was_measured_and_never_smoothed() -> None:
    val = np.array([np.nan, 8.0, np.nan, 6.0])
    drawn = run_curve(rows(range(1, 5), [9.0, 8.0, 7.0, 6.0], val_loss=val), "train_loss", View(smoothing=0.9))
    assert drawn.val_x.tolist() == [2, 4] and drawn.val.tolist() == [8.0, 6.0]
    other = run_curve(rows(range(1, 5), [9.0] * 4, val_loss=val, grad_norm=np.ones(4)), "grad_norm", View())
    assert len(other.val) == 0


def test_what_changes_by_plan_is_not_smoothed() -> None:
    rate = np.array([1.0, 2.0, 3.0])
    history = rows(range(1, 4), [1.0] * 3, learning_rate=rate, tokens_per_s=rate)
    assert run_curve(history, "learning_rate", View(smoothing=0.9)).smoothed.tolist() == [1.0, 2.0, 3.0]
    assert run_curve(history, "tokens_per_s", View(smoothing=0.9)).smoothed[2] != 3.0


def test_many_long_runs_are_few_points() -> None:
    losses = np.random.default_rng(0).normal(5, 1, 50_000)
    losses[31_234] = 40.0
    history = rows(range(1, 50_001), losses.tolist(), val_loss=losses)
    alone, among = run_curve(history, "train_loss", View()), run_curve(history, "train_loss", View(), runs=50)
    assert len(alone.x) <= MAX_POINTS and 40.0 in alone.raw
    assert len(among.x) <= 300
    assert len(alone.val) <= MAX_POINTS and len(among.val) <= 40 and 40.0 in among.val


def test_a_run_without_rows_yet_is_no_error() -> None:
    figure = overlaid({A: run_curve(rows(range(0), []), "train_loss", View())})
    assert [note.text for note in figure.layout.annotations] == ["nothing measured yet"]


# ------------------------------------------------------------------------------------------------ the figure

CURVE = run_curve(
    rows(range(1, 5), [4.0, 3.0, 2.0, 1.0], val_loss=np.array([np.nan, 3.5, np.nan, 2.5])), "train_loss", View()
)


def test_every_run_has_its_colour_and_one_name_in_the_legend() -> None:
    figure = overlaid({A: CURVE, B: CURVE, C: CURVE})
    assert [line.name for line in figure.data if line.showlegend] == ["a", "b", "c"]
    for run_id in NAMES:
        lines = [line for line in figure.data if line.legendgroup == run_id]
        assert {line.line.color for line in lines} == {colour(run_id)} and len(lines) == 3  # raw, average, validation
    assert figure.layout.hovermode == "x unified"


@pytest.mark.parametrize(("parts", "count"), [(("train",), 4), (("val",), 2), (("train", "val"), 6)])
def test_the_losses_that_were_asked_for_are_drawn(parts: tuple[str, ...], count: int) -> None:
    figure = overlaid({A: CURVE, B: CURVE}, view=View(parts=parts))
    assert len(figure.data) == count
    assert sum(bool(line.showlegend) for line in figure.data) == 2


def test_many_runs_have_a_legend_that_scrolls_and_no_raw_lines() -> None:
    curves = {f"run-{i}": CURVE for i in range(20)}
    figure = go.Figure(overlay_figure(curves, {i: "n" * 60 + i for i in curves}, "train_loss", View()))
    assert len([line for line in figure.data if "raw" in line.name]) == 0
    assert figure.layout.legend.maxheight and max(len(line.name) for line in figure.data if line.showlegend) < 40
    assert {line.name[-6:] for line in figure.data if line.showlegend} == {i[-6:].rjust(6, "n") for i in curves}
    styles = {(line.line.color, line.line.dash) for line in figure.data if line.showlegend}
    assert len(styles) > 12  # runs of one colour differ by their dashes


def test_names_are_no_html_in_a_chart() -> None:
    figure = overlay_figure({A: CURVE, B: CURVE}, {A: "<b>a</b>", B: "b"}, "train_loss", View())
    assert "&lt;b&gt;a&lt;/b&gt;" in {line["name"] for line in figure["data"]}


def test_rungs_belong_to_the_loss_alone() -> None:
    rungs = (("unigram", 3.0),)
    assert overlaid({A: CURVE}, rungs=rungs).layout.shapes
    assert not overlaid({A: CURVE}, "grad_norm", rungs=rungs).layout.shapes


def test_a_loss_that_was_no_number_is_marked_and_a_missing_value_is_not() -> None:
    history = rows(range(1, 4), [3.0, np.nan, 2.0], memory_gib=np.array([1.0, np.nan, 1.0]))
    loss = overlaid({A: run_curve(history, "train_loss", View())})
    assert [shape.x0 for shape in loss.layout.shapes] == [2]
    memory = overlaid({A: run_curve(history, "memory_gib", View())}, "memory_gib")
    assert not memory.layout.shapes and memory.data[0].y == (1.0, None, 1.0)


def test_runs_whose_colours_are_near_differ_by_their_dashes() -> None:
    ids = [f"run-{number}" for number in range(200)]
    by_colour = {colour_number(run_id): run_id for run_id in ids}
    for number, near in NEAR.items():
        assert list(comparison_charts._dashes([by_colour[number], by_colour[near]])) == ["solid", "dash"]


def test_a_scatter_has_a_point_for_each_run_that_was_measured() -> None:
    points = pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": [4.0, np.nan, 5.0]}, index=[A, B, C])
    (drawn,) = go.Figure(scatter_figure(points, NAMES, "Batch", "Loss", log_x=True, log_y=False)).data
    assert (drawn.x, drawn.y, drawn.text) == ((1.0, 3.0), (4.0, 5.0), ("a", "c"))
    words = scatter_figure(points.assign(x=["on", "off", "on"]), NAMES, "Switch", "Loss", log_x=True, log_y=False)
    assert go.Figure(words).layout.xaxis.type == "category"


# ------------------------------------------------------------------------------------------------ the page


def show(*run_ids: str, **address: str) -> AppTest:
    """The comparison of some runs, as a page shows it."""

    def page(run_ids: list[str]) -> None:
        from app.widgets.comparison import comparison
        from engine.run import load_run

        comparison([load_run(run_id) for run_id in run_ids])

    test = AppTest.from_function(page, default_timeout=30, args=(list(run_ids),))
    test.query_params.update(address)
    test.run()
    assert not test.exception
    return test


def captions(page: AppTest) -> str:
    return "\n".join(caption.value for caption in page.caption)


def settings(**values: Any) -> dict[str, Any]:
    return to_dict(TrainConfig(context_length=64, device="cpu", precision="fp32", **values))


@pytest.fixture
def runs(make_run: Make) -> list[str]:
    """Three runs, the last one a branch of the first."""
    make_run(A, steps=100, name="first", config=settings(learning_rate=0.001), created="2026-11-22T15:30:12Z")
    make_run(B, steps=30, name="second", config=settings(learning_rate=0.002))
    folder = make_run(C, steps=60, name="second", parent={"run": A, "step": 40, "changes": {}})
    table = pq.read_table(folder / "metrics.parquet")
    pq.write_table(table.filter(pc.field("step") > 40), folder / "metrics.parquet")
    return [A, B, C]


def test_results_are_numbers_with_the_best_marked(runs: list[str]) -> None:
    page = show(*runs)
    (table,) = page.dataframe
    assert list(table.value.index) == ["first", "second (0002)", "second (0003)"]
    assert table.value.loc["first", "val_loss"] == 6.5 and table.value.loc["first", "steps"] == 100
    assert "★ marks the best" in captions(page)


def test_losses_of_different_texts_are_not_marked(runs: list[str], make_run: Make) -> None:
    make_run("20261122-153019-nano-verdict-0009", corpus_sha256="1" * 64)
    page = show(A, "20261122-153019-nano-verdict-0009")
    assert "different texts, so training losses are not marked" in captions(page)


@pytest.mark.parametrize(("read", "sentence"), [("tokens", "7,680 tokens"), ("time", "6.0 s")])
def test_losses_at_the_same_place(runs: list[str], read: str, sentence: str) -> None:
    page = show(A, B, read=read)
    assert sentence in page.markdown[0].value
    table = page.dataframe[0].value
    assert table["step"].to_list() == [30, 30] and table["val_loss"].to_list() == [6.5, 6.5]


def test_settings_that_differ_or_all(runs: list[str], make_run: Make) -> None:
    page = show(A, B, table="Settings")
    assert page.dataframe[0].value.to_numpy().tolist() == [["Learning rate", "0.001", "0.002"]]
    page.toggle(key="differences").set_value(False).run()
    assert len(page.dataframe[0].value) == len(settings())
    make_run("20261122-153015-nano-verdict-0005", config=settings(learning_rate=0.001))
    assert "the same settings" in captions(show(A, "20261122-153015-nano-verdict-0005", table="Settings"))


def test_samples_side_by_side_at_the_nearest_step(runs: list[str]) -> None:
    page = show(*runs, table="Samples")
    (component,) = [c for c in page.get("bidi_component") if "lab_texts" in c.proto.component_name]
    shown = json.loads(component.proto.json)
    assert [entry["heading"].split(" · ")[:2] for entry in shown] == [
        ["first", "step 100"],
        ["second (0002)", "step 30"],
        ["second (0003)", "step 60"],
    ]
    assert shown[0]["text"] == " <b>*not*</b> Markdown"


def test_the_step_of_the_samples_is_in_the_address_once_it_is_chosen(runs: list[str]) -> None:
    page = show(*runs, table="Samples")
    assert page.select_slider(key="sample_step").value == 30 and "sample_step" not in page.query_params
    page.select_slider(key="sample_step").set_value(60).run()
    assert page.query_params["sample_step"] == "60"
    assert show(*runs, table="Samples", sample_step="100").select_slider(key="sample_step").value == 100
    for odd in ("55", "<b>", ""):
        assert show(*runs, table="Samples", sample_step=odd).select_slider(key="sample_step").value == 30


def test_a_step_that_nobody_chose_goes_on_with_the_runs(runs: list[str]) -> None:
    page = show(A, B, table="Samples")
    assert page.select_slider(key="sample_step").value == 30
    table = pq.read_table(load_run(A).folder / "samples.parquet")  # B trains on and writes a text at 100 too
    pq.write_table(table, load_run(B).folder / "samples.parquet")
    table = table.set_column(0, "step", pa.array([200], table.schema.field("step").type))
    pq.write_table(
        pa.concat_tables([pq.read_table(load_run(A).folder / "samples.parquet"), table]),
        load_run(A).folder / "samples.parquet",
    )
    page.run()
    assert page.select_slider(key="sample_step").value == 100 and "sample_step" not in page.query_params


def test_the_address_keeps_the_view(runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, View]] = []

    def record(chosen: Any, column: str, view: View, rungs: Any) -> str:
        asked.append((column, view))
        return overlay(chosen, column, view, rungs)

    monkeypatch.setattr(comparison, "overlay", record)
    show(*runs)
    assert asked[-1] == ("train_loss", View())
    page = show(*runs, x="tokens", smoothing="0.9", log_y="on", losses="validation")
    assert asked[-1] == ("train_loss", View("tokens", 0.9, False, True, ("val",)))
    page.selectbox(key="curve").set_value("grad_norm").run()
    assert asked[-1][0] == "grad_norm"
    show(*runs, x="Nonsense", smoothing="7", curve="<b>", log_y="yes")
    assert asked[-1] == ("train_loss", View())


def test_a_shared_part_is_drawn_once(runs: list[str]) -> None:
    figure = json.loads(overlay(choice([load_run(i) for i in runs]), "train_loss", View(smoothing=0), ()))
    starts = {line["name"]: line["x"][0] for line in figure["data"] if line.get("showlegend")}
    assert starts == {"first": 1, "second (0002)": 1, "second (0003)": 40}


@pytest.mark.parametrize("column", list(MEASURES))
def test_every_measure_of_every_axis(runs: list[str], column: str) -> None:
    for x in ("step", "tokens", "elapsed_s", "epoch"):
        go.Figure(json.loads(overlay(choice([load_run(i) for i in runs]), column, View(x=x), ())))


def test_a_change_in_a_run_is_drawn_and_a_redraw_reads_nothing(runs: list[str], make_run: Make) -> None:
    chosen = choice([load_run(i) for i in runs])
    before = overlay(chosen, "train_loss", View(), ())
    misses = comparison_data.overlay.cache_info().misses
    assert overlay(choice([load_run(i) for i in runs]), "train_loss", View(), ()) is before
    assert comparison_data.overlay.cache_info().misses == misses
    info = json.loads((load_run(A).folder / "run.json").read_text())
    (load_run(A).folder / "run.json").write_text(json.dumps(info | {"name": "renamed"}))
    assert '"renamed"' in overlay(choice([load_run(i) for i in runs]), "train_loss", View(), ())


def test_a_run_in_training_is_followed_and_a_finished_one_is_not(
    runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    every: list[float | None] = []
    fragment = st.fragment
    monkeypatch.setattr(st, "fragment", lambda f, run_every=None: every.append(run_every) or fragment(f))
    show(*runs)
    lock = run_lock(load_run(B).folder)
    assert lock.acquire()
    try:
        show(*runs)
    finally:
        lock.release()
    assert every == [None, None, comparison.TICK_S, comparison.TABLES_S]  # the chart, and what stands below it


def test_rungs_are_shown_when_all_share_their_texts(runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(comparison_data, "cached_ladder", lambda *text: asked.append(text))
    shared_rungs(choice([load_run(A), load_run(B)]))
    assert asked == [("None", None, 0.1)]


def test_damaged_runs_are_compared_as_far_as_they_can_be_read(runs: list[str], make_run: Make) -> None:
    make_run("20261122-153014-nano-verdict-0004", name="torn")
    folder = load_run("20261122-153014-nano-verdict-0004").folder
    (folder / "metrics.parquet").write_bytes(b"no table")
    page = show(A, folder.name)
    assert "is damaged or foreign and was left out" in captions(page)
    (folder / "run.json").write_text("{")
    for table in ("Results", "Settings", "Setting against result", "Samples"):
        show(A, folder.name, table=table)
        show(folder.name, table=table)


def views(redraws: int) -> list[dict[str, str]]:
    """Addresses of comparisons that differ in axis, smoothing and curve."""
    axes, curves = list(AXES), ("train_loss", "tokens_per_s", "grad_norm")
    return [
        {"x": axes[i % 4], "curve": curves[i % 3], "smoothing": f"{i % 97 / 100:.2f}", "log_x": ["on", "off"][i % 2]}
        for i in range(redraws)
    ]


@pytest.mark.usefixtures("warmed_up")
def test_tables_of_long_runs_wait_while_their_curves_are_drawn(
    runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = choice([load_run(run_id) for run_id in runs])
    waits: list[float] = []
    monkeypatch.setattr(comparison_data.time, "sleep", waits.append)
    comparison_data.compared.cache_clear()
    comparison_data.compared(chosen)
    assert not waits
    monkeypatch.setattr(comparison_data, "LARGE", 1000)
    comparison_data.compared.cache_clear()
    comparison_data.compared(chosen)
    comparison_data.compared(chosen)  # is known
    assert waits == [comparison_data.HEAD_START_S]


def test_many_rows_are_redrawn_quickly_and_nothing_piles_up(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python tests/many_rows.py` measures it in full: ten runs of a million rows each, in a browser."""
    ids = write_runs(folders / "runs", 3, 200_000)
    kept = KeptColumns(6 * 200_000 * 8)  # two curves of the runs
    monkeypatch.setattr(tables, "KEPT", kept)
    monkeypatch.setattr(Run, "metrics", property(lambda run: pytest.fail("Whole tables are read.")))
    read: list[str] = []
    really = tables._read_parquet
    monkeypatch.setattr(tables, "_read_parquet", lambda *asked: read.extend(asked[2]) or really(*asked))
    overlay(choice([load_run(i) for i in ids]), "train_loss", View(), ())
    assert read == ["step", "train_loss", "val_loss"] * 3
    took, held = [], []
    for address in views(12):
        began = time.process_time()
        show(*ids, **address)
        took.append(time.process_time() - began)
        held.append(psutil.Process().memory_info().rss / 2**20)
        assert 0 < kept.bytes <= kept.most_bytes
    assert sorted(took)[len(took) // 2] < 1  # 0.2 to 0.5 s of processor time; machines differ by a factor of two
    assert held[-1] - held[5] < 50
    assert read.count("step") == 3 and read.count("tokens") == 3  # evenly spaced: they stay
    assert "learning_rate" not in read
