"""The one training loop.

Three drivers call it and nothing else trains: the command line (`python -m engine.train …`), the app's session, and a
person's own Python. What the loop writes into the run's folder is all that anyone sees of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import traceback
from typing import TYPE_CHECKING, Any

from engine.checkpoint import prune, save
from engine.config import TrainConfig, to_dict
from engine.control import Control
from engine.environment import GIB, give_back_memory, has_bf16, memory_bounded, memory_within_reach
from engine.errors import (
    DivergedError,
    LabError,
    OutOfMemoryError,
    TrainingError,
    is_out_of_memory,
    storage_sentence,
)
from engine.fit import what_would_fit
from engine.heap import freed_memory_kept
from engine.memory import estimate_memory
from engine.plan import Plan
from engine.run import ActiveRun, Run
from engine.start import new_run

if TYPE_CHECKING:
    from engine.distributed import Team
    from engine.step import TrainState


def train(
    config: TrainConfig, run: ActiveRun | None = None, control: Control | None = None, team: Team | None = None
) -> Run:
    """Train until the run is complete, or `control` stops it.

    Args:
        config: the settings.
        run: from `engine.start`: a new run, one to resume, or a branch; None makes a new one from `config`.
        control: how others steer it.
        team: the processes that train it together, of which this is rank 0; None trains in this process alone.

    Returns:
        The run as a reader sees it: metrics, samples, checkpoints.

    Raises:
        ConfigError, RunError: it could not start; nothing was changed.
        LabError: it failed on the way; the run's state says so too.
    """
    run = run or new_run(config)
    control = control or Control()
    try:
        with memory_bounded(run.config.device), freed_memory_kept(run.config):
            _train(run, control, team)
    except BaseException as error:
        lost = team.lost_behind(error) if team else ""
        failure = _rank_lost(run, lost) if lost else explain(error, run)
        _record_failure(run, failure)
        if not lost:  # a GPU that waits for a lost rank would never let go; the process ends anyway
            let_go(error)
        raise failure from error.__cause__ if failure is error else error
    finally:
        run.close()
        give_back_memory()
    return run.reader


def _train(run: ActiveRun, control: Control, team: Team | None) -> None:
    from engine.distributed import SOLO
    from engine.evaluate import evaluate
    from engine.follow import begin
    from engine.step import prepare, train_step, wants_compilation

    team = team or SOLO
    team.when_stuck(lambda sentence: _record_failure(run, _rank_lost(run, sentence)))
    begin(team, run)
    state = prepare(run, team)
    run.rewind()
    _begin(run, state)
    while state.step < state.plan.total_steps:
        _serve_requests(run, state, control)
        if control.stopping:
            break
        if wants_compilation(state):
            _compile(run, state)
        due = _due(state.config, state.step + 1, state.plan.total_steps)
        team.order("step")
        for row in train_step(state, wait=bool(due)):
            _log(run, state, row)
        if "evaluate" in due:
            run.flush()  # a long evaluation must not hold back what was measured before it
            run.log(row | {"val_loss": evaluate(state)})
        if "sample" in due:
            _sample(run, state)
        if "save" in due:
            _save(run, state)
        if due:
            state.watch.other_work_done()
    _end(run, state)
    state.model.compiled = None  # it refers to the model, and such a circle keeps the weights on the GPU for a while


def _begin(run: ActiveRun, state: TrainState) -> None:
    from engine.arithmetic import rounds_otherwise
    from engine.optimizer import fallback_note

    config = state.config
    if run.is_branch:
        assert run.start_from
        run.event("started", f"Branched from {run.start_from.run_id} at step {state.step:,}.")
        if not run.keeps_optimizer:
            run.event("warning", f"The optimizer changed to {config.optimizer}; its state starts afresh.")
    elif run.start_from:
        run.event("resumed", f"Resumed at step {state.step:,}.")
    else:
        together = f" by {state.plan.world_size} processes" if state.plan.world_size > 1 else ""
        run.event("started", f"Started on {config.device} in {config.precision}{together}.")
    changed = rounds_otherwise(run.start_from.arithmetic, state.arithmetic) if run.start_from else ""
    for note in (changed, fallback_note(config.optimizer, state.device.type), *state.lacking):
        if note:
            run.event("warning", note)
    run.note(parameters=sum(p.numel() for p in state.model.parameters()), arithmetic=state.arithmetic)
    run.set_state("running")


def _compile(run: ActiveRun, state: TrainState) -> None:
    """Compile the model in all processes, and say so; where that fails the run goes on without."""
    from engine.arithmetic import BLOCKS, NOT_COMPILED, of_rank
    from engine.step import try_to_compile

    _settle(run, state)
    run.flush()
    run.event("compiling", "Compiling the model for this GPU, which takes 10 to 40 seconds …")
    state.team.order("compile")
    for rank, problem in enumerate(state.team.gather(try_to_compile(state))):
        if problem:
            run.event(
                "warning",
                f"Compilation failed{f' on rank {rank}' if rank else ''}, so training goes on without, and its numbers "
                f"are those of a compiled run up to rounding: {problem}",
            )
            state.arithmetic[of_rank(BLOCKS, rank)] = NOT_COMPILED
    run.note(arithmetic=state.arithmetic)
    if state.model.compiled is None:  # it is not to be tried again
        state.plan = dataclasses.replace(state.plan, config=dataclasses.replace(state.config, compile="off"))
    state.watch.other_work_done()


def _due(config: TrainConfig, step: int, total_steps: int) -> set[str]:
    """What is to be done after a step: evaluate, sample, save. The last step is saved by `_end`."""
    every = {"evaluate": config.eval_every, "sample": config.sample_every, "save": config.save_every}
    due = {what for what, n in every.items() if n > 0 and step % n == 0}
    return (due | {"evaluate", "sample"}) - {"save"} if step == total_steps else due


def _serve_requests(run: ActiveRun, state: TrainState, control: Control) -> None:
    """Between two steps: save when asked, and wait while paused."""
    control.apply(run.take_request())
    control.apply(state.team.request)
    if control.take_save_request():
        _settle(run, state)
        _save(run, state)
        state.watch.other_work_done()
    if not control.paused:
        return
    _settle(run, state)
    run.flush()
    run.event("paused", f"Paused after step {state.step:,}.")
    run.set_state("paused")

    def while_waiting() -> None:
        control.apply(run.take_request())
        control.apply(state.team.request)
        if control.take_save_request():
            _save(run, state)

    control.wait_while_paused(while_waiting)
    state.watch.skip()
    if not control.stopping:
        run.event("unpaused", f"Went on after step {state.step:,}.")
        run.set_state("running")


def _log(run: ActiveRun, state: TrainState, row: dict[str, Any]) -> None:
    """Log a step, and say so when fp16 had to leave its update out."""
    run.log(row)
    if state.scaler.is_enabled() and not math.isfinite(row["grad_norm"]):
        message = "fp16 gradients overflowed, so this step's update was left out and their scale halved."
        run.event("warning", message, row["step"])


def _settle(run: ActiveRun, state: TrainState) -> None:
    """Wait for the steps that are under way and log them."""
    from engine.step import finished_rows

    for row in finished_rows(state):
        _log(run, state, row)


def _sample(run: ActiveRun, state: TrainState) -> None:
    """Generate a text from the run's prompt and log it; the seed is the same at every step, for a fair comparison."""
    from engine.generate import stream_text

    config = state.config
    if config.sample_length == 0:
        return
    run.flush()  # as before an evaluation
    how: dict[str, Any] = {"temperature": config.sample_temperature, "top_k": config.sample_top_k, "seed": config.seed}
    state.model.eval()
    with state.autocast():
        text = "".join(stream_text(state.model, config.sample_prompt, config.sample_length, **how))
    state.model.train()
    run.log_sample({"step": state.step, "prompt": config.sample_prompt, "text": text, **how})


