"""What watching costs: the pace of one training with the Pretraining page open in a real browser, and with it closed.

One run of `nano` (batch 4, fp32, CPU) is started in the app and goes on through all segments; in a segment without the
page there is no browser at all. The pace is what the run's metrics say: tokens between two steps by the time they took.
A machine's pace drifts, so each watched segment is held against the mean of the two unwatched ones around it. Loading
the page is not watching it: a segment begins when that is over.
"""

from __future__ import annotations

import itertools
import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from engine.bench.browser import QUIET, App, chromium
from engine.errors import LabError
from engine.run import Run

SETTLE_S = 8.0  # after a page was opened, or closed: it loads for some four
TICKS = os.sysconf("SC_CLK_TCK")  # a second, in /proc


@dataclass(frozen=True)
class Segment:
    """A stretch of the run. Of the processor, seconds that were used in each second.

    Attributes:
        watched: whether the page was open.
        tokens_per_s: from the first step that ended in it to the last.
        app: training and server.
        browser: all its processes.
        elsewhere: whatever else the machine did; where that is not little, the paces say little.
    """

    watched: bool
    tokens_per_s: float
    app: float
    browser: float
    elsewhere: float


@dataclass(frozen=True)
class WatchingCost:
    """All segments, without the page and with it in turn, the first and the last one without."""

    segments: tuple[Segment, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """The pace of each watched segment over the mean of the two beside it."""
        paces = [segment.tokens_per_s for segment in self.segments]
        return tuple(2 * paces[i] / (paces[i - 1] + paces[i + 1]) for i in range(1, len(paces), 2))

    @property
    def drift(self) -> tuple[float, ...]:
        """The pace of each unwatched segment over that of the one before: what the machine does by itself."""
        paces = [segment.tokens_per_s for segment in self.segments[::2]]
        return tuple(then / now for now, then in itertools.pairwise(paces))

    @property
    def ratio(self) -> float:
        """Their mean."""
        return statistics.mean(self.ratios)


def measure_watching(seconds: float = 40.0, repetitions: int = 3) -> WatchingCost:
    """Train in the app, and look on every other while; leave the machine alone meanwhile.

    Args:
        seconds: of a segment.
        repetitions: segments with the page open.

    Raises:
        LabError: there is no Chromium, or hardly a step was done.
    """
    with tempfile.TemporaryDirectory() as folder:
        return WatchingCost(tuple(_segments(Path(folder), seconds, repetitions)))


def _segments(folder: Path, seconds: float, repetitions: int) -> Iterator[Segment]:
    app = App(folder)
    try:
        with _open(app) as page:
            _start_a_long_run(page)
        (run,) = (Run(path.parent) for path in app.runs.glob("*/run.json"))
        yield _segment(run, app, None, seconds)
        for _ in range(repetitions):
            with _open(app) as page:
                page.get_by_text(run.id).wait_for()
                yield _segment(run, app, page, seconds)
            yield _segment(run, app, None, seconds)
    finally:
        app.stop()


@contextmanager
def _open(app: App) -> Iterator[Page]:
    """The Pretraining page in a browser that starts and ends with it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=QUIET)
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(f"{app.address}/pretraining")
        yield page
        browser.close()


def _start_a_long_run(page: Page) -> None:
    """Press Start as a person does; so long that validation, samples and checkpoints are far away."""
    epochs = page.get_by_label("Epochs", exact=True)
    epochs.fill("100000")
    epochs.press("Enter")
    page.get_by_text(re.compile(r"^\d\d\d,\d\d\d$")).first.wait_for()  # steps: the form has taken it in
    page.get_by_role("button", name="Start").click()
    page.get_by_role("button", name="Pause").wait_for()


def _segment(run: Run, app: App, page: Page | None, seconds: float) -> Segment:
    wait = (lambda s: page.wait_for_timeout(1000 * s)) if page else time.sleep
    wait(SETTLE_S)
    began, used = time.time(), _used_s(app)
    wait(seconds)
    ended, used_then = time.time(), _used_s(app)
    wait(1.5)  # until the last step is on disk
    rows = run.metrics
    rows = rows[rows.time.between(*(datetime.fromtimestamp(time, UTC) for time in (began, ended)))]
    if len(rows) < 2:
        raise LabError("Hardly a step was done: measure for longer (--seconds).")
    first, last = rows.iloc[0], rows.iloc[-1]
    pace = (last.tokens - first.tokens) / (last.time - first.time).total_seconds()
    share = {name: (used_then[name] - used[name]) / (ended - began) for name in used}
    return Segment(page is not None, pace, **share)


def _used_s(app: App) -> dict[str, float]:
    """Processor time so far, in seconds, as `Segment` divides it."""
    server = _family(app.process.pid)
    mine = _family(os.getpid()) - server
    parts = {"app": sum(map(_cpu_s, server)), "browser": sum(map(_cpu_s, mine - {os.getpid()}))}
    user, nice, system, _idle, _wait, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:8])
    all_of_it = (user + nice + system + sum(interrupts)) / TICKS
    return parts | {"elsewhere": all_of_it - sum(parts.values()) - _cpu_s(os.getpid())}


def _family(root: int) -> set[int]:
    """A process and all that descend from it."""
    parents = {int(path.name): int(_stat(path.name)[1]) for path in Path("/proc").iterdir() if path.name.isdecimal()}
    family = {root}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return family


def _cpu_s(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / TICKS


def _stat(pid: int | str) -> list[str]:
    """What the kernel says of a process after its name: state, parent, and so on; zeros when it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["0"] * 13
