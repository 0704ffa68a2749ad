"""The guide's three runs and four learning exercises: what each asks, the runs it takes, and what their numbers say.

An exercise is data; `settings_for` sizes its runs for a machine, and `reading` puts the finished runs' own measurements
into words. No number in a reading comes from anywhere else. A run says in `run.json` which exercise it belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from engine.config import PRESETS, ModelConfig
from engine.corpora import find_corpus
from engine.curves import Curve, curve, median
from engine.files import object_in
from engine.run import Run

PROGRESSION, LEARNING = "Suggested runs", "Learning exercises"


@dataclass(frozen=True)
class PlannedRun:
    """A run of an exercise.

    Attributes:
        role: its part in the comparison, unique within the exercise.
        name: for people.
        settings: of a `TrainConfig`, those that differ from the defaults.
    """

    role: str
    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Exercise:
    """One thing to find out by training.

    Attributes:
        key: unique, stored in run.json.
        group: `PROGRESSION` or `LEARNING`.
        title, question: for people.
        look_for: what to watch while it runs.
        runs: with the settings that tell them apart.
        shared: settings that all of them have.
        on_gpu: more of them, and the sizes for a GPU; `max_steps` among them.
        on_cpu: the same for a CPU, where `max_steps` is the most: a slow machine gets fewer.
        without_gpu: what changes on a machine without a GPU; "" for nothing.
        actions: what a person does meanwhile, in order.
    """

    key: str
    group: str
    title: str
    question: str
    look_for: str
    runs: tuple[PlannedRun, ...]
    shared: Mapping[str, Any] = field(default_factory=dict)
    on_gpu: Mapping[str, Any] = field(default_factory=dict)
    on_cpu: Mapping[str, Any] = field(default_factory=dict)
    without_gpu: str = ""
    actions: tuple[str, ...] = ()


MEASURE_ONLY: Mapping[str, Any] = {"sample_length": 0, "save_every": -1, "eval_every": -1}  # nothing but steps to time
MANY_EPOCHS = 10_000  # so that `max_steps` alone decides how long a run is

EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        key="smoke",
        group=PROGRESSION,
        title="Run 1: smoke test",
        question="Does the whole pipeline work, and does a model learn at all?",
        look_for="The training loss drops rapidly. On a text this small, that is the beginning of memorisation.",
        runs=(PlannedRun("run", "Smoke test", {"config": "nano", "corpus": "verdict", "epochs": 3.0}),),
    ),
    Exercise(
        key="first",
        group=PROGRESSION,
        title="Run 2: first meaningful run",
        question="What does a small model learn from a text that it cannot memorise?",
        look_for="A slower, smoother descent; validation stays with training; samples turn into sentences.",
        runs=(PlannedRun("run", "First meaningful run", {"config": "nano", "corpus": "tinystories", "epochs": 1.0}),),
        on_gpu={"batch_size": 32, "max_steps": 5000},
        on_cpu={"batch_size": 8, "context_length": 128, "max_steps": 1000},
        without_gpu="The run ends after a few minutes' steps, long before a whole pass over the text.",
    ),
    Exercise(
        key="scaling",
        group=PROGRESSION,
        title="Run 3: controlled scaling",
        question="What does a larger model buy at the same text and steps, and what does it cost?",
        look_for="Final losses against tokens per second and time; compare samples at equal steps.",
        runs=tuple(PlannedRun(size, f"Scaling: {size}", {"config": size}) for size in ("nano", "small", "medium")),
        shared={"corpus": "tinystories", "epochs": 1.0},
        on_gpu={"batch_size": 32, "context_length": 256, "max_steps": 2000},
        on_cpu={"batch_size": 4, "context_length": 128, "max_steps": 300},
        without_gpu="Larger presets take so long a step that they get few steps or are left out.",
    ),
    Exercise(
        key="memorisation",
        group=LEARNING,
        title="Memorisation versus generalisation",
        question="When the training loss is low, has the model understood the text, or learned it by heart?",
        look_for="The gap between validation and training loss at equal steps, and where validation turns upwards.",
        runs=(
            PlannedRun("small text", "Memorisation: The Verdict", {"corpus": "verdict", "epochs": MANY_EPOCHS}),
            PlannedRun("large text", "Generalisation: TinyStories", {"corpus": "tinystories", "epochs": 1.0}),
        ),
        shared={"config": "nano"},
        on_gpu={"batch_size": 8, "max_steps": 1000},
        on_cpu={"batch_size": 4, "context_length": 128, "max_steps": 500},
    ),
    Exercise(
        key="attention",
        group=LEARNING,
        title="manual versus sdpa attention",
        question="What does writing the attention matrix out cost in memory and speed?",
        look_for="Equal losses, as it is the same arithmetic; different memory and tokens per second.",
        runs=tuple(
            PlannedRun(how, f"Attention: {how}", {"attention_impl": how, "corpus": "verdict", "epochs": MANY_EPOCHS})
            for how in ("manual", "sdpa")
        ),
        shared=MEASURE_ONLY,
        on_gpu={"config": "small", "context_length": 1024, "batch_size": 4, "max_steps": 100},
        on_cpu={"config": "nano", "context_length": 512, "batch_size": 2, "max_steps": 60},
        without_gpu="Memory is that of the whole process, which reuses what it once took; speed can be compared.",
    ),
    Exercise(
        key="precision",
        group=LEARNING,
        title="fp32 versus bf16",
        question="Does half the precision change the loss, and what does it bring?",
        look_for="Two loss curves on top of each other; tokens per second and memory that differ.",
        runs=tuple(
            PlannedRun(how, f"Precision: {how}", {"precision": how, "corpus": "verdict", "epochs": MANY_EPOCHS})
            for how in ("fp32", "bf16")
        ),
        shared=MEASURE_ONLY,
        on_gpu={"config": "small", "context_length": 512, "batch_size": 8, "max_steps": 200},
        on_cpu={"config": "nano", "context_length": 128, "batch_size": 4, "max_steps": 100},
        without_gpu="Stability can be compared. bf16 is often slower here: few processors compute in it.",
    ),
    Exercise(
        key="resume",
        group=LEARNING,
        title="Pause, save, stop, resume",
        question="Does a run that was stopped and resumed go on as if nothing had happened?",
        look_for="No jump in the loss where the run went on: no larger than from any step to the next.",
        runs=(PlannedRun("run", "Pause and resume", {"config": "nano", "corpus": "verdict", "epochs": MANY_EPOCHS}),),
        on_gpu={"batch_size": 4, "max_steps": 2000},
        on_cpu={"batch_size": 4, "context_length": 128, "max_steps": 300},
        actions=(
            "Start the run and let it do a third of its steps.",
            "Pause it, look at the curves, and let it go on.",
            "Press “Save now”, then stop it.",
            "Resume it from its last checkpoint and let it finish.",
        ),
    ),
)


def find_exercise(key: str) -> Exercise:
    """The exercise with this key.

    Raises:
        KeyError: there is none.
    """
    return {exercise.key: exercise for exercise in EXERCISES}[key]


# ------------------------------------------------------------------------------------------------- set-up

CORE_TOKENS_PER_S = 500  # that a core trains nano on; measured on two cores of a server: 1,000 to 1,300 together
MOST_CORES = 8  # more add little to matrices this small
CPU_RUN_S = 240  # what a run on a CPU should take, about
LEAST_STEPS = 30  # fewer show no trend: a run that would get fewer in `CPU_RUN_S` is left out if others remain
SHORT_TEXTS = {"tinystories": "tinystories_validation"}  # 19 MB for 1.9 GB: more than a CPU reads in an evening


@dataclass(frozen=True)
class Setup:
    """An exercise sized for a machine.

    Attributes:
        runs: with all settings of a `TrainConfig` that differ from the defaults.
        explanation: why they are as long as they are, and what is left out.
        missing: names of the corpora to download first.
    """

    runs: tuple[PlannedRun, ...]
    explanation: str
    missing: tuple[str, ...]


def settings_for(exercise: Exercise, device: str, cores: int) -> Setup:
    """Size an exercise's runs: a few minutes each on a laptop's CPU, enough to mean something on a GPU.

    Args:
        exercise: from `EXERCISES`.
        device: `cpu`, `cuda` or `cuda:N`.
        cores: of the CPU; of no effect on a GPU.
    """
    on_gpu = device.startswith("cuda")
    runs = tuple(_merged(exercise, run, on_gpu) | {"device": device} for run in exercise.runs)
    planned = tuple(replace(run, settings=settings) for run, settings in zip(exercise.runs, runs, strict=True))
    if on_gpu:
        explanation = "Sized for a GPU: some minutes a run, more on a small one." if exercise.on_gpu else ""
    else:
        planned, explanation = _fit_to_cpu(exercise, planned, cores)
    return Setup(planned, explanation, _missing(planned))


def _merged(exercise: Exercise, run: PlannedRun, on_gpu: bool) -> dict[str, Any]:
    settings = {**exercise.shared, **(exercise.on_gpu if on_gpu else exercise.on_cpu), **run.settings}
    short = SHORT_TEXTS.get(settings.get("corpus", ""))
    if short and not on_gpu and not find_corpus(settings["corpus"]).is_here:
        settings |= {"corpus": short}
    return settings


def _fit_to_cpu(exercise: Exercise, runs: tuple[PlannedRun, ...], cores: int) -> tuple[tuple[PlannedRun, ...], str]:
    if "max_steps" not in exercise.on_cpu:
        return runs, ""
    affordable = {run.role: _affordable_steps(run.settings, cores) for run in runs}
    kept = tuple(run for run in runs if affordable[run.role] >= LEAST_STEPS) or runs[:1]
    steps = max(LEAST_STEPS, min(exercise.on_cpu["max_steps"], *(affordable[run.role] for run in kept)))
    kept = tuple(replace(run, settings={**run.settings, "max_steps": steps}) for run in kept)
    explanation = (
        f"{steps:,} steps each: about {CPU_RUN_S // 60} minutes or less for the slowest run, estimated at "
        f"{CORE_TOKENS_PER_S * min(cores, MOST_CORES):,} tokens/s for nano on {cores} cores."
    )
    left_out = [run.role for run in runs if run.role not in {one.role for one in kept}]
    if left_out:
        explanation += f" Left out, as they would get fewer than {LEAST_STEPS} steps: {', '.join(left_out)}."
    shortened = sorted({run.settings["corpus"] for run in kept} & set(SHORT_TEXTS.values()))
    if shortened:
        explanation += (
            f" {', '.join(shortened)} stands in for the large corpus: a small download, text enough for this."
        )
    return kept, explanation


def _affordable_steps(settings: Mapping[str, Any], cores: int) -> int:
    """Steps in `CPU_RUN_S`; the time of a token grows with the weights that it passes through."""
    relative = _weights(settings["config"]) / _weights("nano")
    per_second = CORE_TOKENS_PER_S * max(1, min(cores, MOST_CORES)) / relative
    return int(CPU_RUN_S * per_second / (settings["batch_size"] * settings["context_length"]))


def _weights(preset: str) -> int:
    p = PRESETS[preset]
    return ModelConfig(p.layers, p.heads, p.width, p.context_length).parameters


def _missing(runs: Iterable[PlannedRun]) -> tuple[str, ...]:
    names = {str(run.settings.get("corpus")) for run in runs}
    corpora = [find_corpus(name) for name in sorted(names)]
    wanted = {corpus.name for corpus in corpora} | {corpus.validation for corpus in corpora if corpus.validation}
    return tuple(name for name in sorted(wanted) if not find_corpus(name).is_here)


# ------------------------------------------------------------------------------------------------- runs


def mark(exercise: Exercise, role: str) -> dict[str, Any]:
    """What run.json says of a run that belongs to an exercise, for `ActiveRun.note(**mark(exercise, role))`."""
    return {"exercise": {"key": exercise.key, "role": role}}


def runs_of(exercise: Exercise, runs: Iterable[Run]) -> dict[str, Run]:
    """The newest run of each role, of those that say that they belong to the exercise."""
    roles = {run.role for run in exercise.runs}
    found: dict[str, tuple[str, Run]] = {}
    for run in runs:
        info = run.info
        told = info.get("exercise")
        if not isinstance(told, dict) or told.get("key") != exercise.key or told.get("role") not in roles:
            continue
        created = str(info.get("created", ""))
        if told["role"] not in found or created > found[told["role"]][0]:
            found[told["role"]] = (created, run)
    return {planned.role: found[planned.role][1] for planned in exercise.runs if planned.role in found}


@dataclass(frozen=True)
class RunFacts:
    """What a run measured, as far as an exercise asks.

    Attributes:
        state: of `engine.run.STATES`.
        on_gpu: whether it trained on one.
        corpus: its name.
        train, val: losses in nats per token.
        tokens_per_s: in the median of the second half, when all is warm.
        memory_gib: the most; on a CPU that of the whole process.
        elapsed_s: of training.
        went_on: the last step before each resume and each end of a pause, with "resumed" or "unpaused".
    """

    name: str
    state: str
    on_gpu: bool
    corpus: str
    train: Curve
    val: Curve
    tokens_per_s: float
    memory_gib: float
    elapsed_s: float
    went_on: tuple[tuple[int, str], ...] = ()

    @property
    def last_val(self) -> float:
        """The validation loss measured last; NaN without one."""
        return float(self.val.values[-1]) if len(self.val) else math.nan

    def val_at(self, step: float) -> float:
        """The last validation loss measured by a step; NaN without one."""
        measured = self.val.values[: int(np.searchsorted(self.val.steps, step, side="right"))]
        return float(measured[-1]) if len(measured) else math.nan


_MEASURED = ("step", "elapsed_s", "train_loss", "val_loss", "tokens_per_s", "memory_gib")


def facts_of(run: Run) -> RunFacts:
    """Read a run's folder; what is damaged counts as not measured."""
    info, metrics = run.info, run.columns(*_MEASURED)
    config = object_in(info, "config")
    rate, memory, elapsed = (curve(metrics, name) for name in ("tokens_per_s", "memory_gib", "elapsed_s"))
    return RunFacts(
        name=str(info.get("name") or run.id),
        state=run.state_of(info),
        on_gpu=str(config.get("device", "")).startswith("cuda"),
        corpus=str(config.get("corpus", "")),
        train=curve(metrics, "train_loss"),
        val=curve(metrics, "val_loss"),
        tokens_per_s=median(rate.values[len(rate) // 2 :]),
        memory_gib=float(memory.values.max()) if len(memory) else math.nan,
        elapsed_s=float(elapsed.values[-1]) if len(elapsed) else math.nan,
        went_on=tuple((event.step, event.kind) for event in run.events if event.kind in ("resumed", "unpaused")),
    )


# ------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Reading:
    """What the runs of an exercise say.

    Attributes:
        text: the measured numbers in a sentence or two; "" while runs are missing.
        meaning: what follows from them.
        limits: what this machine cannot show; "" for nothing.
        missing: a sentence for each run that is missing or unfinished.
        table: a row for each role, a column for each measurement; NaN for what was not measured.
    """

    text: str
    meaning: str
    limits: str
    missing: tuple[str, ...]
    table: pd.DataFrame


def reading(exercise: Exercise, runs: Mapping[str, RunFacts], *, roles: Iterable[str] | None = None) -> Reading:
    """Put the measurements of an exercise's runs into words.

    Args:
        exercise: that the runs belong to.
        runs: by role.
        roles: that this machine was given (`Setup.runs`); None for all.
    """
    wanted = [run for run in exercise.runs if roles is None or run.role in set(roles)]
    missing = tuple(sentence for run in wanted if (sentence := _why_not(run, runs.get(run.role))))
    table = pd.DataFrame({run.role: _row(runs[run.role]) for run in wanted if run.role in runs}).T
    if missing:
        return Reading("", "", "", missing, table)
    chosen = {run.role: runs[run.role] for run in wanted}
    text, meaning = _READERS[exercise.key](chosen)
    if not text:
        return Reading("", "", "", (meaning,), table)
    on_cpu = not all(facts.on_gpu for facts in chosen.values())
    return Reading(text, meaning, exercise.without_gpu if on_cpu else "", (), table)


def _why_not(run: PlannedRun, facts: RunFacts | None) -> str:
    if facts is None:
        return f"“{run.name}” has not been started."
    if facts.state != "completed":
        return f"“{run.name}” is {facts.state} at step {facts.train.last_step:,}: it has to be completed."
    return "" if len(facts.train) else f"“{run.name}” has no measured step."


def _row(facts: RunFacts) -> dict[str, float]:
    return {
        "steps": facts.train.last_step,
        "training loss": facts.train.end,
        "validation loss": facts.last_val,
        "gap": facts.last_val - facts.train.end,
        "tokens/s": facts.tokens_per_s,
        "memory GiB": facts.memory_gib,
        "time s": facts.elapsed_s,
    }


def _fall(facts: RunFacts) -> str:
    text = f"the training loss went from {facts.train.values[0]:.2f} to {facts.train.end:.2f} (the median of the last "
    text += f"{facts.train.end_rows:,}) in {len(facts.train):,} steps" + (
        f", validation is {facts.last_val:.2f}" if len(facts.val) else ""
    )
    return text + (f", at {facts.tokens_per_s:,.0f} tokens/s" if math.isfinite(facts.tokens_per_s) else "")


def _at(facts: RunFacts, step: int) -> str:
    """The losses by a step, those that were measured."""
    text, val = f"{facts.train.level_at(step):.2f} in training", facts.val_at(step)
    return text + (f" and {val:.2f} in validation" if math.isfinite(val) else "")


def _read_single(runs: Mapping[str, RunFacts]) -> tuple[str, str]:
    (facts,) = runs.values()
    fell = facts.train.values[0] - facts.train.end
    text = f"On {facts.corpus} {_fall(facts)}."
    gap = facts.last_val - facts.train.end
    if fell < 1:
        return text, f"A fall of {fell:.2f} nats is little: look at the run's diagnosis."
    if gap > 1:
        return text, f"It learns, but {gap:.2f} nats between validation and training are the mark of memorisation."
    learned = f"It learns: a fall of {fell:.2f} nats is a factor of {math.exp(fell):,.0f} in perplexity"
    return text, learned + (f", and validation is {gap:+.2f} nats from training." if math.isfinite(gap) else ".")


def _read_scaling(runs: Mapping[str, RunFacts]) -> tuple[str, str]:
    step = min(facts.train.last_step for facts in runs.values())
    parts = [f"{role} {_at(facts, step)}" for role, facts in runs.items()]
    text = f"At step {step:,}: {'; '.join(parts)}."
    if len(runs) < 2:
        return text, "With one size there is nothing to compare."
    (first, small), *_, (last, large) = runs.items()
    pace = _compare(runs, last, first, "tokens_per_s", "{:,.0f} tokens/s")
    gain = small.val_at(step) - large.val_at(step)
    if not math.isfinite(gain):
        gain = small.train.level_at(step) - large.train.level_at(step)
    verdict = f"{last} is {abs(gain):.2f} nats {'better' if gain > 0 else 'worse'} than {first} at equal steps"
    meaning = verdict + (f", and trains at {pace}." if pace else ".")
    if gain <= 0:
        meaning += " A larger model needs more steps, or another learning rate, before its size pays."
    return text, meaning


def _read_memorisation(runs: Mapping[str, RunFacts]) -> tuple[str, str]:
    small, large = runs["small text"], runs["large text"]
    step = min(small.train.last_step, large.train.last_step)
    gaps = {name: facts.val_at(step) - facts.train.level_at(step) for name, facts in runs.items()}
    if not all(map(math.isfinite, gaps.values())):
        return "", "Validation was not measured by the step to which both runs came; let them measure it."
    parts = [f"{facts.corpus} {_at(facts, step)}, a gap of {gaps[role]:.2f}" for role, facts in runs.items()]
    text = f"At step {step:,}: {'; '.join(parts)}"
    best = int(np.argmin(small.val.values))
    rise = small.last_val - float(small.val.values[best])
    if rise > 0:
        text += f". On {small.corpus} validation was lowest at step {small.val.steps[best]:,.0f} and rose by {rise:.2f}"
    if gaps["small text"] > gaps["large text"] + 0.2:
        more = gaps["small text"] - gaps["large text"]
        meaning = (
            f"The low training loss on {small.corpus} is memory: {more:.2f} nats more of it than on {large.corpus} "
            "do not carry over to text that the model has not seen."
        )
    else:
        meaning = "The gaps differ little, so neither text is known by heart yet: train for more steps."
    return text + ".", meaning


def _compare(runs: Mapping[str, RunFacts], new: str, old: str, what: str, form: str) -> str:
    """One measurement of two runs with their ratio; "" when either was not measured."""
    a, b = getattr(runs[new], what), getattr(runs[old], what)
    if not (math.isfinite(a) and math.isfinite(b) and b > 0):
        return ""
    return f"{form.format(a)} against {form.format(b)} ({a / b:.2f} times)"


def _cost(runs: Mapping[str, RunFacts], new: str, old: str) -> str:
    pace = _compare(runs, new, old, "tokens_per_s", "{:,.0f} tokens/s")
    memory = _compare(runs, new, old, "memory_gib", "{:.2f} GiB")
    return f"{new} compared with {old}: {', '.join(filter(None, (pace, memory))) or 'no pace and no memory measured'}"


def _largest_difference(first: RunFacts, second: RunFacts) -> tuple[float, int]:
    """Between two loss curves at the same step, and that step."""
    steps, a, b = np.intersect1d(first.train.steps, second.train.steps, return_indices=True)
    if not len(steps):
        return math.nan, 0
    difference = np.abs(first.train.values[a] - second.train.values[b])
    return float(difference.max()), int(steps[difference.argmax()])


def _read_attention(runs: Mapping[str, RunFacts]) -> tuple[str, str]:
    largest, step = _largest_difference(runs["sdpa"], runs["manual"])
    text = f"{_cost(runs, 'sdpa', 'manual')}; their losses differ by {largest:.2g} at most (step {step:,})."
    faster = runs["sdpa"].tokens_per_s > runs["manual"].tokens_per_s
    leaner = runs["sdpa"].memory_gib < runs["manual"].memory_gib
    gains = [word for word, won in (("faster", faster), ("leaner", leaner)) if won]
    return text, (
        f"The arithmetic is the same, its order is not. Here sdpa is {' and '.join(gains)}."
        if gains
        else "The arithmetic is the same, its order is not. Here sdpa gains nothing; a longer context would let it."
    )


def _read_precision(runs: Mapping[str, RunFacts]) -> tuple[str, str]:
    largest, step = _largest_difference(runs["bf16"], runs["fp32"])
    apart = runs["bf16"].train.end - runs["fp32"].train.end
    text = (
        f"{_cost(runs, 'bf16', 'fp32')}; the losses end at {runs['bf16'].train.end:.3f} and "
        f"{runs['fp32'].train.end:.3f}, and differ by {largest:.2g} at most (step {step:,})."
    )
    usual = runs["fp32"].train.noise
    close = abs(apart) <= usual
    meaning = (
        f"They end {abs(apart):.3f} apart, {'less' if close else 'more'} than a step differs from the next by chance "
        f"({usual:.3f}): {'bf16 learns as well as fp32 does' if close else 'precision made a difference'}."
    )
    faster = runs["bf16"].tokens_per_s > runs["fp32"].tokens_per_s
    return text, meaning + (" And it is faster here." if faster else " It is no faster here.")


NEIGHBOURHOOD = 50  # steps on either side, whose changes are what is usual there


def jump_at(train: Curve, step: int) -> tuple[float, float] | None:
    """How much the loss changed over the step after `step`, and what 95 of 100 steps around stay below.

    Returns:
        Both in nats; None when the losses on either side were not measured.
    """
    row = int(np.searchsorted(train.steps, step))
    if not (0 <= row < len(train) - 1) or train.steps[row] != step or train.steps[row + 1] != step + 1:
        return None
    changes = np.abs(np.diff(train.values))
    around = np.delete(changes, row)[max(0, row - NEIGHBOURHOOD) : row + NEIGHBOURHOOD]
    return (float(changes[row]), float(np.quantile(around, 0.95))) if len(around) else None


def _read_resume(runs: Mapping[str, RunFacts]) -> tuple[str, str]:
    (facts,) = runs.values()
    if not any(kind == "resumed" for _, kind in facts.went_on):
        return "", f"“{facts.name}” was completed without a stop and a resume; start it again for this exercise."
    jumps = {step: found for step, _ in facts.went_on if (found := jump_at(facts.train, step))}
    if not jumps:
        return "", f"“{facts.name}” has no losses on both sides of the step where it went on."
    worst = max(jumps, key=lambda one: jumps[one][0] - jumps[one][1])
    jump, usual = jumps[worst]
    text = (
        f"The run went on after {', '.join(f'step {one:,}' for one in jumps)}. The largest change there, compared with "
        f"what is usual, is {jump:.3f} nats after step {worst:,}; 95 of 100 steps there change by up to {usual:.3f}."
    )
    if jump <= usual:
        return text, "Nothing in the curve tells where it was stopped: weights, optimizer and data order came back."
    return text, (
        f"That is {jump - usual:.3f} nats more. One step in twenty is beyond it by chance; if the losses after it are "
        "higher too, something was not restored."
    )


_READERS: Mapping[str, Callable[[Mapping[str, RunFacts]], tuple[str, str]]] = {
    "smoke": _read_single,
    "first": _read_single,
    "scaling": _read_scaling,
    "memorisation": _read_memorisation,
    "attention": _read_attention,
    "precision": _read_precision,
    "resume": _read_resume,
}
