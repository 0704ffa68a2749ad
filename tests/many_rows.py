"""Runs with very many rows, and what their comparison costs in a browser.

    python tests/many_rows.py DIR --runs 10 --rows 1000000 --redraws 200

writes them to DIR, chooses all of them at once on a page that showed another run, changes axis, smoothing and curve
again and again, and prints seconds, from the click until the chart is drawn, and the server's memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.bench.browser import QUIET, App, chromium
from engine.config import TrainConfig, to_dict
from engine.metrics import METRICS
from engine.tables import write_parquet


def write_runs(folder: Path, runs: int, rows: int) -> list[str]:
    """Write runs' folders and return their ids; a million rows take about a second."""
    return [write_run(folder, number, rows) for number in range(runs)]


def write_run(folder: Path, number: int, rows: int, *, after: int = 0, **info: Any) -> str:
    """One run, whose first step follows `after`; `info` goes to its run.json."""
    random = np.random.default_rng(number)
    step = np.arange(after + 1, after + rows + 1)
    loss = 3 + 7.8 * np.exp(-step * 12 / rows) + random.normal(0, 0.1, rows)
    columns = {
        "step": step,
        "epoch": step / 1000,
        "tokens": step * 1024,
        "elapsed_s": step * (0.1 + 0.01 * number),
        "time": pa.array(1_764_000_000_000 + step, pa.int64()).cast(pa.timestamp("ms", tz="UTC")),
        "train_loss": loss,
        "val_loss": pa.array(loss + 0.1, mask=step % max(1, rows // 100) != 0),
        "learning_rate": np.full(rows, 1e-3),
        "grad_norm": random.gamma(2, 0.5, rows),
        "tokens_per_s": random.normal(10_000, 200, rows),
        "memory_gib": np.full(rows, 1.5),
    }
    run = folder / f"20261122-1530{number:02}-nano-verdict-{number:04x}"
    run.mkdir(parents=True, exist_ok=True)
    config = to_dict(TrainConfig(context_length=256, learning_rate=1e-3 * (number + 1), device="cpu"))
    described = {"name": f"Run {number}", "state": "completed", "config": config, "total_steps": after + rows, **info}
    (run / "run.json").write_text(json.dumps(described))
    write_parquet(pa.table(columns, schema=METRICS), run / "metrics.parquet")
    return run.name


SHOWN = "document.querySelector('.st-key-overlay .lab-plot')?.data"
# Seconds from `began` until the overlay is another one than `window.before`, with so many names in its legend.
DRAWN = """async ([began, names]) => {
    const shown = () => SHOWN;
    for (const end = performance.now() + 60000; performance.now() < end;) {
        const lines = shown();
        if (lines && lines !== window.before && lines.filter(line => line.showlegend !== false).length === names)
            return (performance.now() - began) / 1000;
        await new Promise(requestAnimationFrame);
    }
    throw new Error(`No chart of ${names} runs`);
}""".replace("SHOWN", SHOWN)
AXES = ("Tokens", "Training time", "Epoch", "Step")
CURVES = ("Throughput", "Gradient norm", "Loss")


def timed(page: Page, act: Callable[[], None], names: int) -> float:
    """Seconds until what `act` asks for is drawn."""
    began = page.evaluate(f"() => {{ window.before = {SHOWN}; return performance.now() }}")
    act()
    return page.evaluate(DRAWN, [began, names])


def choose_all(page: Page) -> None:
    """Tick the box in the head of the table, which is drawn on a canvas."""
    box = page.get_by_test_id("stDataFrame").locator("canvas").first.bounding_box()
    assert box
    page.mouse.click(box["x"] + 18, box["y"] + 17)


def changes(page: Page, number: int) -> Callable[[], None]:
    """What makes the next redraw: another axis, smoothing or curve, in turn; a menu is opened for it already."""
    kind, turn = number % 3, number // 3
    if kind == 0:
        name = AXES[turn % len(AXES)]
        return page.get_by_role("radio", name=name).or_(page.get_by_role("button", name=name, exact=True)).first.click
    if kind == 1:
        key = "ArrowRight" if turn // 30 % 2 == 0 else "ArrowLeft"
        return lambda: page.get_by_role("slider").first.press(key)
    page.get_by_label("Curve").click()
    option = page.get_by_role("option", name=CURVES[turn % len(CURVES)], exact=True)
    option.wait_for()
    return option.click


def measure(page: Page, app: App, runs: int, redraws: int) -> None:
    """Choose all runs, change the view again and again, and print what it took."""
    server = psutil.Process(app.process.pid)

    def held() -> str:
        return f"{server.memory_info().rss / 2**20:,.0f}"

    page.goto("/runs")
    page.wait_for_function(f"{SHOWN}?.length > 0")
    page.wait_for_timeout(5000)  # the tables too, and torch, which the server loads meanwhile
    before = held()
    print(f"first overlay: {timed(page, lambda: choose_all(page), runs):.2f} s", flush=True)
    page.wait_for_timeout(3000)
    text = page.evaluate(f"JSON.stringify({SHOWN}).length")
    longest = page.evaluate(f"Math.max(...{SHOWN}.map(line => line.x.length))")
    print(f"server: {before} MiB before, {held()} MiB after; chart: {text / 1000:,.0f} kB, {longest} points a line")
    took, memory = [], []
    for number in range(redraws):
        took.append(timed(page, changes(page, number), runs))
        memory.append(held())
    for kind, what in enumerate(("axis", "smoothing", "curve")):
        each = took[kind::3]
        print(f"another {what}: median {statistics.median(each):.2f} s, largest {max(each):.2f} s, of {len(each)}")
    print("server over the redraws, MiB:", *(memory[len(memory) * i // 8] for i in range(8)), memory[-1])


def main() -> None:
    """Generate, draw, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new, or as an earlier call left it")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--redraws", type=int, default=200)
    asked = parser.parse_args()
    asked.folder.mkdir(exist_ok=True)
    app = App(asked.folder)
    try:
        began = time.perf_counter()
        write_run(app.runs, asked.runs, 1000)  # the newest, which the page begins with
        write_runs(app.runs, asked.runs, asked.rows)
        print(f"{asked.runs} runs of {asked.rows:,} rows written in {time.perf_counter() - began:.1f} s", flush=True)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=QUIET)
            page = browser.new_page(viewport={"width": 1440, "height": 1000}, base_url=app.address)
            measure(page, app, asked.runs + 1, asked.redraws)
            browser.close()
    finally:
        app.stop()


if __name__ == "__main__":
    main()
