"""A real server and a real browser for the tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from engine.bench.browser import QUIET, App, chromium
from engine.run import Run


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def servers() -> Iterator[dict[tuple[str, ...], App]]:
    """One for each launcher, for all tests: to load everything takes a server seconds."""
    servers: dict[tuple[str, ...], App] = {}
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture
def launcher() -> tuple[str, ...]:
    """What Python is given in front of `-m streamlit`."""
    return ()


@pytest.fixture
def app(
    servers: dict[tuple[str, ...], App], launcher: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[App]:
    """The app, which has no runs and no corpora yet."""
    if launcher not in servers or servers[launcher].process.poll() is not None:
        servers[launcher] = App(tmp_path_factory.mktemp("app"), launcher)
    yield servers[launcher]
    clear(servers[launcher])


def clear(app: App) -> None:
    """Take away all runs and corpora. A run that goes on, since its test has failed, ends with its server."""
    if any(Run(path.parent).is_locked for path in app.runs.glob("*/run.json")):
        app.stop()
    for path in [*app.runs.iterdir(), *app.corpora.iterdir()]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


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
