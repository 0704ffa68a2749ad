"""What the diagnosis says of synthetic curves whose story is known, of healthy ones (nothing bad), of real runs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from engine import TrainConfig, train
from engine.config import SETTINGS, from_dict
from engine.curves import Curve, curve
from engine.diagnosis import SEVERITIES, UNIFORM, Finding, diagnose
from engine.metrics import METRICS

RECORDED = Path(__file__).parents[1] / "data" / "runs"
LADDER = (("uniform", UNIFORM), ("unigram", 6.6), ("bigram", 5.0), ("trigram", 4.6))
Floats = np.ndarray[Any, np.dtype[np.float64]]
noise_levels = pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
lengths = pytest.mark.parametrize("steps", [100, 1000, 30_000])
seeds = pytest.mark.parametrize("seed", range(8))


def table(train_loss: Floats, **columns: Any) -> pd.DataFrame:
    """Metrics with this training loss; other columns are quiet unless they are given."""
    n = len(train_loss)
    rng = np.random.default_rng(n)
    defaults = {
        "step": np.arange(1, n + 1),
        "train_loss": train_loss,
        "val_loss": np.full(n, np.nan),
        "grad_norm": rng.lognormal(-1, 0.3, n),
        "tokens_per_s": rng.normal(1000, 50, n),
    }
    return pd.DataFrame(defaults | columns)


def power_law(steps: int, floor: float = 3.0, speed: float = 0.5) -> Floats:
    """From the uniform loss towards a floor, the same curve at every length of run."""
    x = np.arange(steps) * 1000 / steps
    return floor + (UNIFORM - floor) * (1 + x / 10) ** -speed


def measured_every(values: Floats, every: int) -> Floats:
    """Values where validation is due, else NaN."""
    steps = np.arange(1, len(values) + 1)
    return np.where((steps % every == 0) | (steps == len(values)), values, np.nan)


def say(metrics: pd.DataFrame, config: Any = None, **how: Any) -> dict[str, Finding]:
    """The findings by kind, checked for what holds of all."""
    how.setdefault("total_steps", len(metrics))
    found = diagnose(metrics, TrainConfig(warmup_steps=20) if config is None else config, **how)
    ranks = [SEVERITIES.index(finding.severity) for finding in found]
    assert ranks == sorted(ranks) and found
    for finding in found:
        assert finding.evidence.endswith(".") and finding.advice.endswith(".") and "nan" not in finding.evidence
        assert set(finding.settings) <= SETTINGS.keys() and 0 <= finding.since <= max(1, metrics.step.max())
    kinds = {finding.kind: finding for finding in found}
    assert len(kinds) == len(found)
    return kinds


# ------------------------------------------------------------------------------------------------- healthy


def healthy(seed: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A run that goes well, of one of many shapes, lengths and noises."""
    rng = np.random.default_rng(seed)
    steps = int(10 ** rng.uniform(1.2, 4.5))
    x = np.linspace(0, 1, steps)
    floor, first = rng.uniform(0.5, 5.0), 1
    shapes: list[Callable[[], Floats]] = [
        lambda: power_law(steps, floor, rng.uniform(0.3, 1.0)),
        lambda: floor + (UNIFORM - floor) * np.exp(-x * rng.uniform(4, 40)),
        lambda: floor + (UNIFORM - floor) * 0.5 * (1 + np.cos(np.pi * x)),  # falls most in the middle
        lambda: (
            floor + (7 - floor) / (1 + np.exp(20 * (x - 0.4))) + (UNIFORM - 7) * np.exp(-x * 60)
        ),  # rests at unigram
    ]
    loss = shapes[seed % 4]()
    spread = rng.choice([0.01, 0.1, 0.3, 0.5]) / math.sqrt(rng.choice([1, 4]))  # a small batch; accumulated, half of it
    wobble = rng.standard_t(6, steps) if seed % 3 == 0 else rng.normal(0, 1, steps)
    if seed % 5 == 0:  # a branch: it begins with trained weights
        loss, first = loss[steps // 3 :], 1000 + steps // 3
    n = len(loss)
    every = max(1, n // 10)
    val = loss + rng.uniform(0, 0.6) + rng.normal(0, 0.01, n)
    metrics = table(
        loss + spread * wobble[:n],
        step=np.arange(first, first + n),
        val_loss=measured_every(val, every) if seed % 7 else np.full(n, np.nan),
        grad_norm=rng.lognormal(-0.7, 0.5, n),
        tokens_per_s=1000 * rng.lognormal(0, rng.choice([0.02, 0.2]), n),
    )
    dips = rng.integers(0, n, 1 + n // 200)
    metrics.loc[dips, "tokens_per_s"] *= 0.3  # another program, for a step
    return metrics, {"total_steps": first + n - 1, "ladder": LADDER if seed % 2 else ()}


@pytest.mark.parametrize("hundred", range(8))
def test_a_healthy_run_raises_no_alarm(hundred: int) -> None:
    for seed in range(hundred * 100, hundred * 100 + 100):
        metrics, how = healthy(seed)
        for part in (metrics, metrics.head(len(metrics) // 2 + 1)):  # also while it is under way
            found = say(part, {}, **how)
            alarms = {kind: finding for kind, finding in found.items() if kind not in ("well", "undecided")}
            assert not alarms, (seed, len(part), alarms)
        if len(metrics) >= 200 and seed % 5:
            assert "well" in found or "well" in say(metrics, {}, **how), (seed, len(metrics))


# ------------------------------------------------------------------------------------------------- each rule


@noise_levels
@seeds
@lengths
def test_a_flat_loss_is_found(steps: int, seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    level = [UNIFORM, 10.5, 8.0, 4.0][seed % 4]
    found = say(table(level + rng.normal(0, noise, steps)))
    finding = found["flat"]
    assert finding.severity == "problem" and "learning_rate" in finding.settings
    assert f"{steps:,}, {steps - 20:,} past the warm-up" in finding.evidence
    assert "well" not in found


@noise_levels
def test_a_loss_above_the_unigram_rung_is_found_when_the_ladder_is_known(noise: float) -> None:
    rng = np.random.default_rng(1)
    loss = 7.0 + (UNIFORM - 7.0) * np.exp(-np.arange(1000) / 30) + rng.normal(0, noise, 1000)
    assert "6.60" in say(table(loss), ladder=LADDER)["flat"].evidence
    assert "flat" not in say(table(loss)), "nobody knows what 7.0 means without a ladder"
    assert "flat" not in say(table(loss - 1), ladder=LADDER), "it is below the unigram"
    easier = measured_every(loss - 1, 100)
    assert "flat" not in say(table(loss, val_loss=easier), ladder=LADDER), "rungs are losses of the validation part"
    assert "flat" not in say(table(loss).head(150), ladder=LADDER), "it may only be resting"


def test_a_flat_loss_is_no_news_during_the_warm_up() -> None:
    flat = table(np.full(100, UNIFORM))
    assert "flat" in say(flat, TrainConfig(warmup_steps=10))
    assert say(flat, TrainConfig(warmup_steps=90)).keys() == {"undecided"}
    assert say(flat, TrainConfig(warmup_steps=-1), total_steps=10_000).keys() == {"undecided"}  # 200 steps, by itself


@pytest.mark.parametrize(("rate", "word"), [(1e-6, "low"), (0.5, "high"), (3e-3, "corpus")])
def test_the_advice_knows_the_usual_rate(rate: float, word: str) -> None:
    assert word in say(table(np.full(200, UNIFORM)), TrainConfig(learning_rate=rate, warmup_steps=10))["flat"].advice


@noise_levels
@seeds
@lengths
def test_spikes_are_counted_with_the_gradient_beside(steps: int, seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    loss = power_law(steps) + rng.normal(0, noise, steps)
    norm = rng.lognormal(-1, 0.3, steps)
    at = np.array([0.4, 0.6, 0.8]) * steps
    for start in at.astype(int):
        lasts = 1 if seed % 2 else min(20, steps // 20)
        loss[start : start + lasts] += 5 * np.linspace(1, 0.4, lasts)
        norm[start] *= 40
    finding = say(table(loss, grad_norm=norm))["spikes"]
    assert finding.severity == "warning" and "3 spikes" in finding.evidence and "gradient norm" in finding.evidence
    assert finding.since == int(at[0]) + 1


def test_an_odd_batch_is_no_spike() -> None:
    loss = power_law(2000) + np.random.default_rng(0).normal(0, 0.2, 2000)
    loss[1500] += 2.5
    assert "spikes" not in say(table(loss)), "its gradient is as short as any"
    norm = np.full(2000, 0.4)
    norm[1500] = 8.0
    assert "One spike" in say(table(loss, grad_norm=norm))["spikes"].evidence


def test_fp16_is_named_as_a_possible_cause_of_spikes() -> None:
    loss = power_law(500)
    loss[400:410] += 4
    assert "precision" in say(table(loss), TrainConfig(precision="fp16", warmup_steps=20))["spikes"].settings
    assert "precision" not in say(table(loss))["spikes"].settings


@noise_levels
@seeds
@lengths
def test_divergence_is_found(steps: int, seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    turn = int(steps * [0.3, 0.5, 0.7, 0.02][seed % 4])
    after = np.arange(steps - turn) / (steps - turn)
    up = [after * 6, np.minimum(1, after * 30) * 4, 3 * np.sqrt(after), 10 * after**2][seed // 2]
    loss = power_law(steps)
    loss[turn:] = loss[turn] + up
    found = say(table(loss + rng.normal(0, noise, steps)))
    finding = found["diverges"]
    assert finding.severity == "problem" and found.keys().isdisjoint({"well", "flat", "memorises"})
    assert turn * 0.8 <= finding.since <= turn + 0.6 * (steps - turn) + 5


def test_a_divergence_that_came_back_is_told_too() -> None:
    loss = power_law(400)
    loss[100:220] += 6
    assert "came back" in say(table(loss))["diverges"].title


@pytest.mark.parametrize("last", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_a_divergence(last: float) -> None:
    loss = power_law(50)
    loss[-1] = last
    assert "step 49" in say(table(loss))["diverges"].evidence
    assert "diverges" in say(table(power_law(50)), diverged=True), "the gradient was not finite"
    assert say(table(np.array([last])))["diverges"].severity == "problem"


@noise_levels
@seeds
@pytest.mark.parametrize("steps", [150, 1000, 30_000])
def test_memorisation_is_found_with_its_beginning(steps: int, seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    loss = power_law(steps, floor=0.5)
    turn = int(steps * rng.uniform(0.3, 0.6))
    rise = rng.uniform(0.3, 2.0)
    val = power_law(steps, floor=4.0)
    val[turn:] = val[turn] + rise * np.linspace(0, 1, steps - turn) + rng.normal(0, 0.01, steps - turn)
    every = steps // 20
    finding = say(table(loss + rng.normal(0, noise, steps), val_loss=measured_every(val, every)))["memorises"]
    assert finding.severity == "warning" and "dropout" in finding.settings
    assert abs(finding.since - turn) <= 1.5 * every
    assert f"risen by {rise:.1f}"[:-2] in finding.evidence and "gap" in finding.evidence


def test_learning_that_validation_takes_no_part_in_is_memorisation_too() -> None:
    loss = power_law(1000, floor=0.5, speed=1.0)
    val = np.maximum(power_law(1000, speed=1.0), 5.0)
    finding = say(table(loss, val_loss=measured_every(val, 50)))["memorises"]
    assert "as low at step" in finding.evidence


def test_a_wavering_validation_is_no_memorisation() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        loss = power_law(2000)
        val = measured_every(loss + 0.2 + rng.normal(0, 0.02, 2000), 100)
        assert "memorises" not in say(table(loss, val_loss=val))


@lengths
def test_clipping_all_the_time_is_noted(steps: int) -> None:
    norm = np.random.default_rng(0).lognormal(1, 0.2, steps)
    found = say(table(power_law(steps), grad_norm=norm))
    assert found["clipping"].severity == "note" and "100%" in found["clipping"].evidence and "well" in found
    assert "clipping" not in say(table(power_law(steps), grad_norm=norm), TrainConfig(grad_clip=0, warmup_steps=20))
    assert "clipping" not in say(table(power_law(steps), grad_norm=norm), TrainConfig(grad_clip=3.0, warmup_steps=20))


@noise_levels
def test_a_vanished_gradient_is_a_problem_only_while_there_is_something_to_learn(noise: float) -> None:
    rng = np.random.default_rng(0)
    norm = np.where(np.arange(400) < 200, 0.5, 1e-6) * rng.lognormal(0, 0.5, 400)
    loss = np.maximum(power_law(400), 6.0) + rng.normal(0, noise, 400)
    finding = say(table(loss, grad_norm=norm))["vanishing"]
    assert finding.severity == "problem" and abs(finding.since - 200) <= 5
    assert "vanishing" not in say(table(loss - 5.5, grad_norm=norm)), "learned by heart"


@seeds
@lengths
def test_a_slowdown_that_lasts_is_found(steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rate = 20_000 * rng.lognormal(0, 0.1, steps)
    turn = int(steps * rng.uniform(0.3, 0.8))
    whole = table(power_law(steps), tokens_per_s=rate)
    assert "slowdown" not in say(whole)
    rate[turn:] *= 0.4
    finding = say(table(power_law(steps), tokens_per_s=rate))["slowdown"]
    assert abs(finding.since - turn) <= max(5, steps // 20)
    rate[int(turn + (steps - turn) * 0.8) :] /= 0.4
    assert "slowdown" not in say(table(power_law(steps), tokens_per_s=rate)), "it is over"


def test_small_batches_are_noted_on_a_gpu_and_never_on_a_cpu() -> None:
    rate = np.full(100, 90_000.0)  # an H100 with nano and 4 × 256 tokens, without graphs: 11 ms a pass
    config = TrainConfig(batch_size=4, warmup_steps=20, compile="off")
    metrics = table(power_law(100), tokens_per_s=rate)
    finding = say(metrics, config, device="cuda:0")["small_batches"]
    assert finding.severity == "note" and "batch size of 8" in finding.advice and "11.4 ms" in finding.evidence
    assert "small_batches" not in say(metrics, config, device="cpu")
    assert "small_batches" not in say(metrics, TrainConfig(batch_size=4), device="cuda")  # a graph waits for no host
    busy = TrainConfig(batch_size=64, warmup_steps=20, compile="off")  # 180 ms a pass
    assert "small_batches" not in say(metrics, busy, device="cuda")


def test_passes_of_nano_on_an_h100_are_told_from_those_of_larger_batches() -> None:
    record = json.loads((RECORDED.parent / "h100_grid.json").read_text())
    alike = {"config": "nano", "optimizer": "adamw", "attention_impl": "sdpa", "gradient_checkpointing": False}
    rows = [row for row in record["grid"] if alike.items() <= row.items()]
    assert len(rows) == 3  # precisions
    for row in rows:
        metrics = table(power_law(100), tokens_per_s=np.full(100, float(row["tokens_per_s"])))
        assert "small_batches" in say(metrics, TrainConfig(batch_size=record["batch_size"]), device="cuda")
        assert "small_batches" not in say(metrics, TrainConfig(batch_size=8 * record["batch_size"]), device="cuda")


# ------------------------------------------------------------------------------------------------- any table


def test_a_run_that_is_over_is_not_told_to_go_on() -> None:
    for metrics in (table(power_law(1000)), table(power_law(6))):
        (over,), (going,) = say(metrics).values(), say(metrics, total_steps=2000).values()
        assert over.kind == going.kind and over.evidence == going.evidence
        assert "Let it" in going.advice and "Let it" not in over.advice


def test_what_goes_well_is_told_with_its_rung() -> None:
    val = measured_every(power_law(1000), 50)
    finding = say(table(power_law(1000), val_loss=val), ladder=LADDER)["well"]
    assert finding.severity == "good" and "below the trigram rung (4.60) since step" in finding.evidence
    first = int(np.arange(1, 1001)[np.nan_to_num(val, nan=99) <= 4.6][0])
    assert f"since step {first:,}" in finding.evidence
    assert "rung" not in say(table(power_law(1000), val_loss=val))["well"].evidence
    assert "bigram" in say(table(power_law(1000, floor=4.2)), ladder=LADDER)["well"].evidence, "of the training loss"


def test_validation_is_compared_with_training_where_it_was_measured() -> None:
    losses = power_law(200)
    val = np.where(np.arange(1, 201) == 100, losses, np.nan)  # the training loss fell by 0.3 since
    evidence = say(table(losses, val_loss=val))["well"].evidence
    assert f"validation {losses[99]:.2f}, +0.0" in evidence or f"validation {losses[99]:.2f}, -0.0" in evidence


@pytest.mark.parametrize("rows", range(10))
def test_a_few_rows_are_too_few(rows: int) -> None:
    losses = power_law(1000)[:rows]
    found = say(table(losses), total_steps=1000)
    assert found.keys() == {"undecided"} and "Too short" in found["undecided"].title
    told = f"went from {losses[0]:.2f} to {losses[-1]:.2f}." if rows else "0 steps are measured"
    assert told in found["undecided"].evidence


def test_an_empty_table_of_any_kind() -> None:
    for empty in (pd.DataFrame(), METRICS.empty_table().to_pandas(), pd.DataFrame({"step": []})):
        (finding,) = diagnose(empty, {}, total_steps=0)
        assert finding.kind == "undecided" and "0 steps" in finding.evidence


def test_missing_rows_and_columns_are_borne() -> None:
    rng = np.random.default_rng(0)
    metrics = table(power_law(2000), val_loss=measured_every(power_law(2000), 100))
    for name in metrics.columns.drop("step"):
        metrics.loc[rng.integers(0, 1999, 300), name] = rng.choice([math.nan, math.inf, -math.inf])
    assert say(metrics).keys() == {"well"}
    assert say(metrics[["step", "train_loss"]]).keys() == {"well"}
    assert say(metrics.assign(grad_norm=None, val_loss=None, tokens_per_s=None)).keys() == {"well"}
    assert say(metrics.assign(train_loss=math.nan)).keys() == {"diverges"}


@pytest.mark.parametrize(
    "config", [{}, {"config": "gone"}, {"config": 3, "grad_clip": None, "batch_size": "4", "warmup_steps": math.nan}]
)
def test_a_damaged_config_is_borne(config: dict[str, Any]) -> None:
    assert "well" in say(table(power_law(1000)), config)


def test_a_million_steps_take_no_time() -> None:
    n = 1_000_000
    rng = np.random.default_rng(0)
    loss = power_law(n) + rng.normal(0, 0.1, n)
    metrics = table(loss, val_loss=measured_every(power_law(n), 500), grad_norm=rng.lognormal(1, 0.3, n))
    metrics = pd.DataFrame({name: metrics[name].to_numpy() for name in metrics})
    took = []
    for _ in range(7):
        started = time.process_time()  # of this process alone: others may be at work
        found = diagnose(metrics, TrainConfig(), total_steps=n, ladder=LADDER, device="cuda")
        took.append(time.process_time() - started)
    assert {finding.kind for finding in found} >= {"well", "clipping"}
    assert min(took) < 0.05


def test_the_numbers_of_a_curve() -> None:
    some = curve(pd.DataFrame({"step": [1, 2, 3, 4], "x": [5.0, math.nan, 3.0, 1.0]}), "x")
    assert some.steps.tolist() == [1, 3, 4] and some.end == 3.0 and some.last_step == 4
    assert some.stays_below(3.0) == 3 and some.stays_below(0.5) is None and some.after(1).values.tolist() == [3.0, 1.0]
    assert some.blocks(2).steps.tolist() == [3]
    line = Curve(np.arange(10_000.0), np.random.default_rng(0).normal(0, 0.2, 10_000))
    assert line.noise == pytest.approx(0.2, rel=0.05) and len(line.blocks(20)) == 20


# ------------------------------------------------------------------------------------------------- real runs


def recorded(name: str) -> dict[str, Finding]:
    """What is said of a run of tests/record_runs.py."""
    stored = pq.read_table(RECORDED / f"{name}.parquet")
    facts = json.loads(stored.schema.metadata[b"run"])
    how = {key: facts[key] for key in ("ladder", "total_steps", "diverged")}
    return say(stored.to_pandas(), from_dict(facts["config"]), device=facts["config"]["device"], **how)


BAD = {"diverges", "flat", "vanishing", "memorises", "spikes"}


@pytest.mark.parametrize(
    "name", ["smoke", "one-pass", "one-sequence-a-step", "accumulated", "always-clipped", "no-clipping", "rate-high"]
)
def test_real_healthy_runs_raise_no_alarm(name: str) -> None:
    found = recorded(name)
    assert found.keys().isdisjoint(BAD) and "well" in found
    assert "diverged" not in found["well"].evidence and "→" in found["well"].evidence


@pytest.mark.parametrize("name", ["thirty-epochs", "overfit", "overfit-verdict"])
def test_real_memorisation_is_found(name: str) -> None:
    found = recorded(name)
    assert "memorises" in found and found.keys() & BAD == {"memorises"}


@pytest.mark.parametrize(("name", "kind"), [("rate-too-high", "diverges"), ("rate-too-low", "flat")])
def test_real_wrong_learning_rates_are_problems(name: str, kind: str) -> None:
    found = recorded(name)
    assert found[kind].severity == "problem" and "learning_rate" in found[kind].settings and "well" not in found


def test_a_real_slowdown_is_found() -> None:
    found = recorded("no-clipping")  # the machine was asked for much else from step 116 on
    assert found["slowdown"].since == 116 and "well" in found


def test_a_run_that_is_trained_here_and_now_goes_well() -> None:
    config = TrainConfig(epochs=9, max_steps=16, context_length=64, batch_size=2, sample_length=0, eval_every=8)
    run = train(config)
    found = say(run.metrics, run.config, total_steps=run.total_steps)
    assert "well" in found and found.keys().isdisjoint(BAD)
