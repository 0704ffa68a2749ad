"""From settings, a run or a checkpoint to an `ActiveRun` that is locked and ready for `engine.train.train`.

Everything that can be wrong with a request is found here, before any model is built.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Mapping
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
from engine.files import FolderLock
from engine.memory import estimate_memory
from engine.plan import Plan, make_plan
from engine.run import ActiveRun, Run, load_run, new_id, new_info, run_lock

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
    """`config.from_dict`, with unknown corpora told in the same breath.

    Raises:
        ConfigError: all problems together.
    """
    problems = corpus_problems(values)
    try:
        config = from_dict(values)
    except ConfigError as error:
        problems = error.problems + problems
    if problems:
        raise ConfigError(problems)
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


def plan_run(config: TrainConfig) -> tuple[Plan, Text]:
    """Work out what a config would do on this machine; nothing is written but token caches.

    Where there are none yet, making them takes minutes for a large corpus; `tokenize` tells how far it is.

    Raises:
        ConfigError: all problems together.
    """
    problems = check(config)
    if problems:
        raise ConfigError(problems + corpus_problems(to_dict(config)))
    device, precision = config.device, config.precision
    with contextlib.suppress(CorpusError):  # `open_text` tells it beside the field
        config = with_official_validation(config)
    try:
        device, precision = environment.resolve_device(config.device, config.precision)
    except ConfigError as error:
        problems += error.problems
    try:
        text = open_text(config)
        resolved = dataclasses.replace(config, device=device, precision=precision)
        resolved = dataclasses.replace(resolved, threads=config.threads or environment.default_threads())
        plan = make_plan(resolved, len(text.train), len(text.validation))
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    prompt = plan.config.sample_prompt or text.corpus.prompt
    return dataclasses.replace(plan, config=dataclasses.replace(plan.config, sample_prompt=prompt)), text


def new_run(
    config: TrainConfig, *, name: str = "", notes: str = "", facts: Mapping[str, Any] | None = None
) -> ActiveRun:
    """A new run from fresh weights.

    Args:
        facts: more that its run.json is to say.

    Raises:
        ConfigError: all problems of the settings together.
        RunBusyError: another run holds the device.
        RunError: `runs/` cannot be written.
    """
    plan, text = plan_run(config)
    if len(text.corpus.tokens) <= QUICK_LADDER:  # a larger one has it from `tokenize` or the Corpora page
        ladder_of(text.corpus, text.val_corpus, config.val_fraction)
    run_id = new_id(plan.config)
    info = new_info(run_id, plan, name=name, notes=notes, requested=_requested(config), **_facts(plan.config, text))
    return ActiveRun(run_id, plan, info | dict(facts or {})).open()


def _requested(config: TrainConfig) -> dict[str, Any]:
    """The settings that differ from the defaults: what the person asked for, before automatic values."""
    return {name: pair[1] for name, pair in differences(TrainConfig(), config).items()}


def _asked_of(run: Run) -> dict[str, Any]:
    """What the person asked for when the run was started; {} when run.json does not say."""
    requested = run.info.get("requested")
    return dict(requested) if isinstance(requested, dict) else {}


def _facts(config: TrainConfig, text: Text) -> dict[str, Any]:
    return {"environment": environment.versions(), "memory_estimate_gib": _memory_estimate(config), **text.facts}


def _memory_estimate(config: TrainConfig) -> float:
    """GiB, of what the column `memory_gib` measures: what is allocated on a GPU, or the process on a CPU."""
    estimate = estimate_memory(config, config.device)
    return (estimate.total if config.device == "cpu" else estimate.peak_allocated) / environment.GIB


def resume_run(run_id: str) -> ActiveRun:
    """Continue a run exactly where its newest whole checkpoint is.

    Raises:
        RunError: there is no such run, it is complete, or its corpus has changed.
        CheckpointError: it has no usable checkpoint.
        ConfigError: this machine lacks its device.
        RunBusyError: it, or another run on the device, is being trained.
    """
    run = load_run(run_id)
    lock = run_lock(run.folder)  # before anything is read: another process may be about to finish the run
    try:
        if not lock.acquire(note=str(os.getpid())):
            raise RunBusyError(f"Run {run_id} is being trained already.", run_id)
        return _resume(run, lock)
    except OSError as error:
        lock.release()
        raise RunError(storage_sentence(error, run.folder)) from error
    except BaseException:
        lock.release()
        raise


def _resume(run: Run, lock: FolderLock) -> ActiveRun:
    info, config = run.info, run.config
    if not {"windows", "total_steps", "parent"} <= info.keys():
        raise RunError(f"Run {run.id} cannot be resumed: its run.json is damaged. Its checkpoints can be branched.")
    checkpoint, passed_over = find_sound_checkpoint(run.folder)
    if info.get("state") == "completed" and checkpoint.step >= run.total_steps:
        raise RunError(
            f"Run {run.id} is complete. To train its model further, branch it with a longer run: "
            f"python -m engine.train --branch {run.id} {flag('epochs')} {config.epochs * 2:g}"
        )
    environment.resolve_device(config.device, config.precision)
    text = open_text(config)
    changed = [name for name, digest in text.facts.items() if info.get(name) != digest]
    if changed:
        raise RunError(
            f"Run {run.id} cannot be resumed exactly: the text of {config.corpus} has changed since. "
            "Restore it, or branch the run to train on the new text."
        )
    plan = Plan(config, run.total_steps, int(info["windows"]), len(text.train), len(text.validation))
    info["progress"] = dict(checkpoint.progress)
    info["ended"] = None
    info["diverged"] = False
    active = ActiveRun(run.id, plan, info, checkpoint, lock).open()
    try:
        for sentence in passed_over:
            active.event("warning", sentence)
    except OSError:
        active.close()
        raise
    return active


def branch_run(
    run_id: str, step: int | None = None, changes: dict[str, Any] | None = None, *, name: str = "", notes: str = ""
) -> ActiveRun:
    """A new run that starts from another one's checkpoint, with changed settings.

    It keeps the checkpoint's weights, step and, unless the optimizer changes, the optimizer's state.

    Args:
        run_id: the parent.
        step: of the checkpoint; None takes the newest.
        changes: setting -> new value.

    Raises:
        ConfigError: a change is impossible (architecture) or out of range, or the run would already be over.
        CheckpointError: there is no such checkpoint.
        RunError, RunBusyError: as for `new_run`.
    """
    branch = _plan_branch(run_id, step, changes or {})
    parent, checkpoint, plan, text = branch.parent, branch.checkpoint, branch.plan, branch.text
    new = new_id(plan.config)
    info = new_info(
        new,
        plan,
        name=name or f"{parent.info.get('name', run_id)}, branched at step {checkpoint.step}",
        notes=notes,
        requested=_asked_of(parent) | branch.changes,
        **_facts(plan.config, text),
    )
    info["parent"] = {
        "run": run_id,
        "step": checkpoint.step,
        "changes": {name: list(pair) for name, pair in differences(parent.config, plan.config).items()},
    }
    info["progress"] = {key: checkpoint.progress.get(key) for key in ("step", "tokens", "elapsed_s")}
    info["progress"] |= {"position": branch.position, "epoch": branch.position / plan.windows}
    return ActiveRun(new, plan, info, checkpoint).open()


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
    return _plan_branch(run_id, step, changes).plan


def _plan_branch(run_id: str, step: int | None, changes: dict[str, Any]) -> _Branch:
    parent = load_run(run_id)
    checkpoint = find_checkpoint(parent.folder, step)
    old = parent.config
    if canonical_name(str(changes.get("corpus", old.corpus))) != old.corpus:
        changes = {"val_corpus": ""} | changes  # the old one's official validation text is not the new one's
    config = read_settings(to_dict(old) | changes)
    _refuse_architecture(old, config)
    plan, text = plan_run(config)
    same_text = parent.info.get("corpus_sha256") == text.corpus.source_sha256
    plan, position = _continue_plan(plan, checkpoint, same_text=same_text)
    return _Branch(parent, checkpoint, changes, plan, text, position)


def _continue_plan(plan: Plan, checkpoint: Checkpoint, *, same_text: bool) -> tuple[Plan, int]:
    """Count a branch's steps from the checkpoint on; and the windows already seen, none when the text is new."""
    config = plan.config
    position = int(checkpoint.progress.get("position") or 0) if same_text else 0
    remaining = round(config.epochs * plan.windows - position, 6)
    total_steps = checkpoint.step + max(0, math.ceil(remaining / config.sequences_per_step))
    if config.max_steps:
        total_steps = min(total_steps, config.max_steps)
    if total_steps <= checkpoint.step:
        done = position / plan.windows
        message = (
            f"the branch would be over before it starts: its checkpoint is at step {checkpoint.step:,} and has "
            f"{done:.4g} epochs behind it. Ask for more {flag('epochs')}"
            + (f", and for more {flag('max_steps')}." if config.max_steps else ".")
        )
        raise ConfigError([Problem("epochs", message)])
    return dataclasses.replace(plan, total_steps=total_steps), position


def _refuse_architecture(old: TrainConfig, new: TrainConfig) -> None:
    impossible = [name for name in differences(old, new) if SETTINGS[name].metadata["architecture"]]
    if impossible:
        why = "it decides the shapes of the weights, so a branch must keep it as it was ({}). Start a new run instead."
        raise ConfigError([Problem(name, why.format(getattr(old, name))) for name in impossible])


def checkpoint_of(run_id: str, step: int | None = None) -> Checkpoint:
    """A run's checkpoint: the newest, or the one of a step.

    Raises:
        RunError, CheckpointError: there is no such run or checkpoint.
    """
    return find_checkpoint(load_run(run_id).folder, step)
