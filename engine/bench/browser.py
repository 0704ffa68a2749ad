"""The app on a server of its own, and a Chromium to look at it: for benchmarks and for the tests in a browser."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from engine.errors import LabError
from engine.paths import PROJECT

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
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.address}/_stcore/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.1)
        raise LabError(f"The app did not start: {self.log.read_text()}")

    def stop(self) -> None:
        """End the server; a training stops and saves first."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def chromium() -> str:
    """The path of a Chromium.

    Raises:
        LabError: there is none.
    """
    path = os.environ.get("LAB_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        raise LabError(
            "No Chromium was found: install one, or set LAB_CHROMIUM to its path (./launch.sh test does it)."
        )
    return path
