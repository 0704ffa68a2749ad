"""What changing settings in the middle of a training will do, told before it starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.config import SETTINGS, TrainConfig, differences, label


@dataclass(frozen=True)
class Difference:
    """One setting that a branch changes.

    Attributes:
        name: of the setting.
        old, new: its values.
        effect: what the change will do, in a sentence.
        matters: whether it changes what is learned from here on, rather than only what is recorded or how fast it is.
    """

    name: str
    old: Any
    new: Any
    effect: str
    matters: bool = True

    def __str__(self) -> str:
        return f"{label(self.name)}: {self.old} → {self.new}. {self.effect}"


def differences_that_matter(old: TrainConfig, new: TrainConfig) -> list[Difference]:
    """All settings in which a branch differs from its parent, those that change the training first.

    Args:
        old: the parent's settings, as they were resolved.
        new: the branch's, resolved likewise.
    """
    found = []
    for name, (before, after) in differences(old, new).items():
        effect, matters = _EFFECTS.get(name, (_ONLY_RECORDS, False))
        found.append(Difference(name, before, after, effect if isinstance(effect, str) else effect(old, new), matters))
    return sorted(found, key=lambda difference: not difference.matters)


def _batch(old: TrainConfig, new: TrainConfig) -> str:
    if old.sequences_per_step == new.sequences_per_step:
        return "A step still learns from the same sequences; only memory and speed change."
    smoother = "smoother" if new.sequences_per_step > old.sequences_per_step else "noisier"
    return (
        f"A step learns from {new.tokens_per_step:,} tokens instead of {old.tokens_per_step:,}: gradients are "
        f"{smoother}, and a step is no longer the same amount of text, so compare by tokens."
    )


def _rate(old: TrainConfig, new: TrainConfig) -> str:
    bolder = (
        "larger: faster, and nearer to spikes" if new.learning_rate > old.learning_rate else "finer: steadier, slower"
    )
    return f"The schedule is worked out anew from the new peak, so the rate jumps at the branch. Steps become {bolder}."


_ONLY_RECORDS = "Changes what is measured and kept, not the training."
_LENGTH = "The schedule is stretched or shortened to the new length, so the learning rate jumps at the branch."
_VALIDATION = "Validation is measured on other text: its losses before and after cannot be compared."
_SAME = "The same result but for rounding; memory and speed change."

_EFFECTS: dict[str, tuple[str | Callable[[TrainConfig, TrainConfig], str], bool]] = {
    "corpus": ("Goes on with another text, from its beginning; the loss jumps to what that text is worth.", True),
    "val_corpus": (_VALIDATION, True),
    "val_fraction": ("The text is cut elsewhere, so training may see what was validation before. " + _VALIDATION, True),
    "batch_size": (_batch, True),
    "grad_accum_steps": (_batch, True),
    "optimizer": ("Starts with fresh state: its averages are learned anew, and the first steps are rougher.", True),
    "learning_rate": (_rate, True),
    "warmup_steps": ("Matters only if the branch begins within the warm-up; else the curve of the rate shifts.", True),
    "epochs": (_LENGTH, True),
    "max_steps": (_LENGTH, True),
    "weight_decay": ("Weights shrink more or less from here on; the loss follows slowly.", True),
    "grad_clip": ("Longer or shorter gradients are let through: watch the gradient norm.", True),
    "dropout": ("Training loss jumps, since it is measured with dropout on; validation loss does not.", True),
    "seed": ("Data order and dropout are drawn anew from here on; text that was seen this epoch may come again.", True),
    "precision": ("Rounding changes: the curve stays close to the parent's unless the parent was unstable.", True),
    "attention_impl": (_SAME, False),
    "compile": (_SAME, False),
    "gradient_checkpointing": (_SAME, False),
    "device": (_SAME, False),
    "threads": (_SAME, False),
}
assert _EFFECTS.keys() <= SETTINGS.keys()
