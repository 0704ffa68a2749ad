"""The one background thread of this process that trains.

Run state lives here and on disk, never in a browser session: any number of pages show the same run, and any of them can
steer it. The module is a singleton; import it, don't copy it.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine import environment
from engine.config import TrainConfig
from engine.control import Control
from engine.errors import LabError, RunBusyError
from engine.run import ActiveRun, Run, load_run
from engine.start import branch_run, new_run, resume_run
from engine.train import train

SWITCH_S = 0.0005  # for which another thread may keep training from Python's lock: it asks for it after each operation

_lock = threading.Lock()
_thread: threading.Thread | None = None
_control = Control()
_run_id = ""


def start(config: TrainConfig, *, name: str = "", notes: str = "", facts: Mapping[str, Any] | None = None) -> str:
    """Start a new run in the background and return its id.

    Args:
        facts: more that its run.json is to say, such as which exercise it belongs to.

    Raises:
        ConfigError: all problems of the settings together.
        RunBusyError: another run is being trained, here or in another process; it names the run.
        RunError: `runs/` cannot be written.
    """
    return _launch(lambda: new_run(config, name=name, notes=notes, facts=facts))


def start_series(runs: Sequence[tuple[TrainConfig, str, Mapping[str, Any]]]) -> str:
    """Start several runs one after the other; returns the id of the first.

    A run that is stopped or fails ends the series.

    Args:
        runs: config, name and facts of each, as for `start`.

    Raises:
        As `start`, for the first of them.
    """
    (config, name, facts), *later = runs
    first = start(config, name=name, facts=facts)
    threading.Thread(target=_go_on, args=(first, later), name="series", daemon=True).start()
    return first


def _go_on(run_id: str, later: Sequence[tuple[TrainConfig, str, Mapping[str, Any]]]) -> None:
    for config, name, facts in later:
        wait()
        try:
            if load_run(run_id).state != "completed":
                return
            run_id = start(config, name=name, facts=facts)
        except LabError:  # somebody else took the device, or deleted the run: the page offers what is missing
            return


def resume(run_id: str) -> str:
    """Continue a run in the background from its newest checkpoint. Raises like `engine.start.resume_run`."""
    return _launch(lambda: resume_run(run_id))


def branch(run_id: str, step: int | None, changes: dict[str, Any], *, name: str = "") -> str:
    """Start a branch in the background and return its id. Raises like `engine.start.branch_run`."""
    return _launch(lambda: branch_run(run_id, step, changes, name=name))


def _launch(prepare: Callable[[], ActiveRun]) -> str:
    global _thread, _control, _run_id
    with _lock:
        if _thread is not None and _thread.is_alive():
            raise RunBusyError(f"Run {_run_id} is training now. Stop it first, or wait until it is done.", _run_id)
        run = prepare()
        _control, _run_id = Control(), run.id
        _thread = threading.Thread(target=_train, args=(run, _control), name=f"train {run.id}", daemon=True)
        _thread.start()
        return run.id


def _train(run: ActiveRun, control: Control) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        with contextlib.suppress(LabError):  # the run's state and log say it; there is nobody else here to tell
            train(run.config, run, control)
    finally:
        sys.setswitchinterval(before)


def active_run() -> Run | None:
    """The run that this process trains now, or None."""
    return load_run(_run_id) if _thread is not None and _thread.is_alive() else None


def held_memory() -> int:
    """Bytes that this process holds, on which a run here comes on top; 0, for not known, while it trains one."""
    return 0 if _thread is not None and _thread.is_alive() else environment.held_bytes()


def request(run_id: str, what: str) -> None:
    """`pause`, `resume`, `save` or `stop` a run, whichever process trains it.

    Raises:
        RunError: nobody is training it.
    """
    if _thread is not None and _thread.is_alive() and run_id == _run_id:
        _control.apply(what)
    else:
        load_run(run_id).request(what)


def wait(timeout_s: float | None = None) -> bool:
    """Wait until nothing trains here any more; False when the time is up first."""
    if _thread is not None:
        _thread.join(timeout_s)
        return not _thread.is_alive()
    return True


def warm_up() -> None:
    """Load torch in the background, so that the first start does not wait for it. Returns at once."""
    threading.Thread(target=_load, name="warm-up", daemon=True).start()


def _load() -> None:
    import torch

    from engine import step, tokenizer  # noqa: F401
    from engine.optimizer import build_optimizer

    environment.this_machine()
    tokenizer.encoding()
    # The first optimizer loads much more. A norm has weights that are not drawn: a run may be training already.
    build_optimizer(torch.nn.LayerNorm(1), "adamw", learning_rate=0.0, weight_decay=0.0)


def stop_and_wait() -> None:
    """Stop and save what is trained here, for a minute at most: daemon threads would otherwise die in mid-step."""
    if _thread is not None and _thread.is_alive():
        _control.apply("stop")
        _thread.join(timeout=60)


atexit.register(stop_and_wait)
