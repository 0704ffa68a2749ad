"""The page of one run as a person uses it: import it, verify, delete a checkpoint, and let its model talk."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Page, expect

from engine.archive import write_archive
from engine.bench.browser import App
from engine.checkpoint import Contents, save
from engine.config import TrainConfig, to_dict
from engine.generate import load_model, prompt_ids, stream_choices
from engine.model import GPT
from engine.run import Run
from engine.start import new_run
from tests.browser.test_main_job import SLOW, no_traceback, wait_for

pytestmark = pytest.mark.timeout(300)

PROMPT = "It was <b>&amp; 東" + " and it was" * 120  # long, so that a text left alone would take a minute


@pytest.fixture
def run(app: App, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A nano run with one checkpoint, of weights that have opinions."""
    monkeypatch.setenv("LAB_RUNS", str(app.runs))
    active = new_run(TrainConfig(corpus="tiny", context_length=512, batch_size=1, val_fraction=0.0))
    active.set_state("stopped")
    active.close()
    model = GPT(active.config.model)
    model.initialize(1)
    weights = {name: w * 4 for name, w in model.state_dict().items() if name != "head.weight"}
    save(active.folder, Contents(weights, {}, {}), {"step": 3, "train_loss": 5.0}, to_dict(active.config))
    yield active.reader


def test_the_page_of_a_run(app: App, page: Page, run: Run, tmp_path: Path) -> None:
    import_verify_and_delete(app, page, run, tmp_path)
    stream_hover_and_stop(app, page, run)


def import_verify_and_delete(app: App, page: Page, run: Run, tmp_path: Path) -> None:
    write_archive(run, tmp_path / "run.zip")
    (tmp_path / "bad.zip").write_bytes(b"PK and no more")
    page.goto("/runs")
    page.get_by_role("button", name="Import a run …").click()
    for name in ("bad.zip", "run.zip"):
        page.locator("input[type=file]").set_input_files(tmp_path / name)
        expect(page.get_by_test_id("stDialog").get_by_text(name, exact=True)).to_be_visible(timeout=SLOW)
        expect(page.get_by_text("cannot be imported")).to_have_count(0, timeout=SLOW)  # that of the file before
        page.get_by_test_id("stDialog").get_by_role("button", name="Import", exact=True).click()
        if name == "bad.zip":
            expect(page.get_by_text("cannot be imported")).to_be_visible(timeout=SLOW)
    expect(page).to_have_url(re.compile(f"run\\?id={run.id}-"), timeout=SLOW)
    [imported] = [Run(path.parent) for path in app.runs.glob("*/run.json") if path.parent.name != run.id]
    page.goto(f"/run?id={imported.id}&part=Checkpoints")
    page.get_by_role("button", name="Verify").click()
    expect(page.get_by_text("Step 3 is whole")).to_be_visible(timeout=SLOW)
    with page.expect_download() as weights:
        page.get_by_role("button", name="Weights (.safetensors)").click()
    assert Path(weights.value.path()).read_bytes() == (run.checkpoints[0].path / "model.safetensors").read_bytes()
    gone = imported.checkpoints[0].path / "model.safetensors"
    content = gone.read_bytes()
    gone.unlink()  # while the page is open
    page.get_by_role("button", name="Weights (.safetensors)").click()
    expect(page.get_by_text(f"{gone} cannot be used: No such file")).to_be_visible(timeout=SLOW)
    gone.write_bytes(content)
    page.get_by_role("button", name="Delete …").click()
    page.get_by_test_id("stDialog").get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_text("No checkpoint yet")).to_be_visible(timeout=SLOW)
    assert not imported.checkpoints and len(run.checkpoints) == 1
    no_traceback(page)


def stream_hover_and_stop(app: App, page: Page, run: Run) -> None:
    page.goto(f"/run?id={run.id}&part=Playground")
    page.get_by_role("tab", name="Lineage").click()
    expect(page).to_have_url(re.compile("part=Lineage"))
    page.get_by_role("tab", name="Playground").click()
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_label("Tokens", exact=True).fill("1000")
    page.get_by_label("Tokens", exact=True).press("Enter")
    expect(page.get_by_text("--length 1000")).to_be_visible(timeout=SLOW)
    page.get_by_role("button", name="Generate").click()
    spans = page.locator(".lab-choices .text span")
    wait_for(lambda: spans.count() >= 6, timeout_s=120, say="Nothing streams.")
    before = spans.count()
    wait_for(lambda: spans.count() > before, timeout_s=60, say="It does not go on.")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("point at a token")).to_be_visible(timeout=SLOW)
    count = spans.count()
    assert count < 1000
    assert page.locator(".lab-choices b").text_content() == PROMPT

    # What hovering tells is what the engine says of the same place, and it is the whole of the probability.
    choices = list(stream_choices(load_model(run.id), prompt_ids(PROMPT), 6, temperature=0.8, top_k=50, seed=0))
    spans.nth(5).hover()
    rows = page.locator(".lab-choices .tip .row")
    expect(rows.first).to_be_visible()
    numbers = [float(text.removesuffix(" %")) / 100 for text in rows.locator(".number").all_text_contents()]
    assert sum(numbers) == pytest.approx(1, abs=5e-4)
    assert numbers[:5] == pytest.approx([p for _, p in choices[5].likeliest(5)], abs=1e-4)
    chosen = page.locator(".lab-choices .tip .chosen .number").text_content()
    assert float((chosen or "").removesuffix(" %")) / 100 == pytest.approx(choices[5].probability, abs=1e-4)
    time.sleep(0.7)
    assert spans.count() == count, "it goes on after Stop"

    # A tab that is closed takes its generation with it.
    page.get_by_role("button", name="Generate").click()
    wait_for(lambda: 0 < spans.count() < count, timeout_s=120, say="No second text.")
    page.close()
    server = psutil.Process(app.process.pid)

    def is_idle() -> bool:
        used = sum(server.cpu_times()[:2])
        time.sleep(1)
        return sum(server.cpu_times()[:2]) - used < 0.2

    started = time.monotonic()
    wait_for(is_idle, timeout_s=15, say="The closed tab's text goes on.")
    print(f"\nidle {time.monotonic() - started:.1f} s after the tab was closed")
