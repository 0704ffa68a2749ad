"""Settings that serve a purpose, made for the preset, the corpus and the machine at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.config import TrainConfig, to_dict
from engine.fit import least_combination
from engine.memory import estimate_memory

SMALL_GPU = 8 * 10**9  # bytes of a common small card
SHARE = 0.9  # of a card's memory that a run may be planned to use; the screen and other programs have the rest


@dataclass(frozen=True)
class Machine:
    """What a recipe needs to know.

    Attributes:
        device: `cuda` or `cpu`.
        memory: bytes of the device.
    """

    device: str
    memory: float


@dataclass(frozen=True)
class Recipe:
    """A purpose, and how to change settings for it.

    Attributes:
        title, description: for people.
        settings: from the settings at hand to the changed ones.
    """

    title: str
    description: str
    settings: Callable[[TrainConfig, Machine], TrainConfig]

    def apply(self, values: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
        """All settings, changed for the purpose. Those that it does not concern stay as they are.

        Args:
            values: checked settings.
        """
        return to_dict(self.settings(TrainConfig(**values), machine))


def smoke_test(config: TrainConfig, machine: Machine) -> TrainConfig:
    """The guide's first run, whatever was set before."""
    return TrainConfig(config="nano", corpus="verdict", epochs=3)


def small_gpu(config: TrainConfig, machine: Machine) -> TrainConfig:
    """Save memory step by step until the run fits; the effective batch stays as it was."""
    config = replace(config, attention_impl="sdpa", precision="auto")
    change = least_combination(config, "cuda", SHARE * SMALL_GPU)
    return replace(config, **change.settings) if change else config


def fastest(config: TrainConfig, machine: Machine) -> TrainConfig:
    """What computes quickest: the fused attention, nothing computed twice, and on a GPU the largest batch that fits.

    On a GPU the batch grows, up to 64 sequences, while accumulation shrinks by as much; a CPU gains next to nothing
    from a larger batch, so there it stays.
    """
    config = replace(
        config, attention_impl="sdpa", precision="auto", optimizer="adamw", gradient_checkpointing=False, device="auto"
    )
    if machine.device != "cuda":
        return config
    while config.grad_accum_steps % 2 == 0 and config.batch_size < 64:
        larger = replace(config, batch_size=config.batch_size * 2, grad_accum_steps=config.grad_accum_steps // 2)
        if estimate_memory(larger, "cuda").total > SHARE * machine.memory:
            break
        config = larger
    return config


RECIPES = (
    Recipe("Smoke test", "nano reads The Verdict three times: under a minute.", smoke_test),
    Recipe(
        "Fits a small GPU",
        "Saves memory until the run fits a card of 8 GB: sdpa, bf16, then the 8-bit optimizer, gradient checkpointing, "
        "a smaller batch with as much more accumulation, and only then a shorter context or a smaller preset.",
        small_gpu,
    ),
    Recipe(
        "Fastest on this machine",
        "sdpa, the quickest precision here, nothing computed twice; on a GPU larger batches in place of accumulation.",
        fastest,
    ),
)
