"""Which changes of settings make a run fit into memory, and what each saves. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.config import PRESETS, TrainConfig, check
from engine.memory import GIB, estimate_memory

_Total = Callable[[TrainConfig], int]  # bytes that a run with these settings needs


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


def what_would_fit(
    config: TrainConfig, device: str, limit: float, *, has_bf16: bool = True, processes: int = 1
) -> list[Change]:
    """Single changes with which the run would need at most `limit` bytes; where none does, one combination, or nothing.

    Batch, context and preset are lowered no further than they have to be. A smaller batch comes with as much more
    accumulation, so that a step learns from the same text.

    Args:
        config: checked settings.
        device: `cuda` or `cpu`.
        limit: bytes of memory that the run may use.
        has_bf16: whether the device computes in bf16; see `engine.environment.has_bf16`.
        processes: that train it together; `limit` is what each may use.
    """
    total = _total_on(device, processes)
    before = total(config)
    found = []
    for variants in _ladders(config, has_bf16):
        change = next((c for s in variants if (c := _change(config, s, total, before)) and c.total <= limit), None)
        if change:
            found.append(change)
    together = None if found else least_combination(config, device, limit, has_bf16=has_bf16, processes=processes)
    return [together] if together else found


def least_combination(
    config: TrainConfig, device: str, limit: float, *, has_bf16: bool = True, processes: int = 1
) -> Change | None:
    """Changes that fit together, no more of them than it takes; None where nothing fits, or nothing has to change.

    First comes what leaves model and text alone, then smaller batches, then shorter contexts, then all that again with
    the next smaller preset.

    Args:
        config, device, limit, has_bf16, processes: as in `what_would_fit`.
    """
    total = _total_on(device, processes)
    before = total(config)
    if before <= limit:
        return None
    for preset in ({}, *_smaller_presets(config)):
        for more in _ever_more(replace(config, **preset), total, has_bf16):
            change = _change(config, preset | more, total, before)
            if change and change.total <= limit:
                return change
    return None


def _total_on(device: str, processes: int) -> _Total:
    return lambda config: estimate_memory(config, device, processes=processes).total


def _change(config: TrainConfig, settings: Mapping[str, Any], total: _Total, before: int) -> Change | None:
    """The change, when it is allowed and saves anything."""
    changed = replace(config, **settings)
    if check(changed):
        return None
    after = total(changed)
    return Change(settings, before - after, after) if after < before else None


def _ladders(config: TrainConfig, has_bf16: bool) -> Iterator[list[dict[str, Any]]]:
    """For each thing that can be changed, its settings from the smallest step to the largest."""
    yield _smaller_batches(config)
    yield _shorter_contexts(config)
    yield _smaller_presets(config)
    yield from ([saver] for saver in _savers(config, has_bf16))


def _ever_more(config: TrainConfig, total: _Total, has_bf16: bool) -> Iterator[dict[str, Any]]:
    """Settings of which each saves more than the one before."""
    together: dict[str, Any] = {}
    yield together
    for saver in _savers(config, has_bf16):
        if total(replace(config, **(together | saver))) < total(replace(config, **together)):
            together = together | saver
            yield together
    batches = _smaller_batches(config)
    yield from (together | batch for batch in batches)
    together = together | (batches[-1] if batches else {})
    yield from (together | context for context in _shorter_contexts(config))


def _smaller_batches(config: TrainConfig) -> list[dict[str, Any]]:
    sizes = [size for size in range(config.batch_size - 1, 0, -1) if config.sequences_per_step % size == 0]
    return [{"batch_size": size, "grad_accum_steps": config.sequences_per_step // size} for size in sizes]


def _shorter_contexts(config: TrainConfig) -> list[dict[str, Any]]:
    context = config.model.context_length
    return [{"context_length": context >> n} for n in range(1, 8) if context >> n >= 64]


def _smaller_presets(config: TrainConfig) -> list[dict[str, Any]]:
    smaller = list(PRESETS)[: list(PRESETS).index(config.config)]
    return [{"config": name} for name in reversed(smaller)]


def _savers(config: TrainConfig, has_bf16: bool) -> Iterator[dict[str, Any]]:
    """What saves memory at the same model and the same text, the cheapest in time first."""
    if config.attention_impl != "sdpa":
        yield {"attention_impl": "sdpa"}
    if config.precision == "fp32" and has_bf16:
        yield {"precision": "bf16"}
    if config.optimizer == "adamw":
        yield {"optimizer": "adamw_8bit"}
    if not config.gradient_checkpointing:
        yield {"gradient_checkpointing": True}
