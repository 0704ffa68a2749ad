"""What watching costs: the pace of one training with the Pretraining page open in a real browser, and with it closed.

    python tests/watching.py         # three times 40 s of each, about five minutes; leave the machine alone meanwhile

One run of `nano` (batch 4, fp32, CPU) is started in the app and goes on through all segments; in a segment without the
page there is no browser at all. The pace is what the run's metrics say: tokens between two steps by the time they took.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from playwright.sync_api import Page, sync_playwright

from engine.run import Run, list_runs
from tests.browser.conftest import QUIET, App, chromium

SETTLE_S = 4.0  # after a page was opened, or closed


@dataclass(frozen=True)
class Segment:
    """A stretch of the run.

    Attributes:
        watched: whether the page was open.
        tokens_per_s: from the first step that ended in it to the last.
        browser: seconds of processor time that the browser took, for each second; of all its processes.
        server: the same of the app, training included.
    """

    watched: bool
    tokens_per_s: float
    browser: float
    server: float


def measure(folder: Path, *, seconds: float, repetitions: int, launcher: tuple[str, ...] = ()) -> Iterator[Segment]:
    """Train, and look on every other while.

    Args:
        folder: an empty one, for the app's runs and corpora.
        seconds: of a segment.
        repetitions: of a segment without the page and one with it.
        launcher: what Python is given in front of `-m streamlit`.
    """
    app = App(folder, launcher)
    os.environ["LAB_RUNS"] = str(app.runs)
    try:
        with _open(app) as page:
            _start_a_long_run(page)
        (run,) = list_runs()
        for _ in range(repetitions):
            yield _segment(run, app, None, seconds)
            with _open(app) as page:
                page.get_by_text(run.id).wait_for()
                yield _segment(run, app, page, seconds)
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
    when = rows.time.map(lambda time: time.timestamp())
    rows = rows[(when >= began) & (when <= ended)]
    first, last = rows.iloc[0], rows.iloc[-1]
    pace = (last.tokens - first.tokens) / (last.time - first.time).total_seconds()
    browser, server = ((b - a) / (ended - began) for a, b in zip(used, used_then, strict=True))
    return Segment(page is not None, pace, browser, server)


def _used_s(app: App) -> tuple[float, float]:
    """Processor time so far, in seconds: of everything that this process started but the app, and of the app."""
    server = _family(app.process.pid)
    return sum(map(_cpu_s, _family(os.getpid()) - server - {os.getpid()})), sum(map(_cpu_s, server))


def _family(root: int) -> set[int]:
    """A process and all that descend from it."""
    parents = {int(path.name): _stat(path.name)[1] for path in Path("/proc").iterdir() if path.name.isdecimal()}
    family = {root}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return family


def _stat(pid: int | str) -> tuple[float, int]:
    """Processor time of a process, in seconds, and its parent; zeros when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), int(fields[1])


def _cpu_s(pid: int) -> float:
    return _stat(pid)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokens per second with the page open and with it closed.")
    parser.add_argument("--seconds", type=float, default=40.0, help="of a segment (default: 40)")
    parser.add_argument("--repetitions", type=int, default=3, help="of both kinds of segment (default: 3)")
    parser.add_argument("--trace", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        segments = []
        for segment in measure(
            Path(folder),
            seconds=options.seconds,
            repetitions=options.repetitions,
            launcher=(options.trace,) if options.trace else (),
        ):
            segments.append(segment)
            print(
                f"{'watched ' if segment.watched else 'headless'} {segment.tokens_per_s:8,.0f} tok/s   processor: app "
                f"{segment.server:.2f}, browser {segment.browser:.3f}",
                flush=True,
            )
    ratios = [b.tokens_per_s / a.tokens_per_s for a, b in zip(segments[::2], segments[1::2], strict=True)]
    print(f"watched / headless: {', '.join(f'{ratio:.3f}' for ratio in ratios)}; mean {statistics.mean(ratios):.3f}")


if __name__ == "__main__":
    main()
