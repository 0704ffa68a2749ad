"""One optimizer step, and the state it advances.

`prepare` builds the state, fresh or exactly as a checkpoint left it; `train_step` advances it. On a GPU the host runs a
few steps ahead and reads results when they are there, so that nothing waits for the device after each step.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine.accelerate import COMPILE_AT_STEP, Recorder, builds_native, compile_stack, compiles, records
from engine.arithmetic import arithmetic, of_all_ranks
from engine.checkpoint import Checkpoint, Contents, load
from engine.config import TrainConfig
from engine.data import Tokens, TrainingWindows
from engine.distributed import SOLO, Loss, Team
from engine.environment import GIB, begin_peak, held_bytes, peak_bytes
from engine.errors import CheckpointError, DivergedError, first_line, is_out_of_memory
from engine.kernels import Kernels, choose_kernels
from engine.model import GPT
from engine.optimizer import apply_update, build_optimizer, pack_state, set_rate, unpack_state
from engine.plan import Plan, learning_rate
from engine.repeatable import repeatable
from engine.run import ActiveRun
from engine.start import Text, open_text

STEPS_AHEAD = 4  # how far the host may run ahead of a GPU: enough to keep it busy, few enough to stop at once
FP16_SCALE = 2.0**12  # of the first loss; PyTorch's own 2^16 overflows in the first steps of a fresh GPT and loses them
DTYPES = {  # of autocast
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.bfloat16,  # but for the blocks' linear layers
}


@dataclass
class InFlight:
    """A step whose results may still be on their way: loss, gradient norm, whether all was finite, fp16's scale."""

    row: dict[str, Any]
    results: Tensor  # (4,), on the host
    arrived: torch.cuda.Event | None


class Stopwatch:
    """Training time, and throughput over the last second of it."""

    def __init__(self, elapsed_s: float = 0.0) -> None:
        self.elapsed_s = elapsed_s
        self._last = self._busy_since = time.perf_counter()
        self._recent: deque[tuple[int, float]] = deque()
        self._memory, self._memory_at = 0.0, -math.inf
        self._knows_peak = False

    def begin_peak(self, device: torch.device) -> None:
        """Let `memory_gib` tell the most from now on."""
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            self._knows_peak = begin_peak()

    def memory_gib(self, device: torch.device) -> float:
        """The most so far: allocated on a GPU, held by the process on a CPU; where its system does not tell the most,
        what it holds now. Asked ten times a second at most: it takes as long as a tenth of a small model's step."""
        now = time.perf_counter()
        if now - self._memory_at > 0.1:
            if device.type == "cuda":
                most = torch.cuda.max_memory_allocated(device)
            else:
                most = peak_bytes() if self._knows_peak else held_bytes()
            if self._knows_peak:  # Linux counts by processor and adds up now and then: it may tell some pages less
                most = max(most, round(self._memory * GIB))
            self._memory, self._memory_at = most / GIB, now
        return self._memory

    def lap(self, tokens: int) -> float:
        """A step of so many tokens is done; returns tokens per second, evaluation and the like left out."""
        now = time.perf_counter()
        self._recent.append((tokens, now - self._busy_since))
        self.elapsed_s += now - self._last
        self._last = self._busy_since = now
        while len(self._recent) > 1 and sum(seconds for _, seconds in self._recent) - self._recent[0][1] > 1.0:
            self._recent.popleft()
        return sum(n for n, _ in self._recent) / max(1e-9, sum(seconds for _, seconds in self._recent))

    def other_work_done(self) -> None:
        """What passed since the last lap was evaluation, sampling or saving: training time, but no part of a step."""
        self._busy_since = time.perf_counter()

    def skip(self) -> None:
        """What passed since the last lap was a pause: no training time at all."""
        self._last = self._busy_since = time.perf_counter()


