"""What a run will do, worked out before it starts: how long it is, and every setting that said "choose for me".

No torch here; the form, the estimates and the training all ask here, so they cannot disagree.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from engine.config import PRESETS, TrainConfig, flag
from engine.data import count_windows
from engine.errors import ConfigError, Problem


@dataclass(frozen=True)
class Plan:
    """A run in numbers.

    Attributes:
        config: the settings with every automatic value filled in.
        total_steps: optimizer steps.
        windows: training windows per epoch.
        train_tokens, val_tokens: sizes of the two parts of the text.
        world_size: processes that train together, each on batches of its own.
    """

    config: TrainConfig
    total_steps: int
    windows: int
    train_tokens: int
    val_tokens: int
    world_size: int = 1

    @property
    def sequences_per_step(self) -> int:
        """The effective batch: sequences per optimizer step, of all processes together."""
        return self.config.sequences_per_step * self.world_size

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step, of all processes together."""
        return self.config.tokens_per_step * self.world_size

    @property
    def tokens(self) -> int:
        """Tokens that the whole run trains on."""
        return self.total_steps * self.tokens_per_step

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps per pass over the windows; a fraction, as a step may span two epochs."""
        return self.windows / self.sequences_per_step


def make_plan(
    config: TrainConfig,
    train_tokens: int,
    val_tokens: int,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    world_size: int = 1,
) -> Plan:
    """Fill in the automatic settings and count the steps.

    Args:
        config: checked settings.
        train_tokens, val_tokens: sizes of the training and the validation part.
        device, precision: what `auto` stands for on this machine.
        world_size: processes that will train together.

    Raises:
        ConfigError: the text is too small for the context length or the batch.
    """
    context = config.model.context_length
    windows = count_windows(train_tokens, context)
    batch = config.sequences_per_step * world_size
    if windows == 0:
        raise ConfigError([Problem("context_length", _too_long(context, train_tokens))])
    if batch > windows:
        raise ConfigError([Problem("batch_size", _too_large(config, windows, train_tokens, world_size))])
    total_steps = max(1, math.ceil(round(config.epochs * windows / batch, 6)))
    if config.max_steps:
        total_steps = min(total_steps, config.max_steps)
    resolved = dataclasses.replace(
        config,
        context_length=context,
        device=device if config.device == "auto" else config.device,
        precision=precision if config.precision == "auto" else config.precision,
        learning_rate=config.learning_rate or automatic_learning_rate(config, total_steps),
        warmup_steps=automatic_warmup(total_steps) if config.warmup_steps < 0 else config.warmup_steps,
        eval_every=config.eval_every or _every(total_steps, parts=10, most=500),
        eval_batches=config.eval_batches or 20,
        sample_every=config.sample_every or _every(total_steps, parts=5, most=1000),
        save_every=config.save_every or max(100, _every(total_steps, parts=5, most=1000)),
    )
    return Plan(resolved, total_steps, windows, train_tokens, val_tokens, world_size)


def windows_by_preset(tokens: int, *, whole: bool = False) -> dict[str, int]:
    """How many training windows an epoch has, for each preset at its own context length.

    Args:
        tokens: of the corpus.
        whole: whether all of it is for training, since the corpus has an official validation text; otherwise the
            default share at its end is left out.
    """
    train = _training_part(tokens, whole)
    return {name: count_windows(train, preset.context_length) for name, preset in PRESETS.items()}


def _training_part(tokens: int, whole: bool) -> int:
    return tokens if whole else tokens - round(tokens * TrainConfig().val_fraction)


def too_small_for(tokens: int, *, whole: bool = False) -> str:
    """Which presets a corpus is too small for with the default batch, and why, in numbers; "" when for none.

    Args:
        tokens, whole: see `windows_by_preset`.
    """
    batch = TrainConfig().batch_size
    windows = windows_by_preset(tokens, whole=whole)
    small = [name for name in windows if windows[name] < batch]
    if not small:
        return ""
    least = min(PRESETS[name].context_length for name in small)
    return (
        f"Too small for {', '.join(small)}: a step takes {batch} × {least:,} tokens or more and one to predict last, "
        f"and the training part has {_training_part(tokens, whole):,}. Take a smaller preset, batch or context."
    )


def cautions(plan: Plan, cores: int) -> list[Problem]:
    """What settings do that was hardly meant, though nothing forbids it.

    Args:
        cores: of this machine.
    """
    found, config = [], plan.config
    if config.warmup_steps > plan.total_steps:
        message = f"the run ends after {plan.total_steps:,} steps, in the warm-up, so the rate never reaches its peak."
        found.append(Problem("warmup_steps", message))
    if config.threads > cores:
        message = f"this machine has {cores} core{'s' if cores > 1 else ''}; more threads wait for each other."
        found.append(Problem("threads", message))
    return found


def _too_long(context: int, tokens: int) -> str:
    return (
        f"a context of {context:,} tokens does not fit into the training text of {tokens:,} tokens. "
        f"Choose a context below {tokens:,} ({flag('context_length')}), or a larger corpus."
    )


def _too_large(config: TrainConfig, windows: int, tokens: int, world_size: int) -> str:
    factors = f"{config.batch_size} × {config.grad_accum_steps}"
    factors += f" × {world_size} processes" if world_size > 1 else ""
    return (
        f"one step takes {factors} = {config.sequences_per_step * world_size:,} windows, but "
        f"the training text of {tokens:,} tokens holds only {windows:,}. Lower {flag('batch_size')} or "
        f"{flag('grad_accum_steps')}, shorten the context, or choose a larger corpus."
    )


def _every(total_steps: int, *, parts: int, most: int) -> int:
    return min(most, math.ceil(total_steps / parts))


def automatic_learning_rate(config: TrainConfig, total_steps: int) -> float:
    """The preset's rate, or three times that for a run of under 50 steps, which ends before it could do harm.

    Found by a sweep over rates, warm-ups and run lengths on *The Verdict*: three times the rate takes a run of 14 steps
    furthest, and makes one of 135 steps spike and stall.
    """
    return round(config.preset.learning_rate * (3 if total_steps < 50 else 1), 8)


def automatic_warmup(total_steps: int) -> int:
    """A tenth of a very short run; else three tenths, at most 200 steps (from the same sweep)."""
    return max(1, total_steps // 10) if total_steps < 50 else min(200, total_steps * 3 // 10)


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """The learning rate of a step: a straight line up, then a cosine down to a tenth of the peak.

    Args:
        config: resolved settings.
        step: 0 for the first.
        total_steps: of the run.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return peak * (0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress))))
