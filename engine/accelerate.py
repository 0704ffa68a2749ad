"""What makes steps fast: on a GPU compiled blocks, and a step replayed as a CUDA graph; on a CPU kernels in C.

A small model's step is hundreds of kernels of a few microseconds, which the host cannot launch as fast as the GPU runs
them; recorded once as a graph, they are launched by one call. Compilation fuses what lies between matrix products and
has no kernel of ours. Which of a run's steps are compiled follows from its settings, its length and the card, never
from the clock, so that a resumed run computes exactly as an uninterrupted one; replaying changes no number.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine import native
from engine.config import ModelConfig, TrainConfig
from engine.cublaslt import HOPPER
from engine.plan import Plan

COMPILE_AT_STEP = 2  # the first steps run at once: a learner sees them while the compiler works
# What compiling takes and gains, as it was on an H100 with replayed steps: in bf16 1.38 ms for a step of `nano` at
# batch 4 instead of 1.48, for `medium` at batch 64 110.3 instead of 110.9. Where fewer of our kernels are at work
# (fp32, fp16, other cards, `manual` attention, dropout) it gains more: 0.26 and 4.8 ms before norms and embeddings had
# theirs, and in fp8 then 126 ms instead of 292.
COMPILE_S = 2.0  # to compile a layer, at most
# Of each layer in each pass, and as a share of what its operations would take in bf16:
SAVED_WITH_ALL_KERNELS, SAVED, SAVED_IN_FP8 = (17e-6, 0.002), (40e-6, 0.03), (40e-6, 1.1)
FLOPS_PER_CORE = 3e12  # what a multiprocessor was seen to do a second in bf16 (132 of them: 400 TFLOP/s)
# Seconds to compile a CPU's kernels; what a core is taken to do a second in fp32; what they save at least (on Intel's).
NATIVE_COMPILE_S, FLOPS_PER_CPU_CORE, SAVED_BY_NATIVE = 0.6, 1e11, 0.15
STEPS_BEFORE_RECORDING = 4  # libraries set themselves up in their first calls, which cannot be recorded


def flops_per_token(model: ModelConfig) -> int:
    """Floating-point operations that training on one token takes: 6·(12·L·D² + V·D) + 12·L·D·T.

    Six for each weight of a matrix product (two forward, four backward), and the attention's two products, whose causal
    half is counted as whole; the formula of PaLM (arXiv:2204.02311, appendix B), as nanoGPT and others count.
    """
    m = model
    return 6 * (12 * m.layers * m.width**2 + m.vocabulary_size * m.width) + 12 * m.layers * m.width * m.context_length


def compiles(plan: Plan, device: torch.device) -> bool:
    """Whether a run is to be compiled: as asked for, or where it is long enough to gain more than compiling takes."""
    config = plan.config
    if device.type != "cuda" or config.compile == "off":
        return False
    if config.compile == "on":
        return True
    card = torch.cuda.get_device_properties(device)
    tokens, layers = config.batch_size * config.model.context_length, config.model.layers
    seconds = tokens * flops_per_token(config.model) / (FLOPS_PER_CORE * card.multi_processor_count)  # of a pass
    passes = plan.total_steps * config.grad_accum_steps
    has_all_kernels = config.precision == "bf16" and config.attention_impl == "sdpa" and config.dropout == 0
    saved, share = SAVED_IN_FP8 if config.precision == "fp8" else SAVED
    if has_all_kernels and (card.major, card.minor) == HOPPER:
        saved, share = SAVED_WITH_ALL_KERNELS
    return passes * (layers * saved + share * seconds) > layers * COMPILE_S


def builds_native(plan: Plan, device: torch.device) -> bool:
    """Whether a CPU's own kernels (`engine.native`) are to be compiled for a run: as asked for, or where it is long
    enough to gain more than that takes."""
    config = plan.config
    if device.type != "cpu" or config.precision != "fp32" or config.compile == "off":
        return False
    if config.compile == "on":
        return True
    tokens = plan.total_steps * config.tokens_per_step
    seconds = tokens * flops_per_token(config.model) / (FLOPS_PER_CPU_CORE * config.threads)
    return native.suits() and SAVED_BY_NATIVE * seconds > NATIVE_COMPILE_S


def records(config: TrainConfig, device: torch.device) -> bool:
    """Whether steps are replayed as graphs. Checkpointing with dropout keeps random states, which a graph cannot."""
    if device.type != "cuda" or config.compile == "off":
        return False
    return not (config.gradient_checkpointing and config.dropout > 0)


class Recorder:
    """Runs pieces of a step; after a few steps it records each as a CUDA graph, and from then on replays that.

    A piece must read and write the same memory each time, and never wait for the device.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._steps = 0
        self._graphs: dict[str, torch.cuda.CUDAGraph] = {}

    @property
    def recording(self) -> bool:
        """Whether pieces are replayed by now."""
        return self.enabled and self._steps > STEPS_BEFORE_RECORDING

    def begin_step(self) -> None:
        """Call it once before the pieces of each step."""
        self._steps += 1

    def run(self, name: str, piece: Callable[[], None]) -> None:
        """Do a piece of work, on the current stream."""
        if not self.recording:
            piece()
            return
        if name not in self._graphs:
            self._graphs[name] = self._record(piece)
        self._graphs[name].replay()

    def _record(self, piece: Callable[[], None]) -> torch.cuda.CUDAGraph:
        if not self._graphs:
            torch.cuda.empty_cache()  # graphs take memory of their own: what the first steps held goes back
        graph = torch.cuda.CUDAGraph()
        pool = next((g.pool() for g in self._graphs.values()), None)
        # thread_local: what other threads of the app do with the GPU is no error
        with torch.cuda.graph(graph, pool=pool, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
            piece()
        return graph


def compile_stack(stack: Callable[[torch.Tensor], torch.Tensor], example: torch.Tensor) -> Callable[..., torch.Tensor]:
    """The compiled form of `stack`, tried once forward and backward, so that what fails does so here.

    Args:
        stack: (B, T, D) -> (B, T, D), with weights of its own.
        example: what it will be called with, in shape and dtype.

    Raises:
        RuntimeError and others: no compiler, or one that cannot do this.
    """
    torch.compiler.reset()  # else what other runs of this process have compiled counts towards a limit
    # deterministic: how sums are cut up is not chosen by timing, or the next process would add in another order
    compiled: Callable[..., torch.Tensor] = torch.compile(stack, dynamic=False, options={"deterministic": True})
    with torch.random.fork_rng([example.device]):
        x = torch.randn_like(example).requires_grad_()  # products choose their kernels by it, see `engine.cublaslt`
        torch.autograd.grad(compiled(x), x, torch.randn_like(example))
    return compiled
