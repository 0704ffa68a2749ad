"""The Corpora page as a person uses it: download, cancel, resume, upload, look into a text, train on it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from engine.bench.browser import App
from engine.corpora import known
from engine.paths import PROJECT
from tests.web import Fault, Web, fill

SLOW = 60_000  # ms; a slow or busy machine is no failure
STORIES = "TinyStories-train.txt"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    """The servers that corpora come from, on this machine."""
    with Web() as web:
        fill(web, 2_000_000)
        yield web


def content_path(web: Web, ending: str) -> str:
    """Where the bytes come from of what is asked for under an address that ends so."""
    return next(urlsplit(entry.location).path or path for path, entry in web._entries.items() if path.endswith(ending))


@pytest.fixture
def launcher(web: Web) -> tuple[str, ...]:
    return "tests/with_small_sources.py", web.url


@pytest.fixture
def page(browser: Browser, app: App) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1440, "height": 1200}, base_url=app.address)
    context.set_default_timeout(SLOW)
    yield context.new_page()
    context.close()


def button(page: Page, name: str | re.Pattern[str]) -> Locator:
    """A button of the page, not of a table's tool bar."""
    return page.locator(".stButton").get_by_role("button", name=name)


def metric(page: Page, label: str) -> Locator:
    return page.get_by_test_id("stMetric").filter(has_text=re.compile(f"^{label}"))


def test_download_cancel_resume_look_and_train(page: Page, app: App, web: Web) -> None:
    stories = content_path(web, STORIES)
    web.fail(stories, then=Fault(bytes_per_s=50_000))  # 40 s: enough for a busy machine to load the page twice
    page.goto("/corpora?corpus=tinystories")
    button(page, re.compile("^Download")).click()
    bar = page.get_by_test_id("stProgress")
    expect(bar).to_contain_text(re.compile("Downloading tinystories.*/s.*left"), timeout=SLOW)
    page.reload()  # the work goes on, and the page finds it again
    expect(bar).to_contain_text("Downloading tinystories", timeout=SLOW)
    button(page, "Cancel").click()
    expect(page.get_by_text("of an earlier attempt are kept")).to_be_visible(timeout=SLOW)
    assert not (app.corpora / "tinystories.txt").exists()
    sent = web.sent(stories)
    assert 0 < sent < 2_000_000

    web.heal()
    button(page, re.compile("^Resume download")).click()
    expect(metric(page, "Distinct tokens")).to_be_visible(timeout=SLOW)
    expect(metric(page, "Documents")).not_to_contain_text("–")
    size = (app.corpora / "tinystories.txt").stat().st_size
    assert web.sent(stories) - sent < size  # what was kept was not fetched again
    token = page.locator(".lab-tokens span").nth(1)
    assert re.match(r"\d+  ", token.get_attribute("title") or "")

    page.get_by_role("tab", name="Loss ladder").click()
    expect(page.get_by_text(re.compile("^Trigram, .* nats per token"))).to_be_visible()
    train(app, "tinystories")
    page.goto("/pretraining")
    expect(page.locator(".lab-plot .js-plotly-plot, .lab-plot.js-plotly-plot").first).to_be_visible(timeout=SLOW)
    page.wait_for_function("document.querySelector('.lab-plot')?.layout?.annotations?.length > 0", timeout=SLOW)
    labels = page.evaluate("document.querySelector('.lab-plot').layout.annotations.map(a => a.text).join()")
    assert "uniform 10.82" in labels


