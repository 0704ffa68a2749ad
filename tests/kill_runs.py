"""Kill a training run with SIGKILL, again and again, and look at what is left each time.

    python tests/kill_runs.py --moments 50

The runs are real: the command of `python -m engine.train` in a process of its own, on the smallest settings. Most
moments are exact places inside a save, a flush and so on (see `killed_train.py`), the others are times drawn at random.
After each kill the folder is checked, then the same run is resumed and killed again, so that damage would add up. In
the end each run must equal one that was never interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(PROJECT)

import pandas as pd  # noqa: E402

from engine.checkpoint import FILES, load  # noqa: E402
from engine.errors import CheckpointError  # noqa: E402
from engine.run import Run, list_runs  # noqa: E402
from engine.start import resume_run  # noqa: E402
from tests.killed_train import Moment  # noqa: E402

MOST_LOST_S = 2.0  # the promise: a row that is older is on disk, whatever happens
SETTINGS = (  # noqa: SIM905
    "--config nano --corpus tiny --context-length 32 --batch-size 1 --epochs 100 --threads 1 --dropout 0.1 "
    "--save-every 4 --keep-checkpoints 2 --eval-every 3 --sample-every 6 --sample-length 4 --json"
).split()
EXACT = ["step", "epoch", "tokens", "train_loss", "val_loss", "learning_rate", "grad_norm"]  # what no kill may change
NEVER = Moment("random", when="launch", after_s=120)
FIRST_SAVED = Moment("save", "fsync", "after", 6)
SAVING = ("save", "prune", "flush", "compact", "rewind/compact", "finish/compact")  # a save or a flush, and its parts


def places() -> list[Moment]:
    """The exact moments. A save writes four files, syncs each, then their folder, renames it, and syncs the folder
    above; a segment is written, synced and renamed, then its folder is synced and what is left of it deleted."""
    named = {
        "save": "half write 1, half write 2, half write 3, half write 4, half write 6, after write 1, after write 4, "
        "before fsync 1, after fsync 4, before fsync 5, after fsync 6, before rename 1, after rename 1, "
        "before rename 2, after rename 3",
        "flush": "half write 3, after write 2, after fsync 3, before rename 4, after rename 2, after fsync 8",
        "compact": "half write 1, before rename 2, after rename 1, after delete 2, before delete 3, after delete 7",
        "prune": "after rename 1, half delete 1",
        "run.json": "half write 2, after rename 3",
        "rewind": "after rename 1, half delete 1",
        "rewind/compact": "half write 1, after rename 1, after delete 2, before rename 2",
        "finish/compact": "after rename 1, after delete 2",
    }
    found = []
    for region, list_of_places in named.items():
        for place in list_of_places.split(", "):
            when, operation, nth = place.split()
            found.append(Moment(region, operation, when, int(nth)))
    return found


def draw_moments(count: int, seed: int) -> list[Moment]:
    """So many moments in a random order: exact ones, at most three quarters of all, and random times."""
    dice = random.Random(seed)
    exact = dice.sample(places(), min(count * 3 // 4, len(places())))
    times = [
        Moment("random", when="launch", after_s=dice.uniform(0, 2))
        if number % 3 == 0
        else Moment("random", when="first step", after_s=dice.uniform(0, 3))
        for number in range(count - len(exact))
    ]
    return dice.sample(exact + times, count)


@dataclass
class Life:
    """What one process did, from its launch to its end."""

    killed: bool
    ended_at: float  # monotonic, in seconds; for a kill, the time of it
    rows: list[dict[str, Any]]  # step, validated, at: as told when they were logged
    flushed: int  # how many of them were on disk already
    inside: str  # where it killed itself; "" when it did not
    errors: str


class Launcher:
    """Starts the processes that are killed. Use it as a context manager: none of them outlives it.

    Args:
        small: shrink nano to one narrow layer, for a quick test.
    """

    def __init__(self, *, small: bool = False) -> None:
        self._program = [sys.executable, str(PROJECT / "tests" / "killed_train.py"), *["--small"] * small]

    def __enter__(self) -> Launcher:
        self._server = subprocess.Popen(self._program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        with self._server:  # closes its input, and waits
            pass

    def live(self, moment: Moment, *arguments: str, **environment: str) -> Life:
        """Run the command until the moment comes, or it ends by itself."""
        with tempfile.TemporaryDirectory() as name:
            pipe, errors = Path(name, "pipe"), Path(name, "errors")
            pipe.touch()
            request = {"moment": vars(moment), "pipe": str(pipe), "errors": str(errors), "arguments": arguments}
            process = os.pidfd_open(int(self._ask(request | {"environment": dict(os.environ) | environment})))
            try:
                _wait_for(moment, process, pipe)
                ended_at = time.monotonic()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                os.close(process)
                code = int(self._answer())
            lines = [json.loads(line) for line in pipe.read_text().splitlines()]
            deaths = [line for line in lines if "died" in line]
            ended_at = deaths[0]["at"] if deaths else ended_at
            rows = [line for line in lines if "step" in line]
            last_flush = max((number for number, line in enumerate(lines) if "flushed" in line), default=0)
            flushed = sum("step" in line for line in lines[:last_flush])
            return Life(code == -9, ended_at, rows, flushed, deaths[0]["died"] if deaths else "", errors.read_text())

    def _ask(self, request: dict[str, Any]) -> str:
        assert self._server.stdin
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._server.stdout
        return self._server.stdout.readline()


def _wait_for(moment: Moment, process: int, pipe: Path, limit_s: float = 120) -> None:
    """Until the process has ended, or its random time has come."""
    deadline = time.monotonic() + limit_s
    while moment.when == "first step" and not pipe.stat().st_size and not _has_ended(process, 0.005):
        assert time.monotonic() < deadline, "the run did not start"
    assert _has_ended(process, moment.after_s if moment.is_random else limit_s) or moment.is_random, "it hangs"


def _has_ended(process: int, patience_s: float) -> bool:
    return bool(select.select([process], [], [], patience_s)[0])


@dataclass
class Finding:
    """What was found after one kill."""

    moment: Moment
    run_id: str
    step: int  # the last on disk
    lost_rows: int
    lost_s: float  # age of the oldest row that was lost
    checkpoints: int


@dataclass
class Chain:
    """Runs that are killed and resumed over and over, in `$LAB_RUNS`.

    Attributes:
        launcher: of their processes.
        steps: length of each run.
        reference: a run of the same settings that was never interrupted.
        findings: one for each kill.
        finished: ids of the runs that are over.
        equal: how many reached their end, and equal the reference byte for byte.
        unborn: how many were killed before their first checkpoint, and refuse to be resumed.
    """

    launcher: Launcher
    steps: int
    reference: Run
    findings: list[Finding] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    equal: int = 0
    unborn: int = 0

    def kill_at(self, moment: Moment, patience: int = 4) -> Finding:
        """Go on with the run, or begin the next one, until it is killed at the moment; then look at what is left.

        A run that ends before its moment comes is compared with the reference, and the next one has its chance.
        """
        for _ in range(patience):
            run = self._unfinished()
            if not run and not moment.is_random and moment != FIRST_SAVED:
                self.kill_at(FIRST_SAVED)  # a run that is killed before it saved cannot be resumed
                continue
            if moment.region == "rewind" and not (run and self._damage_newest(run)):
                self.kill_at(FIRST_SAVED)  # there must be two checkpoints to damage one
                continue
            life = self._go_on(run, moment)
            if life.killed and (run := self._unfinished()):
                self.findings.append(examine(run, moment, life, self.reference))
                return self.findings[-1]
        raise AssertionError(f"{moment} was not reached in {patience} lives")

    def finish(self) -> None:
        """Let the run at hand come to its end."""
        if run := self._unfinished():
            self._go_on(run, NEVER)
        assert not self._unfinished()

    def _unfinished(self) -> Run | None:
        return next((run for run in list_runs() if run.id not in self.finished), None)

    def _go_on(self, run: Run | None, moment: Moment) -> Life:
        whole = [c.step for c in run.checkpoints if not c.problem] if run else []
        if run and not whole:
            refuses_to_resume(run)
            self.finished.append(run.id)  # nothing can come of it any more
            self.unborn += 1
        start = ["--resume", run.id] if run and whole else [*SETTINGS, "--max-steps", str(self.steps)]
        life = self.launcher.live(moment, *start)
        assert "Traceback" not in life.errors, life.errors
        if life.rows:
            first = whole[-1] + 1 if whole else 1
            assert life.rows[0]["step"] == first, f"went on at step {life.rows[0]['step']} instead of {first}"
        if not life.killed and (run := self._unfinished()):
            assert run.state == "completed", f"{run.id} ended as {run.state}: {life.errors}"
            equals(run, self.reference)
            self.finished.append(run.id)
            self.equal += 1
        return life

    def _damage_newest(self, run: Run) -> bool:
        """Cut the newest checkpoint short, so that a resume has one to give up; False when it is the only one."""
        whole = [c for c in run.checkpoints if not c.problem]
        if len(whole) > 1:
            os.truncate(whole[-1].path / FILES[1], 1000)
        return len(whole) > 1


def make_reference(launcher: Launcher, folder: Path, steps: int) -> Run:
    """A run that nothing interrupts."""
    life = launcher.live(NEVER, *SETTINGS, "--max-steps", str(steps), LAB_RUNS=str(folder))
    runs = [Run(path) for path in folder.iterdir() if not path.name.startswith(".")]
    assert not life.killed and [run.state for run in runs] == ["completed"], life.errors
    return runs[0]


def examine(run: Run, moment: Moment, life: Life, reference: Run) -> Finding:
    """Check everything that a kill must leave as it was.

    Raises:
        AssertionError: something is lost, doubled, torn or wrong.
    """
    assert moment.is_random or life.inside == moment.region
    assert run.state == "interrupted", f"after a kill the run says {run.state}"
    metrics, checkpoints = run.metrics, run.checkpoints
    whole = [c for c in checkpoints if not c.problem]
    damage = [f"{c.path.name}: {c.problem}" for c in checkpoints if c.problem]
    assert moment.region == "rewind" or not damage, f"{moment}: {damage}"  # there the script itself did some
    assert run.problems == damage, f"{moment}: {run.problems}"
    for checkpoint in whole:
        load(checkpoint)
    _is_prefix(metrics[EXACT], reference.metrics[EXACT])
    _is_prefix(run.samples.drop(columns="time"), reference.samples.drop(columns="time"))
    assert len(metrics) >= max([c.step for c in whole], default=0), "a checkpoint is newer than the metrics"
    if (run.folder / "metrics.parquet").exists():
        assert pd.read_parquet(run.folder / "metrics.parquet")["step"].is_unique
    assert all(event.time and event.message for event in run.events) and run.info["id"] == run.id
    validated = set(metrics.loc[metrics["val_loss"].notna(), "step"])
    lost = [row for row in life.rows if row["step"] not in (validated if row["validated"] else set(metrics["step"]))]
    assert not [row for row in lost if row in life.rows[: life.flushed]], f"{moment}: rows on disk were lost"
    lost_s = max((life.ended_at - row["at"] for row in lost), default=0.0)
    assert lost_s <= MOST_LOST_S, f"{moment}: a row of {lost_s:.1f} s before was lost"
    return Finding(moment, run.id, len(metrics), len({row["step"] for row in lost}), lost_s, len(whole))


def _is_prefix(rows: pd.DataFrame, all_rows: pd.DataFrame) -> None:
    """The rows are the first of all rows, bit for bit; the last may still lack its validation loss."""
    expected = all_rows.head(len(rows)).reset_index(drop=True)
    if "val_loss" in rows and len(rows) and pd.isna(rows["val_loss"].iloc[-1]):
        expected.loc[expected.index[-1], "val_loss"] = None
    pd.testing.assert_frame_equal(rows.reset_index(drop=True), expected, check_exact=True)


def refuses_to_resume(run: Run) -> None:
    """A run without a whole checkpoint says so in one sentence."""
    try:
        resume_run(run.id)
    except CheckpointError as error:
        assert run.id in str(error) and "started anew" in str(error) and "\n" not in str(error)
    else:
        raise AssertionError("a run without a checkpoint was resumed")


def equals(run: Run, reference: Run) -> None:
    """A finished run has each step once, with the reference's numbers, texts and final bytes; and no litter."""
    assert list(run.metrics["step"]) == list(range(1, run.total_steps + 1))
    for mine, theirs, columns in (
        (run.metrics, reference.metrics, EXACT),
        (run.samples, reference.samples, ["step", "prompt", "text"]),
        (pd.read_parquet(run.folder / "metrics.parquet"), reference.metrics, EXACT),
    ):
        pd.testing.assert_frame_equal(mine[columns], theirs[columns], check_exact=True)
    for name in FILES:
        mine, theirs = ((r.checkpoints[-1].path / name).read_bytes() for r in (run, reference))
        assert mine == theirs, f"{name} of {run.id} differs from the uninterrupted run's"
    litter = [str(path) for path in run.folder.rglob("*") if ".part" in path.name or ".trash" in path.name]
    assert not litter and run.problems == [], litter


