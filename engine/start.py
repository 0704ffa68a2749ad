"""From settings, a run or a checkpoint to an `ActiveRun` that is locked and ready for `engine.train.train`.

Everything that can be wrong with a request is found here, before any model is built.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

from engine import environment
from engine.checkpoint import Checkpoint, find_checkpoint, find_sound_checkpoint
from engine.config import SETTINGS, TrainConfig, check, differences, flag, from_dict, to_dict
from engine.corpora import TokenizedCorpus, find_corpus, open_tokens
from engine.corpora.known import canonical_name
from engine.corpora.ladder import ladder_of
from engine.corpora.progress import Progress
from engine.data import Tokens, split
from engine.errors import ConfigError, CorpusError, Problem, RunBusyError, RunError, storage_sentence
from engine.files import FolderLock, object_in
from engine.memory import estimate_memory
from engine.plan import Plan, make_plan
from engine.run import ActiveRun, Run, load_run, new_id, new_info, run_lock
from engine.world import ALONE, World

QUICK_LADDER = 2_000_000  # tokens of a corpus whose loss ladder is measured within a second or two


@dataclasses.dataclass(frozen=True)
class Text:
    """The two parts of the text that a run uses, and what they were cut from."""

    train: Tokens
    validation: Tokens
    corpus: TokenizedCorpus
    val_corpus: TokenizedCorpus | None

    @property
    def facts(self) -> dict[str, Any]:
        """What a run remembers of it."""
        facts = {"corpus_sha256": self.corpus.source_sha256}
        return facts | ({"val_corpus_sha256": self.val_corpus.source_sha256} if self.val_corpus else {})


def open_text(config: TrainConfig) -> Text:
    """The training and the validation tokens of a config.

    Raises:
        ConfigError: a corpus does not exist or cannot be read; both are told together.
    """
    problems: list[Problem] = []
    opened: dict[str, TokenizedCorpus] = {}
    for field, name in (("corpus", config.corpus), ("val_corpus", config.val_corpus)):
        try:
            if name:
                opened[field] = open_tokens(name)
        except CorpusError as error:
            problems.append(Problem(field, str(error)))
    if problems:
        raise ConfigError(problems)
    corpus, val_corpus = opened["corpus"], opened.get("val_corpus")
    if val_corpus is not None:
        return Text(corpus.tokens, val_corpus.tokens, corpus, val_corpus)
    train, validation = split(corpus.tokens, config.val_fraction)
    return Text(train, validation, corpus, None)


def read_settings(values: Mapping[str, Any]) -> TrainConfig:
    """`config.from_dict`, with unknown corpora, and then what this machine lacks, told in the same breath.

    Raises:
        ConfigError: all problems together.
    """
    problems: list[Problem] = []
    try:
        config = from_dict(values)
    except ConfigError as error:
        problems = error.problems
    problems = problems + corpus_problems(values)
    if problems:
        raise ConfigError(problems + device_problems(values, problems))
    return config


def corpus_problems(values: Mapping[str, Any]) -> list[Problem]:
    """A problem for each setting that names a corpus that does not exist."""
    problems = []
    for field in ("corpus", "val_corpus"):
        name = values.get(field)
        if name and isinstance(name, str):
            try:
                find_corpus(name)
            except CorpusError as error:
                problems.append(Problem(field, str(error)))
    return problems


def device_problems(values: Mapping[str, Any], known: Iterable[Problem] = ()) -> list[Problem]:
    """What this machine lacks for the device and the precision that settings name. Loads torch.

    Args:
        known: problems of the same settings; where one is of these two, the machine is not asked.
    """
    asked = {name: values.get(name, SETTINGS[name].default) for name in ("device", "precision")}
    if asked.keys() & {problem.field for problem in known}:
        return []
    try:
        environment.resolve_device(**asked)
    except ConfigError as error:
        return error.problems
    return []


def with_official_validation(config: TrainConfig) -> TrainConfig:
    """The config with its corpora called by their own names, and the official validation corpus where none was named.

    Raises:
        CorpusError: there is no such corpus.
    """
    corpus = find_corpus(config.corpus)
    validation = find_corpus(config.val_corpus).name if config.val_corpus else corpus.validation
    return dataclasses.replace(config, corpus=corpus.name, val_corpus=validation)


def tokenize(config: TrainConfig, progress: Progress) -> None:
    """Make the token caches that a run with this config needs, and the loss ladder of its texts, telling how far it is.

    Args:
        config: checked settings.
        progress: told each stage.

    Raises:
        CorpusError: a corpus does not exist, is not here, or is no text.
        CancelledError: through the progress.
    """
    paired = with_official_validation(config)
    corpus = open_tokens(paired.corpus, progress)
    val_corpus = open_tokens(paired.val_corpus, progress) if paired.val_corpus else None
    ladder_of(corpus, val_corpus, config.val_fraction, progress)


def plan_run(config: TrainConfig, world: World = ALONE) -> tuple[Plan, Text]:
    """Work out what a config would do on this machine; nothing is written but token caches.

    Where there are none yet, making them takes minutes for a large corpus; `tokenize` tells how far it is.

    Args:
        config: the settings.
        world: the processes that will train together.

    Raises:
        ConfigError: all problems together.
    """
    problems = check(config)
    if problems:
        values = to_dict(config)
        raise ConfigError(problems + corpus_problems(values) + device_problems(values, problems))
    device, precision = config.device, config.precision
    with contextlib.suppress(CorpusError):  # `open_text` tells it beside the field
        config = with_official_validation(config)
    try:
        device, precision = environment.resolve_device(config.device, config.precision)
        _check_devices(config.device, device, world)
    except ConfigError as error:
        problems += error.problems
    try:
        text = open_text(config)
        if text.val_corpus and text.val_corpus.source_sha256 == text.corpus.source_sha256:
            problems.append(Problem("val_corpus", _SAME_TEXT))
        resolved = dataclasses.replace(config, device=device, precision=precision)
        resolved = dataclasses.replace(resolved, threads=config.threads or _threads(world))
        plan = make_plan(resolved, len(text.train), len(text.validation), world_size=world.size)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    prompt = plan.config.sample_prompt or text.corpus.prompt
    return dataclasses.replace(plan, config=dataclasses.replace(plan.config, sample_prompt=prompt)), text


_SAME_TEXT = (
    "this is the text that is trained on, and would measure what was learned by heart. Take another, or leave it empty "
    "to keep the end of the text for validation."
)


def _threads(world: World) -> int:
    """CPU threads of one process: the machine's cores, shared out."""
    return max(1, environment.default_threads() // world.local_size)


def _check_devices(asked: str, device: str, world: World) -> None:
    """Whether each process of this machine can have a GPU of its own.

    Args:
        asked: the setting.
        device: what it stands for.

    Raises:
        ConfigError: it cannot.
    """
    if world.size == 1 or device == "cpu":
        return
    if ":" in asked:
        message = f"{asked} is one GPU, and each process of torchrun takes one of its own. Use cuda or auto."
        raise ConfigError([Problem("device", message)])
    gpus = len(environment.this_machine().gpus)
    if world.local_size > gpus:
        message = f"{world.local_size} processes need a GPU each, and this machine has {gpus}. Start {gpus} at most."
        raise ConfigError([Problem("--nproc-per-node", message)])


def new_run(
    config: TrainConfig,
    *,
    name: str = "",
    notes: str = "",
    facts: Mapping[str, Any] | None = None,
    world: World = ALONE,
) -> ActiveRun:
    """A new run from fresh weights.

    Args:
        facts: more that its run.json is to say.
        world: the processes that will train it together; this one is rank 0.

    Raises:
        ConfigError: all problems of the settings together.
        RunBusyError: another run holds the device.
        RunError: `runs/` cannot be written.
    """
    plan, text = plan_run(config, world)
    if len(text.corpus.tokens) <= QUICK_LADDER:  # a larger one has it from `tokenize` or the Corpora page
        ladder_of(text.corpus, text.val_corpus, config.val_fraction)
    run_id = new_id(plan.config)
    info = new_info(run_id, plan, name=name, notes=notes, requested=_requested(config), **_facts(plan, text))
    return ActiveRun(run_id, plan, info | dict(facts or {}), devices=world.devices(plan.config.device)).open()


def _requested(config: TrainConfig) -> dict[str, Any]:
    """The settings that differ from the defaults: what the person asked for, before automatic values."""
    return {name: pair[1] for name, pair in differences(TrainConfig(), config).items()}


def _asked_of(run: Run) -> dict[str, Any]:
    """What the person asked for when the run was started; {} when run.json does not say."""
    return dict(object_in(run.info, "requested"))


def _facts(plan: Plan, text: Text) -> dict[str, Any]:
    return {"environment": environment.versions(), "memory_estimate_gib": _memory_estimate(plan), **text.facts}


def _memory_estimate(plan: Plan) -> float:
    """GiB, of what the column `memory_gib` measures: what is allocated on a GPU, or the process on a CPU."""
    device = plan.config.device
    estimate = estimate_memory(plan.config, device, processes=plan.world_size, held=environment.held_bytes())
    return (estimate.total if device == "cpu" else estimate.peak_allocated) / environment.GIB


def resume_run(run_id: str, world: World = ALONE) -> ActiveRun:
    """Continue a run exactly where its newest whole checkpoint is.

    Args:
        world: the processes that will train it together. With another number of them than before, accumulation changes
            so that each step still takes the same windows; losses are then the same but for rounding.

    Raises:
        RunError: there is no such run, it is complete, its corpus has changed, or its steps cannot be shared out.
        CheckpointError: it has no usable checkpoint.
        ConfigError: this machine lacks its device.
        RunBusyError: it, or another run on the device, is being trained.
    """
    run = load_run(run_id)
    lock = run_lock(run.folder)  # before anything is read: another process may be about to finish the run
    try:
        if not lock.acquire(note=str(os.getpid())):
            raise RunBusyError(f"Run {run_id} is being trained already.", run_id)
        return _resume(run, lock, world)
    except OSError as error:
        lock.release()
        raise RunError(storage_sentence(error, run.folder)) from error
    except BaseException:
        lock.release()
        raise


def _resume(run: Run, lock: FolderLock, world: World) -> ActiveRun:
    info, config = run.info, shared_out(run, world)
    if not {"windows", "total_steps", "parent"} <= info.keys():
        raise RunError(f"Run {run.id} cannot be resumed: its run.json is damaged. Its checkpoints can be branched.")
    checkpoint, passed_over = find_sound_checkpoint(run.folder)
    if info.get("state") == "completed" and checkpoint.step >= run.total_steps:
        raise RunError(
            f"Run {run.id} is complete. To train its model further, branch it with a longer run: "
            f"python -m engine.train --branch {run.id} {flag('epochs')} {config.epochs * 2:g}"
        )
    for device in world.devices(config.device):
        environment.resolve_device(device, config.precision)
    text = open_text(config)
    changed = [name for name, digest in text.facts.items() if info.get(name) != digest]
    if changed:
        raise RunError(
            f"Run {run.id} cannot be resumed exactly: the text of {config.corpus} has changed since. "
            "Restore it, or branch the run to train on the new text."
        )
    plan = Plan(config, run.total_steps, int(info["windows"]), len(text.train), len(text.validation), world.size)
    if world.size != run.world_size:
        passed_over.append(_other_world(run, plan))
    info["config"], info["world_size"] = to_dict(config), world.size
    info["progress"] = dict(checkpoint.progress)
    info["memory_estimate_gib"] = _memory_estimate(plan)  # of the process that goes on
    info["ended"] = None
    info["diverged"] = False
    active = ActiveRun(run.id, plan, info, checkpoint, world.devices(config.device), lock).open()
    try:
        for sentence in passed_over:
            active.event("warning", sentence)
    except OSError:
        active.close()
        raise
    return active


def shared_out(run: Run, world: World = ALONE) -> TrainConfig:
    """A run's settings for another number of processes, such that each step takes the same windows as before.

    Raises:
        RunError: its forward passes of a step cannot be shared out evenly among so many.
    """
    config, before = run.config, run.world_size
    if world.size == before:
        return config
    passes = config.grad_accum_steps * before
    possible = [n for n in range(1, passes + 1) if passes % n == 0]
    if world.size not in possible:
        raise RunError(
            f"Run {run.id} takes {passes} batches of {config.batch_size} a step, which cannot be shared out evenly "
            f"among {world.size} processes. Start {', '.join(map(str, possible))} of them, or branch the run."
        )
    threads = config.threads if "threads" in _asked_of(run) else _threads(world)
    return dataclasses.replace(
        config,
        grad_accum_steps=passes // world.size,
        threads=threads,
        device=world.device_of(0, config.device),
    )


def _other_world(run: Run, plan: Plan) -> str:
    now, before = plan.world_size, run.world_size
    return (
        f"{now} process{'es' if now > 1 else ''} instead of {before}: gradient accumulation is now "
        f"{plan.config.grad_accum_steps}, so that a step still takes the same {plan.sequences_per_step:,} windows."
    )


def branch_run(
    run_id: str,
    step: int | None = None,
    changes: dict[str, Any] | None = None,
    *,
    name: str = "",
    notes: str = "",
    world: World = ALONE,
) -> ActiveRun:
    """A new run that starts from another one's checkpoint, with changed settings.

    It keeps the checkpoint's weights, step and, unless the optimizer changes, the optimizer's state.

    Args:
        run_id: the parent.
        step: of the checkpoint; None takes the newest.
        changes: setting -> new value.
        world: the processes that will train it together. With another number of them than the parent had, accumulation
            changes so that a step still takes as many windows, where they can be shared out and nothing else is said.

    Raises:
        ConfigError: a change is impossible (architecture) or out of range, or the run would already be over.
        CheckpointError: there is no such checkpoint.
        RunError, RunBusyError: as for `new_run`.
    """
    branch = _plan_branch(run_id, step, changes or {}, world)
    parent, checkpoint, plan, text = branch.parent, branch.checkpoint, branch.plan, branch.text
    new = new_id(plan.config)
    info = new_info(
        new,
        plan,
        name=name or f"{parent.info.get('name', run_id)}, branched at step {checkpoint.step}",
        notes=notes,
        requested=_asked_of(parent) | branch.changes,
        **_facts(plan, text),
    )
    info["parent"] = {
        "run": run_id,
        "step": checkpoint.step,
        "changes": {name: list(pair) for name, pair in differences(parent.config, plan.config).items()},
    }
    info["progress"] = {key: checkpoint.progress.get(key) for key in ("step", "tokens", "elapsed_s")}
    info["progress"] |= {"position": branch.position, "epoch": branch.position / plan.windows}
    return ActiveRun(new, plan, info, checkpoint, world.devices(plan.config.device)).open()


@dataclasses.dataclass(frozen=True)
class _Branch:
    """A branch that could be started: where it comes from, what it would do."""

    parent: Run
    checkpoint: Checkpoint
    changes: dict[str, Any]
    plan: Plan
    text: Text
    position: int


def plan_branch(run_id: str, step: int | None, changes: dict[str, Any]) -> Plan:
    """What a branch would do; nothing is written but token caches. Raises like `branch_run`."""
    return _plan_branch(run_id, step, changes, ALONE).plan


def _plan_branch(run_id: str, step: int | None, changes: dict[str, Any], world: World) -> _Branch:
    parent = load_run(run_id)
    checkpoint = find_checkpoint(parent.folder, step)
    old = parent.config
    with contextlib.suppress(RunError):  # where they cannot be shared out, a step takes what the settings say
        old = shared_out(parent, world)
    if world.size > 1:
        old = dataclasses.replace(old, device=old.device.partition(":")[0])  # not one GPU, but one each
    if canonical_name(str(changes.get("corpus", old.corpus))) != old.corpus:
        changes = {"val_corpus": ""} | changes  # the old one's official validation text is not the new one's
    values = to_dict(old) | changes
    problems = _architecture_problems(old, values)
    try:
        plan, text = plan_run(read_settings(values), world)
    except ConfigError as error:
        told = {problem.field for problem in problems}
        raise ConfigError(problems + [p for p in error.problems if p.field not in told]) from None
    if problems:
        raise ConfigError(problems)
    same_text = parent.info.get("corpus_sha256") == text.corpus.source_sha256
    plan, position = _continue_plan(plan, checkpoint, same_text=same_text)
    return _Branch(parent, checkpoint, changes, plan, text, position)


def _continue_plan(plan: Plan, checkpoint: Checkpoint, *, same_text: bool) -> tuple[Plan, int]:
    """Count a branch's steps from the checkpoint on; and the windows already seen, none when the text is new."""
    config = plan.config
    position = int(checkpoint.progress.get("position") or 0) if same_text else 0
    remaining = round(config.epochs * plan.windows - position, 6)
    by_epochs = checkpoint.step + max(0, math.ceil(remaining / plan.sequences_per_step))
    over = "the branch would be over before it starts: its checkpoint"
    problems = []
    if by_epochs <= checkpoint.step:
        message = f"{over} has {position / plan.windows:.4g} epochs behind it. Ask for more {flag('epochs')}."
        problems.append(Problem("epochs", message))
    if 0 < config.max_steps <= checkpoint.step:
        message = f"{over} is at step {checkpoint.step:,}. Ask for more {flag('max_steps')}."
        problems.append(Problem("max_steps", message))
    if problems:
        raise ConfigError(problems)
    total_steps = min(by_epochs, config.max_steps or by_epochs)
    return dataclasses.replace(plan, total_steps=total_steps), position


def _architecture_problems(old: TrainConfig, values: Mapping[str, Any]) -> list[Problem]:
    """A problem for each change that weights of other shapes would need."""
    why = "it decides the shapes of the weights, so a branch must keep it as it was ({}). Start a new run instead."
    impossible = [n for n, f in SETTINGS.items() if f.metadata["architecture"] and values[n] != getattr(old, n)]
    return [Problem(name, why.format(getattr(old, name))) for name in impossible]


def checkpoint_of(run_id: str, step: int | None = None) -> Checkpoint:
    """A run's checkpoint: the newest, or the one of a step.

    Raises:
        RunError, CheckpointError: there is no such run or checkpoint.
    """
    return find_checkpoint(load_run(run_id).folder, step)