def train(app: App, corpus: str) -> None:
    """A run of two small steps, from a terminal."""
    options = "--max-steps 2 --batch-size 1 --context-length 64 --eval-batches 1 --sample-length 0"
    command = [sys.executable, "-m", "engine.train", "--corpus", corpus, *options.split()]
    done = subprocess.run(command, cwd=PROJECT, env=app.environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_download_that_fails_says_why_and_can_be_tried_again(page: Page, app: App, web: Web) -> None:
    web.fail(content_path(web, "shakespeare.txt"), then=Fault(status=404))
    page.goto("/corpora?corpus=shakespeare")
    button(page, re.compile("^Download")).click()
    expect(page.get_by_text("answered 404")).to_be_visible(timeout=SLOW)
    web.heal()
    button(page, re.compile("^Download")).click()
    expect(metric(page, "Distinct tokens")).to_be_visible(timeout=SLOW)


def test_upload(page: Page, app: App, tmp_path: Path) -> None:
    good, bad = tmp_path / "My notes.md", tmp_path / "old.txt"
    good.write_text("# Not a heading\n\n<b>not bold</b> *nor this*. A line of prose follows it.\n" * 90_000)
    bad.write_bytes("Dvořák ".encode("iso8859-2") * 10)
    page.goto("/corpora")
    page.get_by_text("Add your own text").click()
    chooser = page.locator("input[type=file]")
    chooser.set_input_files(bad)
    button(page, re.compile("^Add$")).click()
    expect(page.get_by_text("old.txt is not UTF-8 text (byte 3). Save it as UTF-8.")).to_be_visible()
    chooser.set_input_files(good)
    name = page.get_by_label("Name", exact=True)
    expect(name).to_have_value("My_notes")
    name.fill("verdict")
    name.press("Enter")
    expect(page.get_by_text("There is a corpus 'verdict' already")).to_be_visible()
    expect(button(page, re.compile("^Add$"))).to_be_disabled()
    name.fill("notes")
    name.press("Enter")
    button(page, re.compile("^Add$")).click()
    expect(metric(page, "Distinct tokens")).to_be_visible(timeout=SLOW)
    expect(page.locator(".lab-tokens")).to_contain_text("<b>not bold</b> *nor this*")
    assert page.locator(".lab-tokens b").count() == 0  # text, never HTML
    assert (app.corpora / "notes.md").read_bytes() == good.read_bytes()

    button(page, "Delete …").click()
    expect(page.get_by_text("the lab cannot bring it back")).to_be_visible(timeout=SLOW)
    page.get_by_test_id("stDialog").get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("heading", name="Notes", exact=True)).to_have_count(0, timeout=SLOW)
    assert not (app.corpora / "notes.md").exists() and not list((app.corpora / ".tokens").glob("notes*.uint16"))


def test_a_large_corpus_does_not_slow_the_page(page: Page, app: App) -> None:
    text = (PROJECT / "corpora" / "verdict.txt").read_text(encoding="utf-8") + "\n"
    with (app.corpora / "large.txt").open("w", encoding="utf-8") as file:
        for number in range(5000):
            file.write(f"Part {number}. {text}")
    assert (app.corpora / "large.txt").stat().st_size > 100e6
    page.goto("/corpora?corpus=large")
    button(page, "Tokenize").click()
    expect(page.get_by_test_id("stProgress")).to_contain_text("Tokenizing Large", timeout=SLOW)
    expect(metric(page, "Distinct tokens")).to_be_visible(timeout=120_000)

    def seconds_to_open(name: str) -> float:
        began = time.monotonic()
        page.goto(f"/corpora?corpus={name}")
        expect(page.locator(".lab-tokens span").first).to_be_visible(timeout=SLOW)
        return time.monotonic() - began

    small = min(seconds_to_open("verdict") for _ in range(3))
    large = min(seconds_to_open("large") for _ in range(3))
    assert large < small + 1.0


def test_every_corpus_of_the_registry_can_be_opened(page: Page, app: App) -> None:
    for corpus in known.KNOWN[: len(known.BUILT_IN) + len(known.DOWNLOADABLE) + 1]:
        page.goto(f"/corpora?corpus={corpus.name}")
        expect(page.get_by_role("heading", name=corpus.title, exact=True)).to_be_visible(timeout=SLOW)
        for width in (768, 1440):
            page.set_viewport_size({"width": width, "height": 1200})
            page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth", timeout=SLOW)
    assert "Traceback" not in app.log.read_text()
