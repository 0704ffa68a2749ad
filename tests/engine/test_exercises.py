"""The guide's runs and exercises: they can be started as they are, find their runs, and say what was measured."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import TrainConfig, list_runs, load_run, resume_run, train
from engine.config import from_dict
from engine.curves import Curve
from engine.exercises import (
    EXERCISES,
    LEARNING,
    LEAST_STEPS,
    PROGRESSION,
    Exercise,
    RunFacts,
    facts_of,
    find_exercise,
    jump_at,
    mark,
    reading,
    runs_of,
    settings_for,
)
from engine.files import write_json
from engine.run import ActiveRun, Run, new_id, new_info
from engine.start import new_run, plan_run
from tests.stop_at import StopAt

every_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.key)
machines = pytest.mark.parametrize(("device", "cores"), [("cpu", 1), ("cpu", 2), ("cpu", 8), ("cpu", 128), ("cuda", 4)])


def facts(
    level: float = 4.0,
    *,
    steps: int = 200,
    val: dict[int, float] | None = None,
    rate: float = 1000.0,
    memory: float = 1.0,
    state: str = "completed",
    corpus: str = "verdict",
    on_gpu: bool = False,
    noise: float = 0.05,
    went_on: tuple[tuple[int, str], ...] = (),
) -> RunFacts:
    """A run whose training loss falls to a level within the first quarter."""
    at = np.arange(1, steps + 1)
    loss = level + (10.8 - level) * np.exp(-at * 20 / steps) + np.random.default_rng(0).normal(0, noise, steps)
    measured = val if val is not None else {steps: level + 0.2}
    validation = Curve(np.array(list(measured), dtype=float), np.array(list(measured.values())))
    return RunFacts("A run", state, on_gpu, corpus, Curve(at, loss), validation, rate, memory, 60.0, went_on)


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"-?\d[\d,]*\.?\d*", text)]


# ------------------------------------------------------------------------------------------------- declarations


def test_the_guides_runs_and_exercises_are_all_there() -> None:
    by_group = {group: [e.key for e in EXERCISES if e.group == group] for group in (PROGRESSION, LEARNING)}
    assert by_group[PROGRESSION] == ["smoke", "first", "scaling"]
    assert by_group[LEARNING] == ["memorisation", "attention", "precision", "resume"]
    assert len({e.key for e in EXERCISES}) == len(EXERCISES) == 7
    assert find_exercise("resume").actions and all(e.question.endswith("?") for e in EXERCISES)
    with pytest.raises(KeyError):
        find_exercise("nothing")


def test_the_smoke_test_is_the_guides_command() -> None:
    (run,) = settings_for(find_exercise("smoke"), "cpu", 2).runs
    assert run.settings == {"config": "nano", "corpus": "verdict", "epochs": 3.0, "device": "cpu"}


@every_exercise
@machines
def test_every_run_is_a_config_of_a_sensible_length(exercise: Exercise, device: str, cores: int) -> None:
    setup = settings_for(exercise, device, cores)
    assert setup.runs and len({run.role for run in setup.runs}) == len(setup.runs)
    for run in setup.runs:
        config = from_dict(dict(run.settings))
        assert config.device == device
        if exercise.key == "smoke":
            continue
        assert config.max_steps >= LEAST_STEPS
        assert device != "cpu" or f"{config.max_steps:,} steps" in setup.explanation
        tokens = config.max_steps * config.tokens_per_step
        relative = config.model.parameters / TrainConfig().model.parameters
        if device == "cpu":
            assert tokens * relative <= 500 * min(cores, 8) * 240 * 1.6 or config.max_steps == LEAST_STEPS
        else:
            assert config.tokens_per_step >= 1024 and config.max_steps >= 100
    if exercise.key in ("memorisation", "attention", "precision", "scaling"):
        assert len({run.settings["max_steps"] for run in setup.runs}) == 1, "or the comparison would not be one"


@every_exercise
def test_the_runs_of_a_comparison_differ_in_what_is_compared_only(exercise: Exercise) -> None:
    runs = settings_for(exercise, "cuda", 4).runs
    compared = {
        "scaling": {"config"},
        "memorisation": {"corpus", "epochs"},
        "attention": {"attention_impl"},
        "precision": {"precision"},
    }
    names = {name for run in runs for name in run.settings}
    differing = {name for name in names if len({repr(run.settings.get(name)) for run in runs}) > 1}
    assert differing == compared.get(exercise.key, set())


def test_a_slow_machine_leaves_the_largest_size_out_and_says_so() -> None:
    few, many = (settings_for(find_exercise("scaling"), "cpu", cores) for cores in (1, 8))
    assert (
        "medium" not in [run.role for run in few.runs] and "Left out" in few.explanation and "medium" in few.explanation
    )
    assert [run.role for run in many.runs] == ["nano", "small", "medium"] and "Left out" not in many.explanation


def test_corpora_that_are_not_here_are_named(add_corpus: Callable[[str, str], Path]) -> None:
    exercise = find_exercise("memorisation")
    assert settings_for(exercise, "cuda", 4).missing == ("tinystories", "tinystories_validation")
    short = settings_for(exercise, "cpu", 4)
    assert short.missing == ("tinystories_validation",) and "small download" in short.explanation
    assert settings_for(find_exercise("attention"), "cpu", 4).missing == ()
    add_corpus("tinystories", "Once upon a time there was a text. " * 50)
    assert settings_for(exercise, "cpu", 4).runs[1].settings["corpus"] == "tinystories", "the real one is here"


@pytest.mark.parametrize("key", ["attention", "precision", "resume"])
def test_runs_that_need_no_download_can_be_planned_here(key: str) -> None:
    for run in settings_for(find_exercise(key), "cpu", 2).runs:
        plan, _ = plan_run(from_dict(dict(run.settings)))
        assert plan.total_steps == run.settings["max_steps"]


# ------------------------------------------------------------------------------------------------- runs


def written(exercise: Exercise, role: str, created: str) -> Run:
    """A run folder that says it belongs to an exercise."""
    config = TrainConfig(corpus="tiny", context_length=32, batch_size=1, device="cpu")
    plan, _ = plan_run(config)
    run_id = new_id(plan.config)
    active = ActiveRun(run_id, plan, new_info(run_id, plan) | mark(exercise, role) | {"created": created}).open()
    active.log({"step": 1, "train_loss": 9.0, "tokens_per_s": 10.0, "memory_gib": 0.5, "elapsed_s": 1.0})
    active.log(
        {"step": 2, "train_loss": 8.0, "val_loss": 8.5, "tokens_per_s": 30.0, "memory_gib": 0.7, "elapsed_s": 2.0}
    )
    active.event("resumed", "Resumed at step 1.", 1)
    active.finish()
    active.set_state("completed")
    active.close()
    return active.reader


def test_the_newest_run_of_each_role_is_found() -> None:
    exercise = find_exercise("attention")
    new = written(exercise, "sdpa", "2026-02-01T00:00:00Z")
    written(exercise, "sdpa", "2026-01-01T00:00:00Z")
    written(find_exercise("precision"), "fp32", "2026-03-01T00:00:00Z")
    written(exercise, "of nobody", "2026-03-01T00:00:00Z")
    damaged = written(exercise, "manual", "2026-03-01T00:00:00Z")
    write_json(damaged.folder / "run.json", damaged.info | {"exercise": "damaged"})
    assert {role: run.id for role, run in runs_of(exercise, list_runs()).items()} == {"sdpa": new.id}
    manual = written(exercise, "manual", "2025-01-01T00:00:00Z")
    assert list(runs_of(exercise, list_runs())) == ["manual", "sdpa"]
    assert runs_of(exercise, reversed(list_runs()))["manual"].id == manual.id


def test_the_facts_are_what_the_folder_holds() -> None:
    run = written(find_exercise("resume"), "run", "2026-02-01T00:00:00Z")
    found = facts_of(run)
    assert (found.state, found.corpus, found.on_gpu, found.memory_gib, found.elapsed_s) == (
        "completed",
        "tiny",
        False,
        0.7,
        2,
    )
    assert found.tokens_per_s == 30.0 and found.last_val == 8.5 and found.went_on == ((1, "resumed"),)
    assert math.isnan(found.val_at(1)) and found.val_at(5) == 8.5


def test_a_damaged_run_has_no_facts_and_does_no_harm() -> None:
    run = written(find_exercise("smoke"), "run", "2026-02-01T00:00:00Z")
    (run.folder / "run.json").write_text("{")
    (run.folder / "metrics.parquet").write_bytes(b"no table")
    found = facts_of(run)
    assert len(found.train) == 0 and math.isnan(found.tokens_per_s)
    assert reading(find_exercise("smoke"), {"run": found}).missing


# ------------------------------------------------------------------------------------------------- readings


def complete(exercise: Exercise) -> dict[str, RunFacts]:
    return {run.role: facts(went_on=((100, "resumed"),)) for run in exercise.runs}


@every_exercise
def test_missing_and_unfinished_runs_are_named(exercise: Exercise) -> None:
    whole = complete(exercise)
    assert reading(exercise, whole).missing == ()
    for run in exercise.runs:
        without = {role: one for role, one in whole.items() if role != run.role}
        told = reading(exercise, without)
        assert (
            told.text == ""
            and len(told.missing) == 1
            and run.name in told.missing[0]
            and len(told.table) == len(without)
        )
        for state in ("running", "stopped", "failed"):
            unfinished = whole | {run.role: dataclasses.replace(whole[run.role], state=state)}
            (sentence,) = reading(exercise, unfinished).missing
            assert run.name in sentence and state in sentence and "step 200" in sentence


@every_exercise
def test_nothing_unmeasured_gets_into_a_text(exercise: Exercise) -> None:
    bare = {
        role: dataclasses.replace(one, val=Curve(np.empty(0), np.empty(0)), tokens_per_s=math.nan, memory_gib=math.nan)
        for role, one in complete(exercise).items()
    }
    told = reading(exercise, bare)
    assert not re.search(r"\bnan\b", " ".join([told.text, told.meaning, *told.missing]))
    assert told.table["tokens/s"].isna().all()


def test_limits_are_told_where_there_is_no_gpu() -> None:
    for exercise in EXERCISES:
        on_cpu = reading(exercise, complete(exercise))
        on_gpu = reading(
            exercise, {role: dataclasses.replace(one, on_gpu=True) for role, one in complete(exercise).items()}
        )
        assert on_cpu.limits == exercise.without_gpu and on_gpu.limits == ""
    assert "process" in find_exercise("attention").without_gpu and "slower" in find_exercise("precision").without_gpu


def test_the_table_has_a_row_a_run() -> None:
    exercise = find_exercise("attention")
    table = reading(exercise, {"sdpa": facts(memory=2.0), "manual": facts(memory=3.0)}).table
    assert list(table.index) == ["manual", "sdpa"]
    assert table.loc["manual", "memory GiB"] == 3.0 and table.loc["sdpa", "steps"] == 200
    assert table.loc["sdpa", "gap"] == pytest.approx(0.2, abs=0.05)


def test_a_single_run_is_read() -> None:
    exercise = find_exercise("smoke")
    told = reading(exercise, {"run": facts(3.0, val={200: 3.1})})
    assert "validation is 3.10" in told.text and "1,000 tokens/s" in told.text and told.meaning.startswith("It learns:")
    assert "memorisation" in reading(exercise, {"run": facts(1.0, val={200: 6.0})}).meaning
    assert "diagnosis" in reading(exercise, {"run": facts(10.8)}).meaning


def test_memorisation_is_told_from_generalisation() -> None:
    exercise = find_exercise("memorisation")
    small = facts(0.5, val={100: 5.5, 150: 5.8, 200: 6.25})
    large = facts(3.0, steps=300, val={100: 3.5, 200: 3.25, 300: 3.0}, corpus="tinystories")
    told = reading(exercise, {"small text": small, "large text": large})
    assert "At step 200" in told.text and "gap of 5.7" in told.text and "gap of 0.2" in told.text
    assert "lowest at step 100 and rose by 0.75" in told.text and "is memory: 5.5" in told.meaning
    alike = reading(exercise, {"small text": facts(3.0), "large text": facts(3.0, corpus="tinystories")})
    assert "differ little" in alike.meaning and "rose" not in alike.text


def test_attention_is_compared_by_ratios() -> None:
    exercise = find_exercise("attention")
    told = reading(exercise, {"manual": facts(rate=800, memory=4.0), "sdpa": facts(rate=1000, memory=3.0)})
    assert {1000, 800, 1.25, 3.0, 4.0, 0.75, 0} <= set(numbers(told.text)) and "faster and leaner" in told.meaning
    worse = reading(exercise, {"manual": facts(rate=1000, memory=3.0), "sdpa": facts(rate=800, memory=4.0)})
    assert "gains nothing" in worse.meaning


def test_precision_is_compared_in_loss_and_speed() -> None:
    exercise = find_exercise("precision")
    told = reading(exercise, {"fp32": facts(4.0), "bf16": facts(4.001, rate=2000)})
    assert "as well as fp32" in told.meaning and "faster here" in told.meaning and "no faster" not in told.meaning
    apart = reading(exercise, {"fp32": facts(4.0), "bf16": facts(4.6, rate=500)})
    assert "made a difference" in apart.meaning and "no faster" in apart.meaning and "0.6 at most" in apart.text


def test_scaling_is_compared_at_the_same_step() -> None:
    exercise = find_exercise("scaling")
    sizes = {
        "nano": facts(4.0, val={100: 4.5, 200: 4.25}, rate=1000),
        "small": facts(3.5, val={100: 4.0, 200: 3.5}, rate=250),
        "medium": facts(3.2, steps=100, val={50: 4.25, 100: 3.75}, rate=100),
    }
    told = reading(exercise, sizes)
    assert (
        "At step 100" in told.text
        and "medium is 0.75 nats better than nano" in told.meaning
        and "0.10 times" in told.meaning
    )
    two = reading(exercise, sizes, roles=["nano", "small"])
    assert "At step 200" in two.text and two.missing == () and "medium" not in two.text + two.meaning
    worse = reading(exercise, sizes | {"medium": facts(6.0)})
    assert "worse" in worse.meaning and "more steps" in worse.meaning
    assert "nothing to compare" in reading(exercise, sizes, roles=["nano"]).meaning


def test_a_smooth_resume_is_told_from_a_jump() -> None:
    exercise = find_exercise("resume")
    whole = facts(went_on=((60, "unpaused"), (100, "resumed")))
    told = reading(exercise, {"run": whole})
    assert "step 60, step 100" in told.text and "Nothing in the curve" in told.meaning
    broken = whole.train.values.copy()
    broken[100:] += 2.0
    jumped = reading(exercise, {"run": dataclasses.replace(whole, train=Curve(whole.train.steps, broken))})
    assert "after step 100" in jumped.text and "nats more" in jumped.meaning
    told_jump = re.search(r"is ([\d.]+) nats", jumped.text)
    assert told_jump and float(told_jump[1]) == pytest.approx(2.0, abs=0.3)
    (never,) = reading(exercise, {"run": facts(went_on=((60, "unpaused"),))}).missing
    assert "without a stop and a resume" in never


def test_the_jump_is_the_change_over_the_step() -> None:
    line = Curve(np.arange(1, 101), np.array([1.0] * 50 + [4.0] * 50))
    assert jump_at(line, 50) == (3.0, 0.0)
    assert jump_at(line, 0) is None and jump_at(line, 100) is None and jump_at(line, 500) is None
    gap = Curve(np.array([1, 2, 5, 6]), np.ones(4))
    assert jump_at(gap, 2) is None


@pytest.mark.usefixtures("small_nano")
def test_a_real_run_that_was_stopped_and_resumed_is_read() -> None:
    exercise = find_exercise("resume")
    short: dict[str, Any] = dict(epochs=100, max_steps=10, context_length=32, batch_size=1, sample_length=0)
    config = TrainConfig(corpus="tiny", device="cpu", eval_every=-1, **short)
    active = new_run(config)
    active.note(**mark(exercise, "run"))
    stopped = train(config, active, StopAt(5))
    assert stopped.state == "stopped"
    assert "stopped" in reading(exercise, {"run": facts_of(stopped)}).missing[0]
    train(config, resume_run(stopped.id))
    told = reading(exercise, {role: facts_of(run) for role, run in runs_of(exercise, list_runs()).items()})
    losses = load_run(stopped.id).metrics.set_index("step").train_loss
    assert told.missing == () and "The run went on after step 5." in told.text
    assert f"{abs(losses[6] - losses[5]):.3f} nats after step 5" in told.text