@dataclass
class TrainState:
    """Everything that a step reads and advances.

    Attributes:
        plan: of the run; `plan.config` is the resolved config.
        batch: (B, T + 1) on the device, where a step reads its tokens.
        results: (4,) on the device: the step's loss, its gradient norm, 1 once either was not finite (from then on no
            update is applied), and fp16's scale.
        kernels: what the model computes with.
        recorder: replays what it has recorded of a step.
        arithmetic: on rank 0, what decides how all processes round; see `engine.arithmetic`.
        lacking: on rank 0, a sentence for each kernel that should work and does not, in any process.
        parallel: the model's loss with gradients averaged over a team's processes; None in one that trains alone.
        team: the processes that train together; here, and for the most part, one.
        step: optimizer steps done.
        position: training windows seen, by all processes together.
        tokens: trained on.
        watch: training time.
    """

    plan: Plan
    model: GPT
    optimizer: torch.optim.Optimizer
    windows: TrainingWindows
    validation: Tokens
    scaler: torch.amp.GradScaler
    device: torch.device
    batch: Tensor
    results: Tensor
    kernels: Kernels
    recorder: Recorder
    arithmetic: dict[str, str] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()
    parallel: Loss | None = None
    team: Team = SOLO
    step: int = 0
    position: int = 0
    tokens: int = 0
    watch: Stopwatch = field(default_factory=Stopwatch)
    in_flight: deque[InFlight] = field(default_factory=deque)

    @property
    def config(self) -> TrainConfig:
        """The resolved settings."""
        return self.plan.config

    @property
    def loss(self) -> Loss:
        """What a step differentiates: tokens and targets, (B, T) each, to their mean loss."""
        return self.parallel or self.model.loss

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of forward passes; weights are fp32 always. What they are rounded to is kept for nobody: a pass
        uses each once, and with checkpointing the copies of all blocks would be held instead of one's."""
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.config.precision], cache_enabled=False)


def prepare(run: ActiveRun, team: Team = SOLO) -> TrainState:
    """Build model, optimizer and data for a run: fresh, or exactly as its checkpoint left them.

    Raises:
        CheckpointError: the checkpoint is damaged or does not fit.
        ConfigError: a corpus or bitsandbytes is missing.
    """
    same = {"same_text": run.keeps_text, "same_optimizer": run.keeps_optimizer}
    return start_state(run.plan, run.start_from, **same, text=open_text(run.config), team=team)


def start_state(
    plan: Plan, start_from: Checkpoint | None, *, same_text: bool, same_optimizer: bool, text: Text, team: Team
) -> TrainState:
    """What `prepare` builds, from parts that any process of a team can have; see `restore`."""
    state = build(plan, text, initialize=start_from is None, team=team)
    if start_from is not None:
        restore(state, start_from, same_text=same_text, same_optimizer=same_optimizer)
    told = team.gather((arithmetic(plan, state.kernels), state.kernels.lacking))
    state.arithmetic, state.lacking = of_all_ranks(told)
    state.watch.begin_peak(state.device)
    return state


def build(plan: Plan, text: Text, *, initialize: bool = True, team: Team = SOLO) -> TrainState:
    """Model, optimizer and data at step 0.

    Args:
        initialize: whether the weights are drawn; a checkpoint's will replace them otherwise.

    Raises:
        ConfigError: bitsandbytes is missing.
    """
    config = plan.config
    torch.set_num_threads(config.threads)  # of this thread: drivers differ in which one trains, results must not
    torch.manual_seed(config.seed)  # dropout; nothing else in the process may draw from the global generator
    device = torch.device(config.device)
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        torch.cuda.set_device(device)  # of this thread: events and collectives go by it
        if torch.cuda.current_stream() == torch.cuda.default_stream():
            torch.cuda.set_stream(torch.cuda.Stream())  # of this thread: the default stream cannot be recorded
    model = GPT(
        config.model,
        dropout=config.dropout,
        attention_impl=config.attention_impl,
        gradient_checkpointing=config.gradient_checkpointing,
        float8=config.precision == "fp8",
    )
    if initialize:
        model.initialize(config.seed)
    model.to(device)
    dtype = DTYPES[config.precision]
    kernels = choose_kernels(config, dtype, device, builds_native=builds_native(plan, device))
    model.use_kernels(kernels)
    optimizer = build_optimizer(
        model, config.optimizer, learning_rate=config.learning_rate, weight_decay=config.weight_decay
    )
    return TrainState(
        plan=plan,
        model=model,
        optimizer=optimizer,
        windows=TrainingWindows(text.train, config.model.context_length, config.seed),
        validation=text.validation,
        scaler=torch.amp.GradScaler(device.type, init_scale=FP16_SCALE, enabled=config.precision == "fp16"),
        device=device,
        batch=torch.zeros(config.batch_size, config.model.context_length + 1, dtype=torch.int64, device=device),
        results=torch.tensor([0.0, 0.0, 0.0, 1.0], device=device),
        kernels=kernels,
        recorder=Recorder(records(config, device) and team.world.size == 1),
        parallel=team.parallel_loss(model, device, config.seed),
        team=team,
    )


def wants_compilation(state: TrainState) -> bool:
    """Whether the next step is to be the first compiled one in this process."""
    return state.step >= COMPILE_AT_STEP and state.model.compiled is None and compiles(state.plan, state.device)


