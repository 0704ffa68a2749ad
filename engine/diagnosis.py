"""What a run's curves say: findings with their evidence, and what to change.

Each rule is a function of the curves, small enough to be checked against what one sees; its thresholds stand above it
with their reasons. A rule says nothing rather than something doubtful. Thresholds that ought to grow with the noise of
the curve are given in standard deviations of that noise.

Pure and quick: no files, no torch; a million steps take under 50 ms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from engine.config import SETTINGS, VOCABULARY_SIZE, TrainConfig
from engine.curves import Curve, curve, median
from engine.metrics import Columns
from engine.plan import automatic_warmup

SEVERITIES = ("problem", "warning", "note", "good")  # in the order of the findings
UNIFORM = math.log(VOCABULARY_SIZE)  # nats per token of a model that has learned nothing


@dataclass(frozen=True)
class Finding:
    """Something that the curves say.

    Attributes:
        kind: the rule that says it; at most one finding of each.
        severity: one of `SEVERITIES`.
        title: a few words.
        evidence: a sentence with the measured numbers.
        advice: a sentence: what to do, or try.
        settings: names of the settings that it concerns.
        since: the step from which on it is so.
    """

    kind: str
    severity: str
    title: str
    evidence: str
    advice: str
    settings: tuple[str, ...]
    since: int


@dataclass(frozen=True)
class Curves:
    """All that the rules look at.

    Attributes:
        warmup: the last step at which the learning rate still rises.
        fresh: whether the curve begins with untrained weights; a branch's does not.
        over: whether the run's last step is measured.
    """

    config: TrainConfig
    train: Curve
    val: Curve
    norm: Curve
    rate: Curve
    ladder: tuple[tuple[str, float], ...]
    warmup: int
    fresh: bool
    diverged: bool
    over: bool
    device: str


def diagnose(
    metrics: pd.DataFrame | Columns,
    config: TrainConfig | Mapping[str, Any],
    *,
    ladder: Sequence[tuple[str, float]] = (),
    total_steps: int,
    diverged: bool = False,
    device: str = "cpu",
) -> list[Finding]:
    """Read a run's curves.

    Args:
        metrics: columns of `engine.metrics.METRICS`, one row a step, by step; of any length. NaN is taken for "not
            measured", but for a training loss that ends in it.
        config: the run's settings; of a mapping, what is damaged is taken to be the default.
        ladder: name and validation loss (nats per token) of the rungs of the run's text; () when they are not known.
        total_steps: of the whole run.
        diverged: whether the run was ended because something was not finite.
        device: that it trains on: `cpu`, `cuda`, `cuda:1`.

    Returns:
        The findings, problems first; at most one of a kind.
    """
    curves = _read(metrics, config, ladder, total_steps, diverged, device)
    found = [finding for rule in RULES if (finding := rule(curves))]
    if found and found[0].kind == "diverges":  # which explains whatever else the losses do
        found = [finding for finding in found if finding.kind not in ABOUT_LOSSES]
    if not any(finding.kind in ("diverges", *ABOUT_LOSSES) for finding in found):
        found.append(goes_well(curves) or undecided(curves))
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def _read(
    metrics: pd.DataFrame | Columns,
    config: TrainConfig | Mapping[str, Any],
    ladder: Sequence[tuple[str, float]],
    total_steps: int,
    diverged: bool,
    device: str,
) -> Curves:
    settings = config if isinstance(config, TrainConfig) else _settings(config)
    train = curve(metrics, "train_loss")
    warmup = settings.warmup_steps if settings.warmup_steps >= 0 else automatic_warmup(max(1, total_steps))
    losses = np.asarray(metrics["train_loss"]) if "train_loss" in metrics else np.empty(0)
    ended_in_nan = len(losses) > 0 and not _is_finite(losses[-1])
    return Curves(
        config=settings,
        train=train,
        val=curve(metrics, "val_loss"),
        norm=curve(metrics, "grad_norm"),
        rate=curve(metrics, "tokens_per_s"),
        ladder=tuple((name, loss) for name, loss in ladder if math.isfinite(loss)),
        warmup=warmup,
        fresh=len(train) > 0 and train.steps[0] <= FIRST_STEPS,
        diverged=diverged or ended_in_nan,
        over=len(train) > 0 and train.last_step >= total_steps,
        device=device,
    )


FIRST_STEPS = 3  # a curve that begins by then is one of fresh weights, even if its first row was lost


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and math.isfinite(value)


def _settings(values: Mapping[str, Any]) -> TrainConfig:
    kinds = {name: type(field.default) for name, field in SETTINGS.items()}
    good: dict[str, Any] = {
        name: value for name, value in values.items() if name in kinds and type(value) is kinds[name]
    }
    if good.get("config", "nano") not in SETTINGS["config"].metadata["choices"]:
        del good["config"]
    return TrainConfig(**good)


# ------------------------------------------------------------------------------------------------- divergence

CLIMB_BLOCKS, CLIMB_LEAST = 20, 5  # the smoothed loss: medians of a twentieth of the run, of five steps at least
CLIMB = 0.75  # nats above the minimum before: more than a schedule, a new chapter or a passing spike does to it
CLIMB_NOISE = 6  # standard deviations of such a median: of 20 of them the lowest is itself some 2 too low
CLIMB_STAYS = 0.2  # of the run spent so far up counts as divergence even if a falling learning rate brought it back

COARSE = {  # precision -> what it may do
    "fp16": "fp16 overflows sooner than bf16 and fp32",
    "fp8": "fp8 rounds more coarsely than bf16 and fp32",
}


def diverges(c: Curves) -> Finding | None:
    """The loss is not finite, or the smoothed loss climbs far above its minimum and stays there."""
    coarse = c.config.precision in COARSE
    seen = _ended(c) if c.diverged else _climb(c)
    if seen is None:
        return None
    title, evidence, since = seen
    lower = f"a learning rate below {c.config.learning_rate:g}" if c.config.learning_rate else "a lower learning rate"
    advice = f"Branch from a checkpoint before it, or start anew, with {lower} and a longer warm-up" + (
        f"; {COARSE[c.config.precision]}." if coarse else "."
    )
    settings = ("learning_rate", "warmup_steps", "grad_clip") + ("precision",) * coarse
    return Finding("diverges", "problem", title, evidence, advice, settings, since)


def _ended(c: Curves) -> tuple[str, str, int]:
    step = c.train.last_step
    last = f"; the last finite loss was {c.train.values[-1]:.2f} at step {step:,}" if len(c.train) else ""
    return "Training diverged", f"The loss or the gradient is no finite number any more{last}.", step


def _climb(c: Curves) -> tuple[str, str, int] | None:
    smooth = c.train.blocks(CLIMB_BLOCKS, CLIMB_LEAST)
    if len(smooth) < 3:
        return None
    noise_of_median = 1.25 * c.train.noise / math.sqrt(len(c.train) / len(smooth))
    lowest = np.minimum.accumulate(smooth.values)
    up = np.flatnonzero(smooth.values > lowest + max(CLIMB, CLIMB_NOISE * noise_of_median))
    still = len(up) > 0 and up[-1] == len(smooth) - 1
    if not still and len(up) < max(2, CLIMB_STAYS * len(smooth)):
        return None
    worst = int(np.argmax((smooth.values - lowest)[up]))
    bottom, since, now = lowest[up[0]], int(smooth.steps[up[0]]), smooth.values[-1]
    evidence = f"The smoothed training loss was down at {bottom:.2f}, left that at step {since:,} and climbed to "
    evidence += f"{smooth.values[up[worst]]:.2f} around step {smooth.steps[up[worst]]:,.0f}; now it is {now:.2f}."
    return "Training diverges" if still else "Training diverged, then came back", evidence, since


# ------------------------------------------------------------------------------------------------- flat or high

FLAT_AFTER = 30  # steps at or past the end of the warm-up, before which a flat curve says nothing
NEAR_UNIFORM = 0.5  # nats below ln V: an hour-old model has left that behind; frequencies alone take some 4 off
FALL = 0.3  # nats: a curve that fell less since its start has not fallen to speak of
STUCK_SHARE = 0.5  # of the steps after the warm-up, over which a loss above the unigram rung should have fallen ...
STUCK_FALL = 0.1  # ... by so many nats at least
STUCK_AFTER = 200  # steps after the warm-up: a small batch pauses at the unigram's loss for some hundred on its way


def flat(c: Curves) -> Finding | None:
    """The training loss is flat or high although the warm-up is over."""
    steps_after = c.train.last_step - max(c.warmup, 0)
    if len(c.train) < FLAT_AFTER or steps_after < FLAT_AFTER:
        return None
    end = c.train.end
    fall = c.train.level_at(c.train.steps[0]) - end
    first_fall = c.train.start - end  # of three steps only, so it takes its noise along
    if end > UNIFORM - NEAR_UNIFORM:
        title, seen = "Nothing is learned", f"still near the {UNIFORM:.2f} of guessing blindly (ln {VOCABULARY_SIZE:,})"
    elif (
        c.fresh
        and fall < FALL + 2 * c.train.noise / math.sqrt(c.train.end_rows)
        and first_fall < FALL + 2 * c.train.noise
    ):
        title, seen = "The loss does not fall", f"only {fall:.2f} nats below its start"
    elif note := _stuck(c, end, steps_after):
        title, seen = "Stuck above word frequencies", note
    else:
        return None
    evidence = (
        f"At step {c.train.last_step:,}, {steps_after:,} past the warm-up, the training loss is {end:.2f}: {seen}."
    )
    settings = ("learning_rate", "warmup_steps", "corpus")
    return Finding("flat", "problem", title, evidence, _flat_advice(c), settings, max(1, c.warmup))


def _stuck(c: Curves, end: float, steps_after: int) -> str:
    unigram = dict(c.ladder).get("unigram", math.inf)
    before = c.train.level_at(c.train.last_step - STUCK_SHARE * steps_after)
    fell = before - end
    noise = 3 * c.train.noise / math.sqrt(c.train.end_rows)
    measured = float(c.val.values[-1]) if len(c.val) else end  # rungs are losses of the validation part
    if steps_after < STUCK_AFTER or min(end, measured) <= unigram or fell >= STUCK_FALL + noise:
        return ""
    return f"above the {unigram:.2f} that word frequencies alone reach, and it fell by {fell:.2f} in the last half"


def _flat_advice(c: Curves) -> str:
    usual = c.config.preset.learning_rate
    rate = c.config.learning_rate
    if rate and rate < usual / 3:
        return f"The learning rate of {rate:g} is low; {c.config.config} usually takes {usual:g}. Try that."
    if rate > usual * 3:
        return f"The learning rate of {rate:g} is high; {c.config.config} usually takes {usual:g}. Try that."
    return f"Look at the corpus (is it text?), and try a learning rate a third of {rate or usual:g}, or three times it."


# ------------------------------------------------------------------------------------------------- vanishing gradient

VANISHED = 1e-3  # gradient norm: a GPT that learns has 0.1 to 3, whatever its size; below this AdamW follows rounding
STILL_HIGH = 2.0  # nats: a text that is known by heart has no gradient either, and a loss below this


def vanishing(c: Curves) -> Finding | None:
    """The gradient is all but zero although there is much to learn."""
    if len(c.norm) < 2 * CLIMB_LEAST or not (c.norm.end < VANISHED and c.train.end > STILL_HIGH):
        return None
    since = c.norm.blocks(200).stays_below(VANISHED) or c.norm.last_step
    evidence = (
        f"The gradient norm has been below {VANISHED:g} since step {since:,} and is {c.norm.end:.1e} now, while the "
        f"training loss is still {c.train.end:.2f}."
    )
    advice = "The model is stuck where nothing pulls at it: start anew with a lower learning rate and a longer warm-up."
    settings = ("learning_rate", "warmup_steps", "precision")
    return Finding("vanishing", "problem", "The gradient vanishes", evidence, advice, settings, since)


# ------------------------------------------------------------------------------------------------- memorisation

RISE = 0.1  # nats over the lowest validation loss: several times what it wavers by from one measurement to the next
RISE_FALL = 0.1  # nats the training loss fell meanwhile; were it to rise too, it would be no memorisation
STALL_FALL = 0.5  # nats the training loss fell since validation was first as low as now: learned, but not of use


def _gap(c: Curves) -> float:
    """How far validation was above training when it was measured last: the training loss has fallen since."""
    return float(c.val.values[-1]) - c.train.level_at(c.val.steps[-1])


def memorises(c: Curves) -> Finding | None:
    """Validation rises, or has long stood still, while training falls."""
    if len(c.val) < 3 or not len(c.train):
        return None
    now, best = float(c.val.values[-1]), int(np.argmin(c.val.values))
    rise, later = now - float(c.val.values[best]), c.val.values[best + 1 :]
    rises = rise >= RISE and len(later) >= 2 and later[-2] >= c.val.values[best] + RISE / 2
    since = int(c.val.steps[best if rises else int(np.argmax(c.val.values <= now))])
    fell = c.train.level_at(since) - c.train.end
    uncertainty = (2 if rises else 4) * c.train.noise / math.sqrt(c.train.end_rows)  # of the difference of two medians
    if fell < (RISE_FALL if rises else STALL_FALL) + uncertainty:
        return None
    then = f"lowest at step {since:,} ({c.val.values[best]:.2f}) and has risen by {rise:.2f} to {now:.2f} since"
    evidence = (
        f"Validation was {then if rises else f'as low at step {since:,} as it is now ({now:.2f})'}, while the training "
        f"loss fell by {fell:.2f} to {c.train.end:.2f}: a gap of {_gap(c):.2f} nats."
    )
    advice = (
        f"The model learns this text by heart: take the checkpoint nearest to step {since:,}, train for fewer epochs, "
        "use a larger corpus, or raise dropout and weight decay."
    )
    settings = ("epochs", "corpus", "dropout", "weight_decay", "save_every")
    return Finding("memorises", "warning", "Memorises", evidence, advice, settings, since)


# ------------------------------------------------------------------------------------------------- spikes

SPIKE_BLOCKS, SPIKE_LEAST = 500, 8  # a step is compared with the level of the stretch of steps before its own
SPIKE = 0.75  # nats above that level,
SPIKE_NOISE = 8  # and standard deviations: a normal variable never is so far out
SPIKE_APART = 10  # steps between two spikes; what is nearer is one
SPIKE_LASTS = 3  # such steps make an odd batch impossible. A shorter spike can be one, unless ...
SPIKE_NORM = 5  # ... its gradient is so many times the usual, ...
SPIKE_EXTREME = 30  # ... or it is so many standard deviations high: small batches of real text have heavy tails


def spikes(c: Curves) -> Finding | None:
    """Single steps, or stretches of them, with a loss far above the steps before."""
    found = [spike for spike in _spikes_of(c.train) if _is_instability(c, *spike)]
    if not found:
        return None
    begin, worst = max(((first, top) for first, top, _, _ in found), key=lambda spike: c.train.values[spike[1]])
    before = median(c.train.values[max(0, begin - SPIKE_LEAST) : begin])
    since, step = int(c.train.steps[found[0][0]]), int(c.train.steps[worst])
    many = "One spike, at" if len(found) == 1 else f"{len(found):,} spikes since"
    evidence = (
        f"{many} step {since:,}; the highest went from {before:.2f} to {c.train.values[worst]:.2f} "
        f"at step {step:,}{_norm_beside(c.norm, step)}."
    )
    coarse = c.config.precision in COARSE
    advice = "The learning rate is likely too high for these batches: lower it, warm up for longer, or clip harder"
    advice += f"; {c.config.precision} can be the cause too: try bf16." if coarse else "."
    settings = ("learning_rate", "warmup_steps", "grad_clip", "batch_size") + ("precision",) * coarse
    return Finding("spikes", "warning", "The loss spikes", evidence, advice, settings, since)


def _spikes_of(train: Curve) -> list[tuple[int, int, int, float]]:
    """Rows of each spike's first and highest step, how many steps it has, and how far it sticks out."""
    size = max(SPIKE_LEAST, -(-len(train) // SPIKE_BLOCKS))
    blocks = train.blocks(SPIKE_BLOCKS, SPIKE_LEAST)
    if len(blocks) < 2:
        return []
    left_out = len(train) - size * len(blocks)
    excess = train.values[left_out + size :].reshape(-1, size) - blocks.values[:-1, None]
    flat_excess = excess.ravel()
    out = np.flatnonzero(flat_excess > max(SPIKE, SPIKE_NOISE * train.noise))
    groups = np.split(out, np.flatnonzero(np.diff(out) > SPIKE_APART) + 1) if len(out) else []
    tops = [group[np.argmax(flat_excess[group])] for group in groups]
    offset = left_out + size
    return [
        (offset + int(group[0]), offset + int(top), len(group), float(flat_excess[top]))
        for group, top in zip(groups, tops, strict=True)
    ]


def _is_instability(c: Curves, first: int, top: int, lasts: int, height: float) -> bool:
    if lasts >= SPIKE_LASTS or height > max(2 * SPIKE, SPIKE_EXTREME * c.train.noise):
        return True
    norm = _norm_at(c.norm, c.train.steps[top])
    return norm is not None and norm > SPIKE_NORM * c.norm.middle


def _norm_at(norm: Curve, step: float) -> float | None:
    row = int(np.searchsorted(norm.steps, step))
    return float(norm.values[row]) if row < len(norm) and norm.steps[row] == step else None


def _norm_beside(norm: Curve, step: int) -> str:
    value = _norm_at(norm, step)
    return "" if value is None else f", with a gradient norm of {value:.2g} (usually {norm.middle:.2g})"


# ------------------------------------------------------------------------------------------------- clipping

CLIPPED_SHARE = 0.9  # of the steps after the warm-up: then the setting, not the gradient, decides how long a step is
CLIPPED_LEAST = 50  # such steps


def clipping(c: Curves) -> Finding | None:
    """Nearly every gradient is longer than the limit."""
    norms = c.norm.after(c.warmup)
    limit = c.config.grad_clip
    if limit <= 0 or len(norms) < CLIPPED_LEAST:
        return None
    share = float(np.mean(norms.values > limit))
    if share < CLIPPED_SHARE:
        return None
    evidence = (
        f"In {share:.0%} of the {len(norms):,} steps after the warm-up the gradient was longer than the limit of "
        f"{limit:g} (norm {norms.middle:.2g} in the median) and was shortened to it."
    )
    advice = (
        "Clipping is meant for the odd batch: raise the limit, or take larger batches, whose gradients are shorter."
    )
    settings = ("grad_clip", "batch_size", "grad_accum_steps")
    return Finding("clipping", "note", "Clipped all the time", evidence, advice, settings, int(norms.steps[0]))


# ------------------------------------------------------------------------------------------------- throughput

SLOWER = 0.6  # of the pace before: less than other programs on a shared machine take for long
SLOW_BLOCKS, SLOW_LEAST = 50, 5  # the pace, smoothed
SLOW_SHARE = 0.1  # of the run that a slow-down has lasted at least, up to its end


def slowdown(c: Curves) -> Finding | None:
    """Steps take much longer since some step, and still do."""
    pace = c.rate.blocks(SLOW_BLOCKS, SLOW_LEAST)
    if len(pace) < 10:
        return None
    usual = float(np.median(np.maximum.accumulate(pace.values)[: len(pace) // 2 + 1]))
    usual = min(usual, float(np.quantile(pace.values, 0.75)))
    fast = np.flatnonzero(pace.values > math.sqrt(SLOWER) * usual)
    first = int(fast[-1]) + 1 if len(fast) else 0
    slow = pace.values[first:]
    if first < 3 or len(slow) < max(2, SLOW_SHARE * len(pace)):
        return None
    before, now = median(pace.values[:first]), median(slow)
    if now > SLOWER * before:
        return None
    since = int(pace.steps[first])
    evidence = f"{now:,.0f} tokens/s since step {since:,}, {now / before:.0%} of the {before:,.0f} tokens/s before."
    advice = "The settings did not change, so look at the machine: other programs, heat, or memory being swapped."
    return Finding("slowdown", "warning", "Training slowed down", evidence, advice, ("threads", "device"), since)


# On an H100 (docs/gpu.md) nano takes 0.34 to 0.67 ms a layer with a GPU that could do more: its steps are replayed as
# graphs. Without them, 3 ms a layer pass before it has enough to do.
PASS_PER_LAYER_S = {True: 0.8e-3, False: 3e-3}
RECOMPUTES = 1.5  # gradient checkpointing runs the forward pass twice: three passes' kernels for two


def small_batches(c: Curves) -> Finding | None:
    """On a GPU: a pass takes about as long as starting its kernels does, so more tokens in it may cost little time.

    One run cannot prove it (a slow host or a fast batch look the same), so it is a note that says what to try. On a CPU
    the time of a pass grows with its tokens at these sizes, and nothing is said.
    """
    if not c.device.startswith("cuda") or len(c.rate) < FLAT_AFTER or c.rate.end <= 0:
        return None
    tokens = c.config.batch_size * c.config.model.context_length
    seconds, layers = tokens / c.rate.end, c.config.model.layers
    replayed = c.config.compile != "off"
    if seconds > PASS_PER_LAYER_S[replayed] * layers * (RECOMPUTES if c.config.gradient_checkpointing else 1):
        return None
    evidence = (
        f"A forward and backward pass over {tokens:,} tokens takes {seconds * 1e3:.1f} ms, and the work "
        f"of {layers} layers takes about as long whatever the batch is, so the GPU may be waiting."
    )
    advice = (
        f"Try a batch size of {c.config.batch_size * 2}: if tokens/s rise clearly, this was the limit; else it was not."
    )
    settings = ("batch_size", "grad_accum_steps")
    return Finding("small_batches", "note", "Batches may be too small for the GPU", evidence, advice, settings, 1)


# ------------------------------------------------------------------------------------------------- all in all

SHORTEST = 10  # steps, below which noise and trend cannot be told apart
GOOD_FALL = 0.5  # nats since fresh weights: more than the first few steps bring, whatever the learning rate
VAL_FOLLOWS = 0.1  # nats above its minimum at most


def goes_well(c: Curves) -> Finding | None:
    """The training loss falls and validation follows."""
    begin = c.train.start if c.fresh else c.train.level_at(c.train.steps[0]) if len(c.train) else math.nan
    fall = begin - c.train.end
    clear = 3 * c.train.noise / math.sqrt(max(1, c.train.end_rows))
    if len(c.train) < SHORTEST or (c.fresh and fall < max(GOOD_FALL, clear)) or not (c.fresh or fall > -clear):
        return None
    evidence = f"Training loss {begin:.2f} → {c.train.end:.2f} over {len(c.train):,} steps"
    if len(c.val):
        now, best = float(c.val.values[-1]), float(c.val.values.min())
        if now > best + VAL_FOLLOWS:
            return None
        before = f"{c.val.values[0]:.2f} → " if len(c.val) > 1 else ""
        evidence += f"; validation {before}{now:.2f}, {_gap(c):+.2f} beside training"
    passed = _rung_passed(c)
    if passed:
        evidence += f"; below the {passed[0]} rung ({passed[1]:.2f}) since step {passed[2]:,}"
    advice = "compare samples at equal steps with other runs to see what the numbers mean."
    advice = advice.capitalize() if c.over else f"Let it run; {advice}"
    return Finding("well", "good", "Goes well", evidence + ".", advice, (), int(c.train.steps[0]))


def _rung_passed(c: Curves) -> tuple[str, float, int] | None:
    """The lowest rung that the validation loss is below to the end: name, loss, since which measured step.

    Rungs are losses on the validation part; without one of the run's own, the smoothed training loss is compared.
    """
    measured = c.val if len(c.val) else c.train.blocks(200, CLIMB_LEAST)
    passed = [(loss, name, step) for name, loss in c.ladder if (step := measured.stays_below(loss)) is not None]
    return (min(passed)[1], min(passed)[0], min(passed)[2]) if passed else None


def undecided(c: Curves) -> Finding:
    """No rule had anything to say, most often since there are too few steps yet."""
    rows, past = len(c.train), c.train.last_step - c.warmup
    short = rows < FLAT_AFTER or past < FLAT_AFTER
    evidence = f"{rows:,} step{'s are' if rows != 1 else ' is'} measured" + (
        f", and the warm-up lasts until step {c.warmup:,}" * (past < 0)
    )
    few = rows < SHORTEST  # then levels at both ends would be medians of the same steps
    begin, end = (c.train.values[0], c.train.values[-1]) if few and rows else (c.train.start, c.train.end)
    evidence += f"; the training loss went from {begin:.2f} to {end:.2f}." if rows else "."
    advice = "Train for longer" if c.over else "Let it go on"
    advice += ": a few dozen steps past the warm-up are needed to tell." if short else "."
    title, settings = ("Too short to tell", ("epochs", "max_steps")) if short else ("Nothing stands out", ())
    return Finding("undecided", "note", title, evidence, advice, settings, c.train.last_step)


ABOUT_LOSSES = ("flat", "vanishing", "memorises", "spikes")
RULES: tuple[Callable[[Curves], Finding | None], ...] = (
    diverges,
    flat,
    vanishing,
    memorises,
    spikes,
    clipping,
    slowdown,
    small_batches,
)
