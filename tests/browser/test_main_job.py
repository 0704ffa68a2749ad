"""The main job as a person does it: start, watch, reload, steer, find and compare runs."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pandas as pd
import pytest
from playwright.sync_api import Page, expect

from engine.bench.browser import App
from engine.paths import PROJECT
from engine.run import Run

FIRST_POINT_S = 5.0  # on two cores that do nothing else; the test allows three times that
SLOW = 120_000  # ms; a slow or busy machine is no failure

pytestmark = pytest.mark.timeout(600)


def points(page: Page) -> int:
    """Points of the training line that the loss chart shows now."""
    return page.evaluate("document.querySelector('.lab-plot')?.data?.[0]?.y?.length ?? 0")


def wait_for(what: Callable[[], bool], timeout_s: float = 30, say: str = "") -> None:
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, say or "It did not happen in time."
        time.sleep(0.1)


def expect_state(page: Page, state: str) -> None:
    badge = page.locator(".stMarkdownBadge", has_text=re.compile(f"{state}$"))
    expect(badge).to_be_visible(timeout=SLOW)


def fill(page: Page, label: str, value: str) -> None:
    field = page.get_by_label(label, exact=True)
    field.fill(value)
    field.press("Enter")


def fill_form(page: Page, *, epochs: str) -> None:
    """Small steps, so that much happens in little time."""
    expect(page.get_by_role("button", name="Start")).to_be_enabled(timeout=SLOW)
    fill(page, "Batch size", "1")
    fill(page, "Context length", "64")
    fill(page, "Epochs", epochs)


def press_start(page: Page) -> float:
    """Press Start when the form has taken in the fields; returns when it was pressed."""
    expect(page.get_by_text("64 tokens", exact=True)).to_be_visible(timeout=SLOW)
    expect(page.get_by_role("button", name="Start")).to_be_enabled(timeout=SLOW)
    page.get_by_role("button", name="Start").click()
    return time.monotonic()


def no_traceback(page: Page) -> None:
    assert "Traceback" not in page.inner_text("body")
    assert page.get_by_test_id("stException").count() == 0


def only_run(app: App) -> Run:
    (run,) = [Run(path.parent) for path in app.runs.glob("*/run.json")]
    return run


def choose_rows(page: Page, *rows: int) -> None:
    """Tick rows of the table, which is drawn on a canvas: a header and rows of 35 pixels."""
    box = page.get_by_test_id("stDataFrame").locator("canvas").first.bounding_box()
    assert box
    for row in rows:
        page.mouse.click(box["x"] + 18, box["y"] + 35 * (row + 1) + 17)


def drag_over_the_chart(page: Page) -> None:
    """Zoom into a part of the loss chart with the mouse."""
    area = page.locator(".lab-plot .nsewdrag").first
    wait_for(lambda: area.bounding_box() is not None)
    box = area.bounding_box()
    assert box
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.2 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.8 * box["height"], steps=4)
    page.mouse.up()


def test_start_watch_reload_steer_compare(app: App, page: Page) -> None:
    # Start nano on The Verdict from the form, and see the first point.
    page.goto("/pretraining")
    fill_form(page, epochs="300")
    pressed = press_start(page)
    wait_for(lambda: points(page) > 0, say="No point appeared on the chart.")
    waited = time.monotonic() - pressed
    print(f"\nfirst point after {waited:.1f} s")
    assert waited < 3 * FIRST_POINT_S
    expect_state(page, "running")
    run = only_run(app)

    # The curve grows, and a reload shows the same live run.
    before = points(page)
    wait_for(lambda: points(page) > before, say="The curve did not grow.")
    page.reload()
    expect(page.get_by_text(run.id)).to_be_visible(timeout=SLOW)
    wait_for(lambda: points(page) > before, say="The reloaded page does not show the curve.")
    expect_state(page, "running")

    # A zoom survives new points.
    zoom = "document.querySelector('.lab-plot').layout.xaxis.range"
    drag_over_the_chart(page)
    wait_for(lambda: page.evaluate("document.querySelector('.lab-plot').layout.xaxis.autorange") is False)
    zoomed, before = page.evaluate(zoom), points(page)
    wait_for(lambda: points(page) > before)
    assert page.evaluate(zoom) == zoomed

    # A second tab is refused a second start, with a link to the first run.
    second = page.context.new_page()
    second.goto("/pretraining")
    second.get_by_text("New run", exact=True).click()
    fill_form(second, epochs="1")
    press_start(second)
    expect(second.get_by_text(re.compile("Stop it first"))).to_be_visible(timeout=SLOW)
    link = second.get_by_role("link", name=re.compile("Go to the run that is training"))
    expect(link).to_be_visible()
    link.click()
    expect(second).to_have_url(re.compile(f"run={run.id}"), timeout=SLOW)
    expect(second.get_by_text(run.id)).to_be_visible(timeout=SLOW)
    no_traceback(second)
    second.close()
    assert only_run(app).id == run.id

    # Pause, save, resume, stop.
    page.get_by_role("button", name="Pause").click()
    expect_state(page, "paused")
    step = run.metrics.step.max()
    time.sleep(1.5)
    assert run.metrics.step.max() == step
    page.get_by_role("button", name="Save now").click()
    wait_for(lambda: any(c.step == step and not c.problem for c in run.checkpoints), say="No checkpoint was saved.")
    page.get_by_role("button", name="Resume").click()
    expect_state(page, "running")
    wait_for(lambda: run.metrics.step.max() > step, say="The run did not go on.")
    page.get_by_role("button", name="Stop and save").click()
    expect_state(page, "stopped")
    assert run.state == "stopped" and run.checkpoints[-1].step == run.metrics.step.max()
    assert list(run.metrics.step) == list(range(1, run.metrics.step.max() + 1))
    expect(page.get_by_role("button", name="Resume")).to_be_visible(timeout=SLOW)
    no_traceback(page)

    # A second, short run; then find both on Runs and lay them over each other.
    page.get_by_text("New run", exact=True).click()
    fill_form(page, epochs="0.02")
    press_start(page)
    wait_for(lambda: len(list(app.runs.glob("*/run.json"))) == 2)
    expect_state(page, "completed")
    page.goto("/runs")
    expect(page.get_by_test_id("stDataFrame").first).to_be_visible(timeout=SLOW)
    wait_for(lambda: points(page) > 0, say="The newest run's curve is not shown.")
    lines = page.evaluate("document.querySelector('.lab-plot').data.length")
    choose_rows(page, 1)
    drawn = "document.querySelector('.lab-plot')?.data?.length ?? 0"
    wait_for(lambda: page.evaluate(drawn) > lines, say="No second run.")
    names = page.evaluate(
        "document.querySelector('.lab-plot').data.filter(d => d.showlegend !== false).map(d => d.name)"
    )
    assert len(names) == 2 and run.id[-4:] in " ".join(names)
    no_traceback(page)


def train_in_a_terminal(app: App, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "engine.train", "--config", "nano", "--corpus", "verdict", *options]
    quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return subprocess.Popen(command, cwd=PROJECT, env=app.environment, **quiet)


def test_a_run_of_a_terminal_shows_live_and_can_be_stopped_here(app: App, page: Page) -> None:
    page.goto("/pretraining")
    expect(page.get_by_role("button", name="Start")).to_be_visible(timeout=SLOW)
    trainer = train_in_a_terminal(app, "--batch-size", "1", "--context-length", "64", "--epochs", "300")
    try:
        wait_for(lambda: points(page) > 0, timeout_s=60, say="The terminal's run does not show.")
        before = points(page)
        wait_for(lambda: points(page) > before, say="The curve did not grow.")
        expect(page.get_by_text(only_run(app).id)).to_be_visible()
        page.get_by_role("button", name="Stop and save").click()
        expect_state(page, "stopped")
        trainer.wait(30)
    finally:
        if trainer.poll() is None:
            trainer.kill()
            trainer.wait()
    no_traceback(page)


def test_ending_the_app_stops_the_run_with_a_checkpoint(app: App, page: Page) -> None:
    page.goto("/")
    page.get_by_role("button", name="Smoke run").click()
    expect(page).to_have_url(re.compile("run="), timeout=SLOW)
    wait_for(lambda: points(page) > 0, timeout_s=60)
    app.process.send_signal(signal.SIGTERM)
    assert app.process.wait(60) is not None
    run = only_run(app)
    assert run.state == "stopped", run.events
    assert [c.step for c in run.checkpoints if not c.problem] == [run.metrics.step.max()]
    whole = pd.read_parquet(run.folder / "metrics.parquet")
    assert list(whole.step) == list(range(1, len(whole) + 1))
