"""Which changes of settings make a run fit into memory, and what each saves. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.config import PRESETS, TrainConfig, check
from engine.memory import GIB, estimate_memory


@dataclass(frozen=True)
class Change:
    """Settings to change together, and what that does by the estimate.

    Attributes:
        settings: name -> new value.
        saving: bytes less than before.
        total: bytes that the run then needs.
    """

    settings: Mapping[str, Any]
    saving: int
    total: int

    def __str__(self) -> str:
        words = [
            f"{name} {str(value).lower() if isinstance(value, bool) else value}"
            for name, value in self.settings.items()
        ]
        return f"{' with '.join(words)} (saves {self.saving / GIB:.2f} GiB)"


def what_would_fit(config: TrainConfig, device: str, limit: float) -> list[Change]:
    """Single changes with which the run would need at most `limit` bytes; where none does, one combination, or nothing.

    Batch, context and preset are lowered no further than they have to be. A smaller batch comes with as much more
    accumulation, so that a step learns from the same text.

    Args:
        config: checked settings.
        device: `cuda` or `cpu`.
        limit: bytes of memory that the run may use.
    """
    before = estimate_memory(config, device).total
    found = []
    for variants in _ladders(config, device):
        change = next((c for s in variants if (c := _change(config, s, device, before)) and c.total <= limit), None)
        if change:
            found.append(change)
    return found or _combination(config, device, before, limit)


def _change(config: TrainConfig, settings: Mapping[str, Any], device: str, before: int) -> Change | None:
    """The change, when it saves anything."""
    changed = replace(config, **settings)
    if check(changed):
        return None
    total = estimate_memory(changed, device).total
    return Change(settings, before - total, total) if total < before else None


def _ladders(config: TrainConfig, device: str) -> Iterator[list[dict[str, Any]]]:
    """For each thing that can be changed, its settings from the smallest step to the largest."""
    yield _smaller_batches(config)
    context = config.model.context_length
    yield [{"context_length": context >> n} for n in range(1, 8) if context >> n >= 64]
    smaller = list(PRESETS)[: list(PRESETS).index(config.config)]
    yield [{"config": name} for name in reversed(smaller) if context <= 8 * PRESETS[name].context_length]
    yield from _savers(config, device)


def _smaller_batches(config: TrainConfig) -> list[dict[str, Any]]:
    sizes = [size for size in range(config.batch_size - 1, 0, -1) if config.sequences_per_step % size == 0]
    return [{"batch_size": size, "grad_accum_steps": config.sequences_per_step // size} for size in sizes]


def _savers(config: TrainConfig, device: str) -> Iterator[list[dict[str, Any]]]:
    """What saves memory at the same model and the same text."""
    if config.attention_impl != "sdpa":
        yield [{"attention_impl": "sdpa"}]
    if not config.gradient_checkpointing:
        yield [{"gradient_checkpointing": True}]
    if config.precision == "fp32" and not device.startswith("cpu"):
        yield [{"precision": "bf16"}]
    if config.optimizer == "adamw":
        yield [{"optimizer": "adamw_8bit"}]


def _combination(config: TrainConfig, device: str, before: int, limit: float) -> list[Change]:
    """All that saves at the same model and text, then smaller batches, then shorter contexts, until it fits."""
    together: dict[str, Any] = {}
    for [saver] in _savers(config, device):
        together |= saver
    batches = [{}, *_smaller_batches(config)]
    contexts = [{"context_length": config.model.context_length >> n} for n in range(1, 8)]
    for more in [*batches, *({**batches[-1], **context} for context in contexts if context["context_length"] >= 64)]:
        change = _change(config, together | more, device, before)
        if change and change.total <= limit:
            return [change]
    return []