def compile_model(state: TrainState) -> None:
    """Compile the model's blocks for this run's batches.

    Raises:
        RuntimeError and others: it cannot be done here; the model is as it was.
    """
    model = state.config.model
    dtype = torch.bfloat16 if DTYPES[state.config.precision] == torch.bfloat16 else torch.float32  # see `GPT.hidden`
    example = torch.zeros(state.config.batch_size, model.context_length, model.width, dtype=dtype, device=state.device)
    state.model.train()
    with repeatable(state.device), state.autocast():
        state.model.compiled = compile_stack(state.model.stack, example)


def try_to_compile(state: TrainState) -> str:
    """`compile_model`; returns why it cannot be done here, in one line, or "" when it was done.

    Raises:
        torch.OutOfMemoryError and others that say so: memory ran out.
    """
    try:
        compile_model(state)
    except Exception as error:  # a compiler can fail in many ways, and none of them need end a run
        if is_out_of_memory(error):
            raise
        return first_line(error)
    return ""


def train_step(state: TrainState, *, wait: bool = False) -> Iterator[dict[str, Any]]:
    """Do one optimizer step and yield the rows of the steps whose results have arrived, oldest first.

    Args:
        wait: until this step's own row is there too.

    Raises:
        DivergedError: a loss or gradient was not finite; its row was yielded, its update was not applied.
    """
    _launch(state)
    yield from finished_rows(state, leave=0 if wait or state.device.type == "cpu" else STEPS_AHEAD)


def _launch(state: TrainState) -> None:
    config, recorder = state.config, state.recorder
    rate = learning_rate(config, state.step, state.plan.total_steps)
    set_rate(state.optimizer, rate)
    recorder.begin_step()
    if config.grad_accum_steps == 1 and config.optimizer == "adamw":
        _load_batch(state)
        recorder.run("step", partial(_whole_step, state))
    else:
        for number in range(config.grad_accum_steps):
            _load_batch(state)
            first = number == 0
            with state.team.accumulating(state.loss, more=number + 1 < config.grad_accum_steps):
                recorder.run("first" if first else "next", partial(_forward_backward, state, first=first))
        _update(state, keep_gradients=recorder.recording)  # their memory belongs to the graphs, which overwrite it
    state.step += 1
    state.tokens += state.plan.tokens_per_step
    _send_results(state, rate)


def _whole_step(state: TrainState) -> None:
    _forward_backward(state, first=True)
    _update(state)


def _load_batch(state: TrainState) -> None:
    """Put the next windows where the step reads them."""
    count, world = state.config.batch_size, state.team.world
    batch = torch.from_numpy(state.windows.batch(state.position + world.rank * count, count))  # (B, T + 1)
    state.position += world.size * count  # one process would go through the same batches one after the other
    if state.device.type == "cuda":
        batch = batch.pin_memory()
    state.batch.copy_(batch, non_blocking=True)


def _forward_backward(state: TrainState, *, first: bool) -> None:
    """One batch: its share of the loss is added up, and its gradients; the first of a step starts both anew."""
    with repeatable(state.device):
        with state.autocast():
            part = state.loss(state.batch[:, :-1], state.batch[:, 1:]) / state.config.grad_accum_steps
        state.scaler.scale(part).backward()
    loss = state.results[0]
    loss.copy_(part.detach() if first else loss + part.detach())


def _update(state: TrainState, *, keep_gradients: bool = False) -> None:
    """Clip and apply the gradients, unless something was not finite; leave loss, norm, verdict and scale in `results`.

    PyTorch's fused AdamW looks at `found_inf` on the device and then leaves the weights alone, as it does for gradient
    scaling. bitsandbytes' optimizers cannot, so for them the host has to look, and to wait on a GPU.
    """
    config, scaler, results = state.config, state.scaler, state.results
    state.team.mean(results[0])
    if scaler.is_enabled():
        scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.grad_clip or math.inf)
    loss, bad = results[0], results[2]
    finite = torch.isfinite(loss) if scaler.is_enabled() else torch.isfinite(loss) & torch.isfinite(norm)
    results[1].copy_(norm)
    bad.copy_(torch.maximum(bad, (~finite).float()))
    if scaler.is_enabled():
        scaler.step(state.optimizer)
        scaler.update()
        assert scaler._scale is not None
        results[3].copy_(scaler._scale)  # its public getter would wait for the device
    elif state.device.type == "cuda" and config.optimizer == "adamw":
        state.optimizer.found_inf = bad  # type: ignore[attr-defined]
        state.optimizer.step()
    elif not bad.item():
        apply_update(state.optimizer)
    if not keep_gradients:
        alone = state.parallel is None  # else gradients lie in DistributedDataParallel's buckets, and are to stay there
        state.optimizer.zero_grad(set_to_none=alone)


