"""How fast training steps are, beside the rate of this machine's own matrix products.

Steps are the product's own (`engine.step`), on random tokens, as speed does not depend on what is read. Validation,
samples and saving are left out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from engine import float8, native
from engine.accelerate import flops_per_token
from engine.arithmetic import arithmetic
from engine.config import TrainConfig
from engine.distributed import SOLO, Team
from engine.heap import freed_memory_kept
from engine.plan import make_plan
from engine.start import Text
from engine.step import DTYPES, TrainState, build, compile_model, finished_rows, train_step

BLOCKS = 9  # of equal length, a few matrix products between them; medians count
PRODUCTS = 4  # timings between two blocks, of one product each on a CPU and of ten on a GPU


@dataclass(frozen=True)
class TrainingSpeed:
    """What was measured.

    Attributes:
        tokens_per_s: of the median block.
        spread: (fastest - slowest block) / median.
        step_s: seconds of an optimizer step.
        first_step_s: from nothing until the first step was done: weights drawn, optimizer built.
        warm_up_s: from nothing until steps had their full speed: compiled and recorded, where they are.
        flops: floating-point operations a second, by `engine.accelerate.flops_per_token`.
        matmul_flops: of a large matrix product in the same precision, in turns with the steps: machines have faster
            and slower minutes. PyTorch's, or that of the lab's own kernels for a CPU if it is faster.
        peak_gib: GPU: the most that was allocated. CPU: that the process held.
        computed_with: versions, device, and whose kernels.
        lacking: a sentence for each of the lab's kernels that should work on this device and does not.
    """

    tokens_per_s: float
    spread: float
    step_s: float
    first_step_s: float
    warm_up_s: float
    flops: float
    matmul_flops: float
    peak_gib: float
    computed_with: dict[str, str]
    lacking: tuple[str, ...]

    @property
    def utilization(self) -> float:
        """Share of the matrix products' rate."""
        return self.flops / self.matmul_flops


def measure_training(config: TrainConfig, seconds: float = 10.0) -> TrainingSpeed:
    """Train for about so many seconds after warming up.

    Args:
        config: checked, with device, precision and threads filled in. `compile="auto"` compiles nothing on a GPU: a
            benchmark is too short to gain by it.

    Raises:
        ConfigError: a library is missing.
        torch.OutOfMemoryError: it does not fit.
    """
    with freed_memory_kept(config):
        return _measure_training(config, seconds)


def _measure_training(config: TrainConfig, seconds: float) -> TrainingSpeed:
    began = time.perf_counter()
    state = random_state(config)
    state.watch.begin_peak(state.device)  # what this process measured before is not meant
    run_steps(state, 1)
    first = time.perf_counter() - began
    if config.compile == "on" and state.device.type == "cuda":
        compile_model(state)
    run_steps(state, 6 if state.device.type == "cuda" else 1)  # a graph is recorded by then
    warm = time.perf_counter() - began
    one = _timed(lambda: run_steps(state, 3)) / 3
    count = max(1, round(seconds / BLOCKS / one))
    tokens = state.config.tokens_per_step
    peak = state.watch.memory_gib(state.device)
    multiply = _large_product(state.device, config.precision, with_native=state.kernels.native is not None)
    products, blocks = [multiply()], []
    for _ in range(BLOCKS):
        blocks.append(_timed(lambda: run_steps(state, count)) / count)
        products.append(multiply())
    step_s = statistics.median(blocks)
    return TrainingSpeed(
        tokens_per_s=tokens / step_s,
        spread=(max(blocks) - min(blocks)) / step_s,
        step_s=step_s,
        first_step_s=first,
        warm_up_s=warm,
        flops=tokens / step_s * flops_per_token(config.model),
        matmul_flops=statistics.median(products),
        peak_gib=peak,
        computed_with=arithmetic(state.plan, state.kernels),
        lacking=state.kernels.lacking,
    )


def _large_product(device: torch.device, precision: str, *, with_native: bool = False) -> Callable[[], float]:
    """What multiplies two large matrices some times, and returns operations a second, of the median.

    On random values: zeros are multiplied faster. In fp8 it is the rate of the blocks' products; the vocabulary's and
    the attention's stay in bf16.

    Args:
        with_native: whether a CPU's own kernels do it too; the faster one counts.
    """
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=DTYPES.get(precision, torch.bfloat16)) for _ in range(2))
    out = torch.empty_like(a)
    multiply: Callable[[], Any] = partial(torch.mm, a, b, out=out)
    if precision == "fp8":
        a8, (b8, b_scale) = float8.quantize(a, float8.E4M3), float8.quantize(b, float8.E4M3)
        multiply = partial(float8.product, a8, (b8.t(), b_scale), torch.bfloat16, use_fast_accum=True)
    repeat = 10 if device.type == "cuda" else 1

    def products(multiply: Callable[[], Any]) -> None:
        for _ in range(repeat):
            multiply()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    ways = [(partial(products, multiply), 2 * n**3 * repeat)]
    if with_native:  # of matrices that it is fastest with: square ones of that size leave the cache
        high, small = torch.randn(2 * n, n // 4), torch.randn(n // 4, n // 4)
        ways.append((partial(products, partial(native.multiply, high, small)), n**3 // 4))
    for way, _ in ways:
        way()
    return lambda: max(count / statistics.median(_timed(way) for _ in range(PRODUCTS)) for way, count in ways)


def random_state(config: TrainConfig, team: Team = SOLO) -> TrainState:
    """A fresh training on random tokens, of which there is enough for a step of each process.

    Raises:
        ConfigError: a library is missing.
    """
    tokens = np.random.default_rng(0).integers(0, config.model.vocabulary_size, 2**20, dtype=np.uint16)
    size = team.world.size
    need = (config.sequences_per_step * size + 1) * config.model.context_length
    if need > len(tokens):
        tokens = np.resize(tokens, need)
    plan = make_plan(config, len(tokens), 0, device=config.device, precision=config.precision, world_size=size)
    text: Any = Text(tokens, tokens[:0], None, None)  # type: ignore[arg-type]  # of no corpus
    return build(plan, text, team=team)


def run_steps(state: TrainState, count: int) -> None:
    """Do so many optimizer steps, and wait until the last one is done."""
    for _ in range(count):
        for _ in train_step(state):
            pass
    for _ in finished_rows(state):
        pass


def _timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
