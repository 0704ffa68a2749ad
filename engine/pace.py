"""How long a run will take, told before it starts: from earlier runs on this device, or from a few measured steps."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from engine.config import TrainConfig, label
from engine.environment import give_back_memory, memory_bounded
from engine.errors import RunBusyError, is_out_of_memory
from engine.files import object_in
from engine.heap import freed_memory_kept
from engine.plan import Plan
from engine.run import Run, device_lock

# Settings that decide how fast a step is. A run that differs in others has the same pace.
_DECISIVE = (
    "config",
    "context_length",
    "batch_size",
    "precision",
    "attention_impl",
    "gradient_checkpointing",
    "compile",
    "optimizer",
    "tie_embeddings",
    "device",
    "threads",
)
_MUST_AGREE = ("config", "precision", "device")  # without these a run's pace says nothing of another's
_ENOUGH_S, _ENOUGH_STEPS = 2.0, 10  # of training; shorter runs are mostly their first steps, and validation


@dataclass(frozen=True)
class Pace:
    """An estimate of a run's speed.

    Attributes:
        tokens_per_s: over a whole run, validation, samples and saving included, or of training steps alone.
        basis: where it comes from, in a few words.
        whole: whether validation, samples and saving are in it.
    """

    tokens_per_s: float
    basis: str
    whole: bool

    def seconds(self, plan: Plan) -> float:
        """How long the plan takes at this pace."""
        return plan.tokens / self.tokens_per_s


def pace_of_earlier_runs(config: TrainConfig, runs: Iterable[Run], device_name: str) -> Pace | None:
    """The pace of the most similar run on the same device, the newest of equals; None when there is none.

    Args:
        config: resolved settings.
        runs: newest first.
        device_name: of `engine.environment.this_machine`.
    """
    best: tuple[int, Pace] | None = None
    for run in runs:
        info = run.info
        if _device_of(info) != device_name or not isinstance(info.get("config"), dict):
            continue
        rate = _rate(info)
        differing = [name for name in _DECISIVE if info["config"].get(name) != getattr(config, name)]
        if rate is None or any(name in differing for name in _MUST_AGREE):
            continue
        if best is None or len(differing) < best[0]:
            other = f", which had another {', '.join(label(n).lower() for n in differing)}" if differing else ""
            best = len(differing), Pace(rate, f"the pace of run {info.get('name') or run.id}{other}", whole=True)
        if not differing:
            break
    return best[1] if best else None


def _device_of(info: dict[str, Any]) -> Any:
    return object_in(object_in(info, "environment"), "machine").get("device_name")


def _rate(info: dict[str, Any]) -> float | None:
    """Tokens per second of a run's whole training time; a branch counts from where it began."""
    progress = info.get("progress")
    if not isinstance(progress, dict):
        return None
    tokens, seconds, steps = (progress.get(name) for name in ("tokens", "elapsed_s", "step"))
    if info.get("world_size", 1) != 1:  # several processes are faster than the one that is asked about
        return None
    if info.get("parent") or not isinstance(tokens, int) or not isinstance(seconds, float):
        return None
    enough = seconds >= _ENOUGH_S and isinstance(steps, int) and steps >= _ENOUGH_STEPS
    return tokens / seconds if enough and tokens else None


def measure_pace(plan: Plan, seconds: float = 4.0) -> Pace:
    """Train a throw-away model for a few seconds and time its steps. Nothing is written.

    Args:
        plan: of the run; its text is used.
        seconds: at least two steps are timed, after one that is not, however long they take.

    Raises:
        RunBusyError: a run is training on the device; both would be slow.
        OutOfMemoryError: it says what would fit.
        ConfigError, LabError: as a run with these settings would.
    """
    from engine.train import let_go, out_of_memory

    lock = device_lock(plan.config.device)
    if not lock.acquire(note="", patience_s=0.3):
        run_id = lock.note()
        raise RunBusyError("A run is training on this device now. Measure when it is done.", run_id)
    try:
        with memory_bounded(plan.config.device), freed_memory_kept(plan.config):
            done, took = _time_steps(plan, seconds)
    except (MemoryError, RuntimeError) as error:
        let_go(error)
        if is_out_of_memory(error):
            raise out_of_memory(plan) from None
        raise
    finally:
        give_back_memory()
        lock.release()
    rate = done * plan.tokens_per_step / took
    return Pace(rate, f"{done} measured steps, validation and samples left out", whole=False)


def _time_steps(plan: Plan, seconds: float) -> tuple[int, float]:
    """How many steps were timed, and the seconds they took."""
    from engine import step
    from engine.start import open_text

    forever = dataclasses.replace(plan, total_steps=max(plan.total_steps, 1_000_000))
    state = step.build(forever, open_text(plan.config))
    list(step.train_step(state, wait=True))  # the first step loads and tunes kernels
    began, done = time.perf_counter(), 0
    while done < 2 or time.perf_counter() - began < seconds:
        list(step.train_step(state, wait=done < 2))
        done += 1
    list(step.finished_rows(state))
    return done, time.perf_counter() - began
