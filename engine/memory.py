"""How much memory a run will need, worked out from its settings before anything is started.

A training step holds the most at one of a few moments, which `engine.moments` adds up; the largest one is the peak. No
torch here: the answer takes microseconds and needs no GPU. `docs/memory.md` compares it with measurements.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from engine.config import TrainConfig
from engine.cpu_moments import CpuStep
from engine.moments import Step, cpu_loss_rows

GIB = 2**30
MIB = 2**20
CARDS = (8, 12, 16, 24, 40, 80)  # GB of common cards


@dataclass(frozen=True)
class Breakdown:
    """What a run holds at its peak, in bytes.

    Attributes:
        weights: in fp32, and the copies in bf16 or fp16 that autocast has made of them.
        gradients: one fp32 number a weight, and those on their way to one.
        optimizer: the moments of every weight.
        activations: what the forward pass keeps for the backward pass, and what is at work in a block.
        logits: scores over the vocabulary, and the loss's work on them.
        workspace: scratch memory of the libraries.
        cache: what PyTorch's allocator has taken and not given out: rounding, and gaps between blocks.
        context: on a GPU, the CUDA context and the kernels.
        process: on a CPU, the process itself: the interpreter and the libraries.
        paged: the part of `optimizer` in managed memory, which PyTorch doesn't count and the driver may move away.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    workspace: int
    cache: int
    context: int = 0
    process: int = 0
    paged: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """The parts by name; they add up to `total`."""
        return {name: value for name, value in asdict(self).items() if name != "paged"}

    @property
    def gib(self) -> dict[str, float]:
        """The parts and their total, in GiB."""
        return {name: value / GIB for name, value in (self.parts | {"total": self.total}).items()}

    @property
    def peak_allocated(self) -> int:
        """What `torch.cuda.max_memory_allocated()` will say."""
        return self.reserved - self.cache

    @property
    def reserved(self) -> int:
        """What `torch.cuda.max_memory_reserved()` will say."""
        return self.total - self.context - self.process - self.paged

    @property
    def total(self) -> int:
        """What the process holds on the device."""
        return sum(self.parts.values())


def estimate_memory(config: TrainConfig, device: str | None = None, *, processes: int = 1, held: int = 0) -> Breakdown:
    """The memory of a run at its peak.

    Validation and samples never need more than training: they keep nothing for a backward pass.

    Args:
        config: checked settings; automatic values are taken as a run would resolve them.
        device: `cuda` or `cpu` instead of the config's own; `auto` counts as a GPU.
        processes: that train it together; the answer is for each of them.
        held: bytes that the process which is to train holds already; on a CPU the run comes on top of them. 0 stands
            for a process of its own.
    """
    name = device or config.device
    cpu = name.startswith("cpu")
    if config.precision == "auto":
        config = replace(config, precision="fp32" if cpu else "bf16")
    return _on_cpu(CpuStep(config, processes), held) if cpu else _on_gpu(Step(config, processes))


# ---------------------------------------------------------------------------------------------- the two devices

CUBLAS_WORKSPACE = 2 * 32 * MIB  # PyTorch gives each thread's cuBLAS 32 MiB on a Hopper: forward and backward thread
CUDA_CONTEXT = 784 * MIB  # what a process on the H100 used at most besides what PyTorch had reserved
MANAGED_CONTEXT = 120 * MIB  # and what it used besides with managed memory, that memory left out
CACHE_SHARE = 0.17  # beyond the most allocated: two of three runs on the H100 had reserved no more


def _on_gpu(step: Step) -> Breakdown:
    peak = max(step.moments(), key=lambda moment: moment.total)
    optimizer, paged = step.optimizer_states()
    weights = 4 * step.config.model.parameters
    allocated = weights + optimizer - paged + peak.total + CUBLAS_WORKSPACE
    return Breakdown(
        weights=round(weights + peak.casts),
        gradients=round(peak.gradients),
        optimizer=optimizer,
        activations=round(peak.activations),
        logits=round(peak.logits),
        workspace=CUBLAS_WORKSPACE,
        cache=round(CACHE_SHARE * allocated),
        context=CUDA_CONTEXT + (MANAGED_CONTEXT if paged else 0),
        paged=paged,
    )


CPU_PROCESS = 370 * MIB  # interpreter, PyTorch, libraries, tokenizer
CPU_COMPILER = 80 * MIB  # PyTorch's, which gradient checkpointing and bitsandbytes load, but don't use
CPU_BITSANDBYTES = 60 * MIB
CPU_GAPS = 0.2  # of what lies in the heap


def _on_cpu(step: CpuStep, held: int) -> Breakdown:
    """The process's resident memory. The four numbers above were chosen on two thirds of the measurements."""
    peak = max(step.moments(), key=lambda moment: moment.total)
    config = step.config
    eight_bit = config.optimizer != "adamw"
    libraries = eight_bit * CPU_BITSANDBYTES + (eight_bit or config.gradient_checkpointing) * CPU_COMPILER
    return Breakdown(
        weights=round(4 * config.model.parameters + peak.casts),
        gradients=round(peak.gradients),
        optimizer=step.optimizer_states()[0],
        activations=round(peak.activations),
        logits=4 * cpu_loss_rows(step.n) * config.model.vocabulary_size,
        workspace=0,
        cache=round(CPU_GAPS * step.in_heap(peak)),
        process=max(CPU_PROCESS, held) + libraries,
    )
