"""A real server and a real browser for the tests of this folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

PROJECT = Path(__file__).resolve().parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


class App:
    """`streamlit run app/Home.py` on a port of its own, with runs and corpora of its own.

    Args:
        folder: for its data.
        launcher: what Python is given in front of `-m streamlit`.
    """

    def __init__(self, folder: Path, launcher: Sequence[str] = ()) -> None:
        self.runs, self.corpora = folder / "runs", folder / "corpora"
        self.runs.mkdir()
        self.corpora.mkdir()
        self.log = folder / "server.log"
        self.environment = os.environ | {"LAB_RUNS": str(self.runs), "LAB_CORPORA": str(self.corpora)}
        self.environment.pop("PYTHONPATH", None)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, *launcher, "-m", "streamlit", "run", "app/Home.py", f"--server.port={self.port}"]
        self.process = subprocess.Popen(
            [*command, "--server.headless=true"],
            cwd=PROJECT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
        )
        self._wait_until_healthy()

    def _wait_until_healthy(self) -> None:
        for _ in range(300):
            assert self.process.poll() is None, self.log.read_text()
            try:
                with urllib.request.urlopen(f"{self.address}/_stcore/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"The app did not start: {self.log.read_text()}")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def chromium() -> str:
    """The path of a Chromium."""
    path = os.environ.get("LAB_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.fail("No Chromium was found: install one, or set LAB_CHROMIUM to its path (./launch.sh test does it).")
    return path


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