def _send_results(state: TrainState, rate: float) -> None:
    """Start copying the step's numbers to the host."""
    row = {
        "step": state.step,
        "epoch": state.position / state.windows.per_epoch,
        "tokens": state.tokens,
        "learning_rate": rate,
        "position": state.position,
    }
    if state.device.type != "cuda":
        state.in_flight.append(InFlight(row, state.results.clone(), None))
        return
    host = torch.empty(4, pin_memory=True)
    host.copy_(state.results, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    state.in_flight.append(InFlight(row, host, arrived))


def finished_rows(state: TrainState, leave: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the rows of steps whose results are there; wait until at most `leave` steps are under way.

    Raises:
        DivergedError: as `train_step`.
    """
    while state.in_flight:
        oldest = state.in_flight[0]
        if oldest.arrived is not None and len(state.in_flight) <= leave and not oldest.arrived.query():
            return
        if oldest.arrived is not None:
            oldest.arrived.synchronize()
        state.in_flight.popleft()
        loss, norm, bad, scale = oldest.results.tolist()
        row = oldest.row
        row["tokens_per_s"] = state.watch.lap(state.plan.tokens_per_step)
        row["elapsed_s"] = state.watch.elapsed_s
        row["train_loss"], row["grad_norm"] = loss, norm
        row["memory_gib"] = state.watch.memory_gib(state.device)
        yield row
        if bad:
            raise DivergedError(_not_finite(row))
        if scale < 2**-10:
            raise DivergedError(_underflow(row))


def _not_finite(row: dict[str, Any]) -> str:
    what = "the loss" if not math.isfinite(row["train_loss"]) else "the gradient"
    return (
        f"At step {row['step']:,} {what} was no finite number, so training was ended before the weights took it. "
        "Branch from the last checkpoint, or start anew, with a lower learning rate; or use bf16 or fp32, "
        "not fp16 or fp8."
    )


def _underflow(row: dict[str, Any]) -> str:
    return (
        f"At step {row['step']:,} fp16 gradients overflowed whatever their scale, so training was ended. "
        "Use bf16 or fp32, or a lower learning rate."
    )


def snapshot(state: TrainState) -> Contents:
    """Everything a checkpoint holds. Call it when no step is in flight."""
    assert not state.in_flight
    if state.device.type == "cuda":
        torch.cuda.synchronize(state.device)  # paged optimizer states are read by the host without a copy that waits
    weights = dict(state.model.state_dict())
    if state.config.tie_embeddings:
        del weights["head.weight"]  # the same tensor as the token embedding
    tensors, scalars = pack_state(state.optimizer)
    tensors |= state.team.random_states(state.device)
    counters = {
        "step": state.step,
        "position": state.position,
        "tokens": state.tokens,
        "optimizer": scalars,
        "scaler": state.scaler.state_dict(),
    }
    return Contents(weights, tensors, counters)


def restore(state: TrainState, checkpoint: Checkpoint, *, same_text: bool, same_optimizer: bool) -> None:
    """Make the state what it was when the checkpoint was saved.

    Args:
        same_text: whether to go on where it was in the text; a branch on another text starts at its beginning.
        same_optimizer: whether the optimizer's state is wanted; a branch with another optimizer starts afresh.

    Raises:
        CheckpointError: it is damaged, or belongs to another architecture.
    """
    contents = load(checkpoint)
    try:
        load_weights(state.model, contents.model)
        random = {name: contents.optimizer.pop(name) for name in [*contents.optimizer] if name.startswith("rng.")}
        if same_optimizer:
            unpack_state(state.optimizer, contents.optimizer, contents.state["optimizer"])
        if state.scaler.is_enabled() and contents.state["scaler"]:
            state.scaler.load_state_dict(contents.state["scaler"])
        state.step, state.tokens = int(contents.state["step"]), int(contents.state["tokens"])
        state.watch = Stopwatch(float(checkpoint.progress["elapsed_s"]))
        state.team.set_random_states(random, state.device)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        message = f"Checkpoint {checkpoint.path.name} of run {checkpoint.run_id} does not fit this model: {error}"
        raise CheckpointError(message) from error
    state.position = int(contents.state["position"]) if same_text else 0


def load_weights(model: GPT, weights: dict[str, Tensor]) -> None:
    """Copy weights into a model; a tied output layer needs none of its own.

    Raises:
        RuntimeError: names or shapes differ.
    """
    if model.config.tie_embeddings:
        weights = weights | {"head.weight": weights["token_embedding.weight"]}
    model.load_state_dict(weights)
