"""What decides how a run rounds, besides its settings: versions, the device, and whose kernels compute.

A checkpoint tells it, so that who goes on from one is told when the same settings are going to give other last bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from engine import native
from engine.accelerate import compiles
from engine.environment import package_version, processor_name
from engine.kernels import OURS, PYTORCH, VERSION, Kernels
from engine.plan import Plan

BLOCKS = "blocks"  # the fact that becomes another when a compilation fails
OWN_VERSION = "the lab's kernels, version"
NONE = "none"  # in place of what is not there
COMPILED, NOT_COMPILED = "compiled", "not compiled"


def arithmetic(plan: Plan, kernels: Kernels) -> dict[str, str]:
    """The facts of this process, by name."""
    config = plan.config
    facts = {"PyTorch": str(torch.__version__)}
    if config.device == "cpu":
        facts["processor"] = f"{processor_name()} ({torch.backends.cpu.get_cpu_capability()})"
        if kernels.native:
            facts |= {**kernels.names, OWN_VERSION: str(native.VERSION), "GCC": native.compiler()}
    else:
        facts |= {**_of_a_gpu(config.device), **kernels.names, OWN_VERSION: str(VERSION)}
        facts[BLOCKS] = COMPILED if compiles(plan, torch.device(config.device)) else NOT_COMPILED
    if config.optimizer != "adamw":
        facts["bitsandbytes"] = package_version("bitsandbytes") or NONE
    return facts


def _of_a_gpu(device: str) -> dict[str, str]:
    from engine.cublaslt import cublas_version

    return {
        "GPU": torch.cuda.get_device_name(device),
        "CUDA": str(torch.version.cuda),
        "cuBLAS": cublas_version(),
        "cuDNN": str(torch.backends.cudnn.version()),
        "Triton": package_version("triton") or NONE,
    }


def of_all_ranks(told: Sequence[tuple[Mapping[str, str], Sequence[str]]]) -> tuple[dict[str, str], tuple[str, ...]]:
    """What rank 0 tells, and of each other rank what is different there.

    Args:
        told: each rank's facts, and its sentences about kernels that it lacks.
    """
    (own, lacking), *others = told
    facts, sentences = dict(own), list(lacking)
    for rank, (theirs, missing) in enumerate(others, start=1):
        facts |= {of_rank(what, rank): value for what, value in theirs.items() if own.get(what) != value}
        sentences += [f"Rank {rank}: {sentence}" for sentence in missing if sentence not in lacking]
    return facts, tuple(sentences)


def of_rank(fact: str, rank: int) -> str:
    """The name of a fact about a rank; rank 0's have their own."""
    return f"{fact} of rank {rank}" if rank else fact


def rounds_otherwise(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """The sentence for who goes on from a checkpoint by what may round otherwise; "" when nothing changed.

    Args:
        before: what computed it; empty when it does not say, as older ones.
    """
    names = dict.fromkeys([*before, *now]) if before else {}
    missing = dict.fromkeys(OURS, PYTORCH) | {OWN_VERSION: "1"}  # of older checkpoints, which do not name what is newer
    changed = [
        f"{name} {after} instead of {first}"
        for name in names
        if (after := now.get(name, NONE)) != (first := before.get(name, missing.get(name, NONE)))
    ]
    if not changed:
        return ""
    return (
        f"Computed otherwise than the checkpoint it goes on from: {'; '.join(changed)}. From here on, numbers are "
        "those of an unbroken run up to rounding, not in every bit."
    )