def table(findings: Sequence[Finding]) -> str:
    """The findings by region."""
    lines = [f"{'killed inside':<18} {'kills':>5} {'rows lost':>9} {'oldest lost':>11} {'checkpoints loaded':>18}"]
    for region in dict.fromkeys(sorted(f.moment.region for f in findings)):
        group = [f for f in findings if f.moment.region == region]
        lines.append(
            f"{region:<18} {len(group):>5} {sum(f.lost_rows for f in group):>9} "
            f"{max(f.lost_s for f in group):>9.2f} s {sum(f.checkpoints for f in group):>18}"
        )
    inside = sum(f.moment.region in SAVING for f in findings)
    return "\n".join([*lines, f"{len(findings)} kills, {inside} of them inside a checkpoint save or a segment flush"])


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Kill training runs and check what is left.")
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--steps", type=int, default=40, help="length of each run")
    parser.add_argument("--seed", type=int, default=0, help="decides moments and their order")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Launcher() as launcher:
        os.environ["LAB_RUNS"] = str(Path(name, "runs"))
        reference = make_reference(launcher, Path(name, "reference"), options.steps)
        chain = Chain(launcher, options.steps, reference)
        for number, moment in enumerate(draw_moments(options.moments, options.seed), 1):
            found = chain.kill_at(moment)
            print(
                f"{number:>3} {moment!s:<42} {found.run_id[-4:]} at step {found.step:>2}, {found.checkpoints} "
                f"checkpoints, {found.lost_rows} rows lost ({found.lost_s:.2f} s)",
                flush=True,
            )
        chain.finish()
        print(table(chain.findings))
        print(f"{chain.equal} runs came to their end, each equal to the unbroken one; {chain.unborn} died unsaved")
    return 0


if __name__ == "__main__":
    sys.exit(main())
