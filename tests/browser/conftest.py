"""A real server and a real browser for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from engine.bench.browser import QUIET, App, chromium


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    app = App(tmp_path)
    yield app
    app.stop()


@pytest.fixture
def page(browser: Browser, app: App) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1440, "height": 1000}, base_url=app.address)
    context.set_default_timeout(30_000)
    outside: list[str] = []
    context.on("request", lambda request: outside.append(request.url) if is_outside(request.url, app) else None)
    yield context.new_page()
    context.close()
    assert not outside, f"The pages asked for something that is not on this machine: {outside}"


def is_outside(url: str, app: App) -> bool:
    return url.startswith("http") and not url.startswith(app.address)
