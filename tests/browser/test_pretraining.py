"""The Pretraining page as a person uses it: what the form says before a start, ways to fill it, branches, exercises,
and a run that memory ends.
"""

from __future__ import annotations

import random
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from app.widgets import formats
from engine.bench.browser import App
from engine.config import label
from engine.exercises import EXERCISES, facts_of, reading
from engine.paths import PROJECT
from engine.run import Run
from tests.browser.test_main_job import SLOW, expect_state, fill, no_traceback, wait_for

SHORT = (
    "--threads 1 --batch-size 1 --context-length 64 --max-steps 2 --eval-every -1 --eval-batches 1 --sample-length 0"
)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    app = App(tmp_path_factory.mktemp("pretraining"), ["tests/with_short_exercises.py"])
    yield app
    app.stop()


def field(page: Page, name: str) -> Locator:
    return page.get_by_label(label(name), exact=True)


def has(page: Page, **values: object) -> None:
    """The fields of the form hold these values."""
    for name, value in values.items():
        expect(field(page, name)).to_have_value(str(value), timeout=SLOW)


def gib_of_the_bar(page: Page) -> float:
    """What the memory bar's parts add up to."""
    bars = page.evaluate(
        "[...document.querySelectorAll('.lab-plot')].find(plot => plot.data)?.data.map(bar => bar.x[0])"
    )
    return sum(bars or [])


def runs(app: App) -> list[Run]:
    """Newest last."""
    found = [Run(path.parent) for path in app.runs.glob("*/run.json")]
    return sorted(found, key=lambda run: str(run.info["created"]))


def start(page: Page, app: App) -> Run:
    """Press Start, and wait until there is another run."""
    before = len(runs(app))
    button = page.get_by_role("button", name="Start", exact=True)
    expect(button).to_be_enabled(timeout=SLOW)
    button.click()
    wait_for(lambda: len(runs(app)) > before, timeout_s=60, say="No run was started.")
    return runs(app)[-1]


def train(app: App, *arguments: str) -> Run:
    """A run from a terminal."""
    subprocess.run([sys.executable, *arguments], cwd=PROJECT, env=app.environment, check=True, capture_output=True)
    return runs(app)[-1]


@pytest.fixture(scope="module")
def short_run(app: App) -> Run:
    """Two small steps with nothing besides."""
    return train(app, "-m", "engine.train", *shlex.split(SHORT))


def test_the_form_says_what_is_wrong_and_what_it_costs(app: App, page: Page, short_run: Run) -> None:
    page.goto("/pretraining")
    page.get_by_text("New run", exact=True).click()
    has(page, batch_size=1, context_length=64)  # the settings used last come back

    # An impossible configuration is explained below its field, and cannot be started.
    fill(page, "Context length", "8192")
    message = page.locator("small, span", has_text="nano takes at most 2,048 tokens of context.").last
    expect(message).to_be_visible(timeout=SLOW)
    told, asked = message.bounding_box(), field(page, "context_length").bounding_box()
    assert told and asked
    assert 0 <= told["y"] - (asked["y"] + asked["height"]) < 60 and abs(told["x"] - asked["x"]) < 60
    expect(page.get_by_role("button", name="Start", exact=True)).to_be_disabled()

    # The memory bar follows the form.
    fill(page, "Context length", "64")
    expect(message).not_to_be_visible(timeout=SLOW)
    sizes = []
    for batch in (64, 2):
        fill(page, "Batch size", str(batch))
        expect(page.get_by_text(f"{batch * 64:,} tokens", exact=True)).to_be_visible(timeout=SLOW)
        wait_for(lambda: f"Memory: about {formats.size(gib_of_the_bar(page) * 2**30)} of" in page.inner_text("body"))
        sizes.append(gib_of_the_bar(page))
    assert sizes[0] > sizes[1] + 0.1

    # The command that it gives makes a run with the settings of the form.
    page.get_by_role("button", name="Copy as command").click()
    line = page.locator("code", has_text="python -m engine.train")
    expect(line).to_contain_text("--batch-size 2", timeout=SLOW)
    python, *arguments = shlex.split(line.inner_text())
    by_command = train(app, *arguments)
    assert python == "python"
    assert by_command.info["requested"] == short_run.info["requested"] | {"batch_size": 2}
    no_traceback(page)


