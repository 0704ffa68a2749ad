"""A run as it is at one moment, read once for all tabs that show it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd

from engine.checkpoint import Checkpoint
from engine.corpora.ladder import cached_ladder
from engine.diagnosis import Finding, diagnose
from engine.files import object_in
from engine.metrics import Columns
from engine.run import ACTIVE_STATES, Event, Run


@dataclass(frozen=True)
class Snapshot:
    """What a run's folder held when `signature` was taken. Columns are read when they are asked for, and not kept."""

    run: Run
    signature: tuple[Any, ...]
    info: dict[str, Any]
    state: str

    @property
    def name(self) -> str:
        """The run's name, or its id when nobody can read the name any more."""
        return str(self.info.get("name") or self.run.id)

    @property
    def is_active(self) -> bool:
        """Whether some process trains it."""
        return self.state in ACTIVE_STATES

    @property
    def is_damaged(self) -> bool:
        """Whether run.json is missing or no run's, so that nobody knows settings and state."""
        return not isinstance(self.info.get("config"), dict)

    @property
    def shown_state(self) -> str:
        """The state, or that the run is damaged, so that nobody knows it."""
        return "damaged" if self.is_damaged else self.state

    @property
    def outline(self) -> tuple[Any, ...]:
        """What stands around numbers and curves: state, name, log and samples. It changes now and then."""
        _locked, _run, _labels, events, _metrics, samples = self.signature
        return (self.state, self.name, events, samples)

    @property
    def total_steps(self) -> int:
        """Optimizer steps that were planned; 0 when run.json is damaged."""
        total = self.info.get("total_steps")
        return total if isinstance(total, int) else 0

    def columns(self, *names: str) -> Columns:
        """Some columns of the metrics."""
        return self.run.columns(*names)

    @cached_property
    def last(self) -> dict[str, Any]:
        """What the last row says of the way so far; {} before the first step."""
        rows = self.columns("step", "epoch", "tokens", "elapsed_s", "train_loss", "tokens_per_s")
        return {name: values[-1].item() for name, values in rows.items()} if len(rows["step"]) else {}

    @cached_property
    def last_val_loss(self) -> float | None:
        """The validation loss that was measured last."""
        val = self.columns("val_loss")["val_loss"]
        measured = np.flatnonzero(~np.isnan(val))
        return float(val[measured[-1]]) if len(measured) else None

    @cached_property
    def seconds_left(self) -> float | None:
        """An estimate: the steps to come at the pace of the last fifty, evaluation and saving included."""
        if not self.is_active:
            return None
        steps, seconds = (values[-50:] for values in self.columns("step", "elapsed_s").values())
        if len(steps) < 2:
            return None
        pace = (seconds[-1] - seconds[0]) / (steps[-1] - steps[0])
        return float(pace) * (self.total_steps - int(steps[-1]))

    @cached_property
    def samples(self) -> pd.DataFrame:
        """Generated texts, oldest first."""
        return self.run.samples

    @cached_property
    def events(self) -> list[Event]:
        """The run's log, oldest first."""
        return self.run.events

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """By step, oldest first."""
        return self.run.checkpoints

    @cached_property
    def rungs(self) -> tuple[tuple[str, float], ...]:
        """The loss ladder of the texts that the run uses; () while it is not measured."""
        config = self.info.get("config")
        fraction = config.get("val_fraction") if isinstance(config, dict) else None
        if not isinstance(fraction, float):
            return ()
        ladder = cached_ladder(self.info.get("corpus_sha256", ""), self.info.get("val_corpus_sha256"), fraction)
        return tuple((rung.name, rung.loss) for rung in ladder.rungs) if ladder else ()

    @cached_property
    def peak_memory(self) -> float | None:
        """The most memory that was measured, GiB."""
        measured = self.columns("memory_gib")["memory_gib"]
        return None if np.isnan(measured).all() else float(np.nanmax(measured))

    @property
    def memory_estimate(self) -> float | None:
        """What was estimated before the start, GiB."""
        estimate = self.info.get("memory_estimate_gib")
        return estimate if isinstance(estimate, float) else None

    @cached_property
    def findings(self) -> list[Finding]:
        """What the engine reads in the curves."""
        config = object_in(self.info, "config")
        found = diagnose(
            self.columns("step", "train_loss", "val_loss", "grad_norm", "tokens_per_s"),
            config,
            ladder=self.rungs,
            total_steps=self.total_steps,
            diverged=bool(self.info.get("diverged")),
            device=str(config.get("device", "cpu")),
        )
        return [finding for finding in found if finding.kind != "well" or self.state != "failed"]  # its curves may be

    @property
    def resume_step(self) -> int | None:
        """Where a resume would go on: the newest whole checkpoint; None when there is none or no need."""
        if self.is_active or self.state == "completed" or self.info.get("diverged"):
            return None
        return max((c.step for c in self.checkpoints if not c.problem), default=None)

    @cached_property
    def problems(self) -> list[str]:
        """A sentence for each damaged file that readers skip."""
        return self.run.problems


def snapshot(run: Run) -> Snapshot:
    """The run now; the same object as before when nothing has changed."""
    return read(run.folder, run.signature)


KEPT = 16  # runs whose newest state is remembered; a live run's older ones are of no use to anybody
_kept: OrderedDict[Path, Snapshot] = OrderedDict()
_lock = Lock()


def read(folder: Path, signature: tuple[Any, ...]) -> Snapshot:
    """The run as it was when it had this signature, as long as it is remembered; else as it is now."""
    with _lock:
        kept = _kept.get(folder)
        if kept and kept.signature == signature:
            _kept.move_to_end(folder)
            return kept
    run = Run(folder)
    info = run.info
    shot = Snapshot(run, signature, info, run.state_of(info))
    with _lock:
        _kept[folder] = shot
        _kept.move_to_end(folder)
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    return shot
