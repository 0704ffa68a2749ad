"""`python -m engine.train`: train, resume or branch a run from a terminal."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.cli.common import DONE, FAILED, add_setting_flags, duration, given_settings, run_and_step, run_command
from engine.cli.progress import Bars
from engine.config import TrainConfig, flag
from engine.control import Control
from engine.corpora.progress import Progress
from engine.environment import default_threads
from engine.errors import ConfigError, CorpusError, DivergedError, LabError, Problem
from engine.plan import cautions
from engine.run import ActiveRun, Event, Run
from engine.start import branch_run, new_run, read_settings, resume_run, tokenize
from engine.world import ALONE, World, this_world

if TYPE_CHECKING:
    from engine.distributed import Team

EXAMPLES = """examples:
  python -m engine.train --config nano --corpus verdict --epochs 3
  python -m engine.train --resume 20261122-153012-nano-verdict-7f3a
  python -m engine.train --branch 20261122-153012-nano-verdict-7f3a@400 --learning-rate 0.0005 --epochs 6
  torchrun --standalone --nproc-per-node 2 -m engine.train --config medium --corpus tinystories    # docs/distributed.md

Ctrl-C stops after the step at hand and saves; pressed again, it stops at once.
exit codes: 0 completed or stopped, 1 failed, 2 wrong settings or usage"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.train",
        description="Train a small GPT from scratch.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--resume", metavar="RUN", help="continue a run exactly where its newest checkpoint is")
    parser.add_argument(
        "--branch", metavar="RUN[@STEP]", help="start a new run from a checkpoint, with changed settings"
    )
    parser.add_argument("--name", default="", help="a name for the run, for people")
    parser.add_argument("--notes", default="", help="notes, for people")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line instead of a progress bar")
    add_setting_flags(parser)
    world = this_world()
    options = _parse(parser, arguments, world)
    return run_command(lambda: _main(options) if world.size == 1 else _main_together(options, world))


def _parse(parser: argparse.ArgumentParser, arguments: list[str] | None, world: World) -> argparse.Namespace:
    """Read the command line; of several processes only rank 0 says what is wrong with it."""
    if world.leads:
        return parser.parse_args(arguments)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        return parser.parse_args(arguments)


def _main_together(options: argparse.Namespace, world: World) -> int:
    """What one of several processes does: rank 0 what a single one would, the others what it orders."""
    if not world.leads:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from engine.distributed import connect
    from engine.follow import follow

    try:
        team = connect(world)
    except LabError:
        if world.leads:
            raise
        return FAILED
    if not world.leads:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: team.ask_to_stop())
        follow(team)
        team.close(in_order=True)
        return DONE
    try:
        code = _main(options, team)
    except LabError:  # it never began
        team.close(in_order=True)
        raise
    team.close(in_order=code == DONE)
    if code != DONE:
        sys.stdout.flush()
        os._exit(code)  # what is left of the connections to lost ranks may never let go
    return code


def _main(options: argparse.Namespace, team: Team | None = None) -> int:
    run = _open(options, team.world if team else ALONE)
    control = Control()
    report = _JsonReport(run) if options.json else _TextReport(run)
    report.begin()
    with _signals(control, report):
        with _following(run.reader, report):
            outcome = _train(run, control, team)
            report.over = True
        report.end(outcome)  # torchrun's SIGTERM, which follows on the death of another rank, must not silence it
        with suppress(BrokenPipeError):
            sys.stdout.flush()
    return FAILED if outcome else DONE


def _open(options: argparse.Namespace, world: World) -> ActiveRun:
    """The run that the command line asks for."""
    settings = given_settings(options)
    if options.resume is not None and options.branch is not None:
        raise ConfigError([Problem("--resume", "it cannot be combined with --branch.")])
    if options.resume is not None:  # an empty text, as of an unset shell variable, is a wrong id and no new run
        given = [*settings, *(name for name in ("name", "notes") if getattr(options, name))]
        if given:
            names = ", ".join(flag(name) for name in given)
            message = (
                f"a run is resumed with its own settings, so {names} cannot be given. Use --branch to change them."
            )
            raise ConfigError([Problem("--resume", message)])
        return resume_run(options.resume, world)
    if options.branch is not None:
        run_id, step = run_and_step(options.branch)
        return branch_run(run_id, step, settings, name=options.name, notes=options.notes, world=world)
    config = read_settings(settings)
    _tokenize(config)
    return new_run(config, name=options.name, notes=options.notes, world=world)


def _tokenize(config: TrainConfig) -> None:
    """Make missing token caches under a progress bar; what is wrong with a corpus is told with all other problems."""
    bars = Bars()
    try:
        tokenize(config, Progress(bars.tell))
    except CorpusError:
        pass
    finally:
        bars.close()


def _train(run: ActiveRun, control: Control, team: Team | None) -> LabError | None:
    from engine.train import train

    try:
        train(run.config, run, control, team)
    except LabError as error:
        return error
    return None


@contextmanager
def _signals(control: Control, report: _Report) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks the run to stop and save; a second SIGINT ends it at once.

    After training, when the outcome is about to be told, the first of them does nothing.
    """
    too_late = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal too_late
        too_late += report.over
        if number == signal.SIGINT and (too_late > 1 if report.over else control.stopping):
            raise KeyboardInterrupt
        if not report.over:
            control.apply("stop")
            report.stopping()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _following(run: Run, report: _Report) -> Iterator[None]:
    """Tell the report what the run's folder says, twice a second, from a thread of its own."""
    done = threading.Event()

    def follow() -> None:
        signature: Any = None
        while not done.wait(0.5):
            if run.signature != signature:
                signature = run.signature
                with suppress(OSError):  # nobody reads the output, or its disk is full: the training goes on
                    report.update()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with suppress(BrokenPipeError):
            report.update()