def test_settings_of_a_run_load_into_the_form(app: App, page: Page, short_run: Run) -> None:
    newest = runs(app)[-1]
    page.goto(f"/pretraining?run={newest.id}")
    page.get_by_role("button", name="Use these settings").click()
    has(page, batch_size=newest.info["requested"]["batch_size"], context_length=64)
    fill(page, "Batch size", "7")
    page.get_by_label("Settings of a run").click()
    page.get_by_role("option", name=re.compile(short_run.id[-4:])).click()
    has(page, batch_size=1, context_length=64)
    no_traceback(page)


def test_a_branch_with_four_differences_lists_the_four(page: Page, short_run: Run) -> None:
    page.goto(f"/pretraining?run={short_run.id}")
    page.get_by_role("button", name="Branch …").click()
    dialog = page.get_by_role("dialog")
    changes = {"max_steps": "5", "batch_size": "3", "weight_decay": "0.2", "dropout": "0.1"}
    for name in changes:
        dialog.get_by_label("Settings to change").fill(label(name))
        page.get_by_role("option", name=label(name), exact=True).click()
    page.keyboard.press("Tab")  # closes the list, which hides the rest
    for name, value in changes.items():
        one = dialog.get_by_role("spinbutton", name=label(name), exact=True)
        one.fill(value)
        one.press("Enter")
        expect(dialog.get_by_role("listitem").filter(has_text=f"{label(name)}:")).to_contain_text(
            f"→ {value}", timeout=SLOW
        )
    listed = [item.split(":")[0] for item in dialog.get_by_role("listitem").all_inner_texts()]
    assert sorted(listed) == sorted(label(name) for name in changes)
    no_traceback(page)


def test_an_exercise_runs_to_its_reading(app: App, page: Page) -> None:
    page.goto("/exercises")
    page.get_by_text("Run 1: smoke test", exact=True).click()
    run = start(page, app)
    expect_state(page, "completed")
    page.goto("/exercises")
    page.get_by_text("Run 1: smoke test", exact=True).click()
    exercise = next(one for one in EXERCISES if one.key == "smoke")
    said = reading(exercise, {"run": facts_of(run)}, roles=["run"])
    assert said.text and said.meaning and run.total_steps == 12
    expect(page.get_by_test_id("stAlert")).to_contain_text(said.text, timeout=SLOW)
    no_traceback(page)


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process can be limited on Linux only")
def test_a_run_that_memory_ends_leaves_a_usable_page(browser: Browser, tmp_path: Path) -> None:
    app = App(tmp_path, ["tests/with_little_memory.py", "3.5"])
    try:
        words = " ".join(random.Random(0).choices(("one", "two", "three", "four"), k=20_000))
        (app.corpora / "numbers.txt").write_text(words)
        train(app, "-m", "engine.train", *shlex.split(SHORT), "--corpus", "numbers", "--attention-impl", "manual")
        memory_ends(browser.new_page(viewport={"width": 1440, "height": 1000}, base_url=app.address), app)
    finally:
        app.stop()


def memory_ends(page: Page, app: App) -> None:
    page.goto("/pretraining")
    page.get_by_text("New run", exact=True).click()
    fill(page, "Batch size", "8")
    fill(page, "Context length", "2048")
    expect(page.get_by_text("16,384 tokens", exact=True)).to_be_visible(timeout=SLOW)
    run = start(page, app)
    expect_state(page, "failed")
    assert run.info["error"].startswith("Memory ran out on cpu. By the estimate these would fit: ")
    expect(page.get_by_role("alert").filter(has_text="Memory ran out on cpu.")).to_be_visible()
    offered = page.get_by_role("button", name=re.compile("· saves"))
    assert offered.count() == len(run.info["would_fit"]) > 1

    # One click fills the form with the run's settings and the change; the app trains on.
    shorter = next(c["settings"] for c in run.info["would_fit"] if c["settings"].keys() == {"context_length"})
    offered.filter(has_text=f"Context length {shorter['context_length']}").click()
    has(page, batch_size=8, **shorter)
    fill(page, "Context length", "64")
    fill(page, "Batch size", "1")
    expect(page.get_by_text("64 tokens", exact=True)).to_be_visible(timeout=SLOW)
    start(page, app)
    expect_state(page, "completed")
    no_traceback(page)
