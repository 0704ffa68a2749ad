"""What ranks other than 0 do: build the same state as rank 0, then do their part of whatever it orders."""

from __future__ import annotations

import dataclasses
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.checkpoint import find_checkpoint
from engine.config import from_dict
from engine.distributed import Team
from engine.environment import resolve_device
from engine.errors import DivergedError, LabError, RunError, is_out_of_memory
from engine.heap import keep_freed_memory
from engine.plan import Plan
from engine.run import ActiveRun
from engine.start import open_text
from engine.step import TrainState, start_state, train_step, try_to_compile
from engine.train import out_of_memory


def begin(team: Team, run: ActiveRun) -> None:
    """Rank 0 tells the others which run it is about to train, and from where."""
    if team.leader:
        team.order(
            "begin",
            plan=dataclasses.asdict(run.plan),
            checkpoint=str(run.start_from.path) if run.start_from else None,
            same_text=run.keeps_text,
            same_optimizer=run.keeps_optimizer,
            facts=open_text(run.config).facts,
        )


def follow(team: Team) -> None:
    """Train along until rank 0 says that it is over. A failure is told to rank 0, and ends this process."""
    assert team.follower
    follower = team.follower
    state = None
    try:
        while (order := follower.next_order())["what"] != "end":
            if order["what"] == "begin":
                state = _join(team, order)
            elif state is not None:
                _obey(state, order["what"])
    except BaseException as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            time.sleep(5)  # a rank that is gone breaks connections everywhere: rank 0 knows which, and ends this one
        follower.tell("failed", sentence=_sentence(error, state))
        os._exit(1)


def _join(team: Team, order: dict[str, Any]) -> TrainState:
    """Build what rank 0 builds, on this rank's device."""
    values = order["plan"]
    config = from_dict(values["config"])
    config = dataclasses.replace(config, device=team.world.device_of(team.world.local_rank, config.device))
    resolve_device(config.device, config.precision)
    keep_freed_memory(config)
    plan = Plan(**{**values, "config": config})
    text = open_text(config)
    if text.facts != order["facts"]:
        raise RunError(f"The text of {config.corpus} in its corpora folder is not that of rank 0.")
    checkpoint = None
    if order["checkpoint"]:
        path = Path(order["checkpoint"])
        checkpoint = find_checkpoint(path.parent.parent, int(path.name.removeprefix("step-")))
    return start_state(
        plan, checkpoint, same_text=order["same_text"], same_optimizer=order["same_optimizer"], text=text, team=team
    )


def _obey(state: TrainState, what: str) -> None:
    if what == "step":
        with suppress(DivergedError):  # all ranks see it, and rank 0 says it
            for _ in train_step(state):
                pass
    elif what == "compile":
        state.team.gather(try_to_compile(state))
    elif what == "save":
        state.team.random_states(state.device)


def _sentence(error: BaseException, state: TrainState | None) -> str:
    if isinstance(error, LabError):
        return str(error)
    if is_out_of_memory(error) and state is not None:
        return str(out_of_memory(state.plan))
    return f"{type(error).__name__}: {error}"