def _save(run: ActiveRun, state: TrainState) -> None:
    from engine.step import snapshot

    run.flush()
    run.event("saving", f"Saving a checkpoint at step {state.step:,} …")
    state.team.order("save")
    contents = snapshot(state)
    with state.team.writing:
        checkpoint = save(run.folder, contents, run.progress, to_dict(run.config), state.arithmetic)
        prune(run.folder, run.config.keep_checkpoints)
        run.event("saved", f"Saved a checkpoint at step {state.step:,} ({checkpoint.bytes / 2**20:,.0f} MiB).")


def _end(run: ActiveRun, state: TrainState) -> None:
    _settle(run, state)
    _save(run, state)
    run.finish()
    outcome = "completed" if state.step >= state.plan.total_steps else "stopped"
    run.event(outcome, f"{outcome.capitalize()} at step {state.step:,}.")
    run.set_state(outcome)


def explain(error: BaseException, run: ActiveRun) -> LabError:
    """The sentence for whatever ended a training: disk, memory, or a defect of the lab."""
    if isinstance(error, LabError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return TrainingError(f"{storage_sentence(error, run.folder)} {_way_on(run)}")
    if is_out_of_memory(error):
        return out_of_memory(run.plan, besides=_held_besides(run))
    if isinstance(error, KeyboardInterrupt):
        return TrainingError(f"Training was cut short. {_way_on(run)}")
    return TrainingError(f"Training ended by a defect of the lab: {type(error).__name__}: {error}")


def _rank_lost(run: ActiveRun, sentence: str) -> LabError:
    return TrainingError(f"{sentence} {_way_on(run)}")


def _way_on(run: ActiveRun) -> str:
    if any(not checkpoint.problem for checkpoint in run.reader.checkpoints):
        return "The run can be resumed from its last checkpoint."
    return "The run had no checkpoint yet, so it has to be started anew."


def _held_besides(run: ActiveRun) -> float:
    """Bytes that the process had held before the run, beyond those that the estimate takes for a process's own."""
    if run.config.device != "cpu":
        return 0
    alone = estimate_memory(run.config, "cpu", processes=run.plan.world_size).total
    return max(0, float(run.reader.info["memory_estimate_gib"]) * GIB - alone)


def out_of_memory(plan: Plan, *, besides: float = 0) -> OutOfMemoryError:
    """What would fit into the memory that this run could have had, by the estimate.

    Args:
        besides: bytes that the process needs for other things.
    """
    config, device = plan.config, plan.config.device
    needed = estimate_memory(config, device, processes=plan.world_size).total
    room = min(memory_within_reach(device) - besides, 0.9 * needed)  # it ran out, whatever the estimate had said
    changes = what_would_fit(config, device, room, has_bf16=has_bf16(device), processes=plan.world_size)
    message = (
        f"Memory ran out on {device}. By the estimate these would fit: {'; '.join(map(str, changes))}."
        if changes
        else f"Memory ran out on {device}, and by the estimate no change of settings helps: close other programs that "
        "hold memory."
    )
    return OutOfMemoryError(message, [dataclasses.asdict(change) for change in changes])


def let_go(error: BaseException) -> None:
    """Free what the failed training held. Its frames, which the error refers to, would keep model and activations
    until Python looks for cycles, and the next run on a GPU would find its memory taken."""
    import torch

    traceback.clear_frames(error.__traceback__)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _record_failure(run: ActiveRun, error: LabError) -> None:
    """Write down as much as disk and memory allow; where they allow nothing, readers will say `interrupted`."""
    for write in (
        run.finish,
        lambda: run.note(
            diverged=isinstance(error, DivergedError),
            would_fit=error.would_fit if isinstance(error, OutOfMemoryError) else [],
        ),
        lambda: run.event("failed", str(error)),
        lambda: run.set_state("failed", str(error)),
    ):
        with contextlib.suppress(OSError, MemoryError):
            write()


if __name__ == "__main__":
    import sys

    from engine.cli.train import main

    sys.exit(main())