class _Report:
    """Shows a run on the terminal; everything it shows is read from the run's folder."""

    def __init__(self, run: ActiveRun) -> None:
        self.run = run.reader
        self.config = run.config
        self.total_steps = run.plan.total_steps
        self.first_step = run.start_from.step if run.start_from else 0
        self.plan = run.plan
        self.over = False  # training has ended, one way or another
        self._events = len(self.run.events)

    def begin(self) -> None: ...
    def update(self) -> None: ...
    def stopping(self) -> None: ...
    def end(self, error: LabError | None) -> None: ...

    def new_events(self) -> list[Event]:
        """What was added to the run's log since the last call."""
        events = self.run.events
        fresh, self._events = events[self._events :], len(events)
        return fresh


class _TextReport(_Report):
    def begin(self) -> None:
        from tqdm import tqdm

        config, processes = self.config, self.plan.world_size
        together = f", by {processes} processes" if processes > 1 else ""
        print(f"Run {self.run.id}")
        print(
            f"{config.config}, context {config.context_length:,}, on {config.corpus} "
            f"({self.plan.train_tokens:,} tokens for training, {self.plan.val_tokens:,} for validation)"
        )
        print(
            f"{self.total_steps:,} steps of {self.plan.sequences_per_step} × {config.context_length:,} = "
            f"{self.plan.tokens_per_step:,} tokens; {config.optimizer}, learning rate {config.learning_rate:g}, "
            f"{config.precision} on {config.device}{together}",
            flush=True,
        )
        for caution in cautions(self.plan, default_threads()):
            print(f"{flag(caution.field)}: {caution.message}", file=sys.stderr)
        self.bar = tqdm(
            total=self.total_steps,
            initial=self.first_step,
            unit="step",
            dynamic_ncols=True,
            bar_format="{n_fmt}/{total_fmt} |{bar}| {postfix} {elapsed} elapsed, {remaining} left",
            disable=None if sys.stderr.isatty() else False,
            mininterval=0.3 if sys.stderr.isatty() else 10,
        )

    def update(self) -> None:
        if self.run.state == "preparing":  # a resumed run's rows after its checkpoint are about to be forgotten
            return
        rows = self.run.columns("step", "train_loss", "val_loss", "tokens_per_s")
        if len(rows["step"]):
            loss, pace = rows["train_loss"][-1], rows["tokens_per_s"][-1]
            measured = rows["val_loss"][np.isfinite(rows["val_loss"])]
            validation = f", val {measured[-1]:.3f}" if len(measured) else ""
            self.bar.set_postfix_str(f"loss {loss:.3f}{validation}, {pace:,.0f} tokens/s,", refresh=False)
            self.bar.update(int(rows["step"][-1]) - self.bar.n)
        for event in self.new_events():
            if event.kind in ("warning", "saved", "paused", "unpaused"):
                self.bar.write(event.message, file=sys.stderr)

    def stopping(self) -> None:
        self.bar.write("Stopping after this step, and saving … (Ctrl-C again stops at once)", file=sys.stderr)

    def end(self, error: LabError | None) -> None:
        self.bar.close()
        run, metrics = self.run, self.run.metrics
        if error:
            print(f"Failed: {error}", file=sys.stderr)
        if len(metrics):
            last, measured = metrics.iloc[-1], metrics["val_loss"].dropna()
            words = f"Training loss {last.train_loss:.3f}"
            words += f", validation loss {measured.iloc[-1]:.3f}" if len(measured) else ""
            print(f"{words} after {last.step:,.0f} steps and {duration(last.elapsed_s)} of training.")
        if (
            run.state in ("stopped", "failed")
            and not isinstance(error, DivergedError)
            and any(not c.problem for c in run.checkpoints)
        ):
            print(f"To resume: python -m engine.train --resume {run.id}")
        elif run.state == "completed":
            print(f'To hear it talk: python -m engine.generate {run.id} --prompt "{self.config.sample_prompt}"')


class _JsonReport(_Report):
    def __init__(self, run: ActiveRun) -> None:
        super().__init__(run)
        self._step = self._validated = self.first_step

    def _print(self, kind: str, **values: Any) -> None:
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        print(json.dumps({"kind": kind, **clean}), flush=True)

    def begin(self) -> None:
        self._print("run", id=self.run.id, total_steps=self.total_steps, config=self.run.info["config"])

    def update(self) -> None:
        if self.run.state == "preparing":  # as in the text report
            return
        metrics = self.run.metrics_from(self._step)  # of the last one told the validation may have come since
        for row in metrics[metrics["step"] > self._step].drop(columns="time").to_dict("records"):
            self._print("step", **row)
            self._step = row["step"]
        measured = metrics[metrics["val_loss"].notna() & (metrics["step"] > self._validated)]
        for row in measured[["step", "val_loss"]].to_dict("records"):
            self._print("validation", **row)  # a line of its own: it comes after its step's
            self._validated = row["step"]
        for event in self.new_events():
            self._print("event", event=event.kind, step=event.step, message=event.message)

    def end(self, error: LabError | None) -> None:
        progress = self.run.info.get("progress", {})
        self._print("end", id=self.run.id, state=self.run.state, error=str(error) if error else "", **progress)
