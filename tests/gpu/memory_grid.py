"""Measure what training really holds on a GPU, for settings of all kinds, to hold `engine.memory`'s estimate to it.

    python tests/gpu/memory_grid.py --out tests/data/h100_memory.json

Needs a CUDA GPU and about six minutes; goes on where it left off when `--out` has results already. Each row is six
real steps through `engine.step`, on random tokens and with constant weights, as values change nothing in the memory.
Between rows everything is freed, the cuBLAS workspaces too, so that a row is like a fresh process. Some are repeated in
fresh processes, which also shows what the whole process uses of the device, and some under a limit, to find with how
little they get along. A third of the rows, told by a hash of their settings, is held back from any fitting.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from engine import step
from engine.config import PRESETS, TrainConfig, check
from engine.evaluate import evaluate
from engine.generate import stream_tokens
from engine.memory import GIB, estimate_memory
from engine.model import GPT
from engine.plan import make_plan
from engine.run import ActiveRun

LARGEST = 70 * GIB  # of the estimate; what is above may not fit
STEPS = 6  # the fifth is recorded as a graph, where steps are
TIGHT = (1.0, 1.02, 1.05, 1.1, 1.15, 1.2, 1.3)  # times the most allocated
CHOICES: dict[str, tuple[Any, ...]] = {
    "precision": ("fp32", "bf16", "bf16", "fp16"),
    "optimizer": ("adamw", "adamw", "adamw_8bit", "paged_adamw_8bit"),
    "attention_impl": ("sdpa", "sdpa", "manual"),
    "gradient_checkpointing": (False, True),
    "tie_embeddings": (True, True, False),
    "dropout": (0.0, 0.0, 0.1),
    "grad_accum_steps": (1, 1, 3),
    "compile": ("auto", "auto", "off"),
}


def corner_cases() -> Iterator[dict[str, Any]]:
    """The defaults of every preset, one change at a time, and the smallest and largest batches."""
    for preset in PRESETS:
        for precision in ("fp32", "bf16", "fp16"):
            yield {"config": preset, "batch_size": 8, "precision": precision}
    for name, values in CHOICES.items():
        for value in sorted(set(values), key=str):
            yield {"config": "medium", "batch_size": 4, "precision": "bf16", name: value}
    for preset in ("nano", "small", "xlarge"):
        yield {"config": preset, "batch_size": 1, "context_length": 64, "precision": "bf16"}
        yield {"config": preset, "batch_size": 1, "context_length": 64, "precision": "fp32", "tie_embeddings": False}
        yield {"config": preset, "batch_size": 1, "context_length": 64, "precision": "fp16", "grad_accum_steps": 3}
    yield {"config": "nano", "batch_size": 64, "context_length": 1024, "precision": "bf16"}
    yield {"config": "small", "batch_size": 8, "context_length": 2048, "precision": "fp32", "attention_impl": "manual"}
    yield {"config": "small", "batch_size": 2, "context_length": 4096, "precision": "bf16", "attention_impl": "manual"}
    yield {"config": "medium", "batch_size": 32, "precision": "bf16", "gradient_checkpointing": True}


def random_cases(seed: int = 0) -> Iterator[dict[str, Any]]:
    """Endless random settings: batches of 1 to 64, contexts of 64 to 2048."""
    dice = random.Random(seed)
    while True:
        preset = dice.choice(list(PRESETS))
        contexts = [t for t in (64, 128, 256, 384, 512, 768, 1024, 2048) if t <= 8 * PRESETS[preset].context_length]
        case: dict[str, Any] = {
            "config": preset,
            "batch_size": min(64, round(2 ** dice.uniform(0, 6.2))),
            "context_length": dice.choice(contexts),
        }
        yield case | {name: dice.choice(values) for name, values in CHOICES.items()}


def cases(wanted: int) -> Iterator[TrainConfig]:
    """So many different settings, those left out whose estimate is above the GPU's memory."""
    seen: set[TrainConfig] = set()
    for source in (corner_cases(), random_cases()):
        for settings in source:
            config = config_of(settings)
            assert not check(config), settings
            if len(seen) == wanted:
                return
            if config not in seen and estimate_memory(config, "cuda").total < LARGEST:
                seen.add(config)
                yield config


def key_of(config: TrainConfig) -> dict[str, Any]:
    """The settings that a row varies."""
    return {name: getattr(config, name) for name in ("config", "batch_size", "context_length", *CHOICES)}


def is_held_back(key: dict[str, Any]) -> bool:
    """Whether a row belongs to the third that nothing is fitted on."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).digest()[0] % 3 == 0


def constant_weights(self: GPT, seed: int) -> None:
    """In the place of `GPT.initialize`, which draws random numbers for seconds."""
    with torch.no_grad():
        for weight in self.parameters():
            weight.fill_(0.01)


class Peaks:
    """The most that was allocated in each part of the steps; their maximum is the peak of it all."""

    def __init__(self) -> None:
        self.forward = self.backward = self.update = 0
        self._running = "update"

    def enter(self, part: str) -> None:
        """Book what was held since the last call, and begin a part."""
        setattr(self, self._running, max(getattr(self, self._running), torch.cuda.max_memory_allocated()))
        torch.cuda.reset_peak_memory_stats()
        self._running = part


def prepared(config: TrainConfig) -> step.TrainState:
    """A fresh state on random tokens."""
    windows = config.sequences_per_step * 2
    tokens = np.random.default_rng(0).integers(0, 50257, windows * config.context_length + 1).astype(np.uint16)
    text = SimpleNamespace(train=tokens, validation=tokens)
    step.open_text = lambda _: text  # type: ignore[assignment,return-value]
    GPT.initialize = constant_weights  # type: ignore[method-assign]
    plan = make_plan(config, len(tokens), len(tokens))
    threads = dataclasses.replace(plan.config, threads=8)
    run = SimpleNamespace(config=threads, plan=dataclasses.replace(plan, config=threads), start_from=None)
    return step.prepare(cast(ActiveRun, run))


def watch(state: step.TrainState, peaks: Peaks) -> None:
    """Tell `peaks` where each forward pass, backward pass and update begins."""
    loss, clip = state.model.loss, torch.nn.utils.clip_grad_norm_

    def watched_loss(*args: Any, **kwargs: Any) -> torch.Tensor:
        peaks.enter("forward")
        try:
            return loss(*args, **kwargs)
        finally:
            peaks.enter("backward")

    def watched_clip(*args: Any, **kwargs: Any) -> torch.Tensor:
        peaks.enter("update")
        return original(*args, **kwargs)

    original = getattr(clip, "original", clip)
    watched_clip.original = original  # type: ignore[attr-defined]
    state.model.loss = watched_loss  # type: ignore[method-assign]
    torch.nn.utils.clip_grad_norm_ = watched_clip


def measure(config: TrainConfig) -> dict[str, Any]:
    """One row: bytes allocated, reserved and used on the device."""
    torch._dynamo.reset()
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    started = time.time()
    state = prepared(config)
    fresh = torch.cuda.memory_allocated()
    peaks = Peaks()
    watch(state, peaks)
    if config.compile == "on":
        step.compile_model(state)
    for _ in range(STEPS):
        for row in step.train_step(state, wait=True):
            assert np.isfinite(row["train_loss"]), row
    peaks.enter("update")
    free = torch.cuda.mem_get_info()[0]
    reserved = torch.cuda.max_memory_reserved()
    between = torch.cuda.memory_allocated()
    seconds = time.time() - started
    del state.model.loss  # the class's own again
    evaluate(state)
    evaluation = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    state.model.eval()
    with state.autocast():
        list(stream_tokens(state.model, [1] * config.context_length, 2, temperature=0.8, top_k=50, seed=0))
    return {
        "before": before,
        "fresh": fresh,
        "between_steps": between,
        "forward": peaks.forward,
        "backward": peaks.backward,
        "update": peaks.update,
        "peak_allocated": max(peaks.forward, peaks.backward, peaks.update),
        "peak_reserved": reserved,
        "free": free,
        "evaluation": evaluation,
        "sampling": torch.cuda.max_memory_allocated(),
        "seconds": round(seconds, 2),
    }


def measure_fresh(configs: list[TrainConfig], ahead: int = 4) -> Iterator[tuple[TrainConfig, dict[str, Any] | str]]:
    """The same in processes of their own, one at a time on the device; the next ones load PyTorch meanwhile.

    Yields:
        a config, and its row with the whole process's use of the device, or what the process said when it failed.
    """
    waiting: list[tuple[TrainConfig, subprocess.Popen[str]]] = []
    left = list(configs)
    try:
        while left or waiting:
            while left and len(waiting) < ahead:
                command = [sys.executable, __file__, "--one", json.dumps(key_of(left[0]))]
                pipe = subprocess.PIPE
                waiting.append(
                    (left.pop(0), subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
                )
            config, process = waiting.pop(0)
            out, complaint = process.communicate("go\n", timeout=120)
            yield config, complaint[-2000:] if process.returncode else json.loads(out.splitlines()[-1])
    finally:
        for _, process in waiting:
            process.kill()
            process.wait()


def measure_one(settings: str) -> None:
    """The body of such a process; prints its row."""
    config = config_of(json.loads(settings))
    sys.stdin.readline()  # its turn on the device
    row = measure(config)
    free, total = row.pop("free"), torch.cuda.mem_get_info()[1]
    print(json.dumps(row | {"device_used": total - free}))


def measure_tight(config: TrainConfig, peak: int) -> dict[str, Any]:
    """With how little reserved memory the same steps still run, as a multiple of the most that they allocate."""
    total = torch.cuda.mem_get_info()[1]
    for factor in TIGHT:
        torch.cuda.set_per_process_memory_fraction(min(1.0, factor * peak / total))
        try:
            row = measure(config)
        except torch.OutOfMemoryError:
            gc.collect()
            continue
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return {"peak_allocated": peak, "factor": factor, "peak_reserved": row["peak_reserved"]}
    return {"peak_allocated": peak, "factor": None}


def config_of(settings: dict[str, Any]) -> TrainConfig:
    """A short run with these settings."""
    config = TrainConfig(**settings, device="cuda", learning_rate=1e-4, eval_batches=1)
    return dataclasses.replace(config, context_length=config.model.context_length)


def spread(configs: list[TrainConfig], wanted: int) -> list[TrainConfig]:
    """So many of them, evenly."""
    return configs[:: max(1, len(configs) // wanted)][:wanted] if wanted else []


class Record:
    """The file of results; written after each row."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.deadline = path, time.time() + seconds
        self.data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def missing(self, table: str, configs: list[TrainConfig]) -> list[TrainConfig]:
        """Those that have no row yet."""
        rows = self.data.setdefault(table, [])
        return [config for config in configs if not any(key_of(config).items() <= row.items() for row in rows)]

    def add(self, table: str, config: TrainConfig, measured: dict[str, Any] | str) -> bool:
        """Write a row, or print why there is none; returns whether there is time for another."""
        key = key_of(config)
        if isinstance(measured, str):
            print("failed:", *key.values(), measured.replace("\n", " "), flush=True)
        else:
            measured.pop("free", None)
            self.data[table].append(key | {"held_back": is_held_back(key)} | measured)
            self.path.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
            off = estimate_memory(config, "cuda").peak_allocated / measured["peak_allocated"] - 1
            more = [v for k, v in measured.items() if k in ("factor", "seconds")]
            print(table, f"{off:+.1%}", *key.values(), f"{measured['peak_allocated'] / GIB:.3f}", *more, flush=True)
        return time.time() < self.deadline


def main() -> None:
    """Measure, and write after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, default=190, help="how many settings to measure")
    parser.add_argument("--fresh", type=int, default=38, help="how many of them to repeat in processes of their own")
    parser.add_argument("--compiled", type=int, default=12, help="how many of them to repeat compiled")
    parser.add_argument("--tight", type=int, default=12, help="how many of them to repeat with as little as they bear")
    parser.add_argument("--seconds", type=float, default=540, help="stop beginning new rows after this long")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure_one(options.one)
        return
    record = Record(options.out, options.seconds)
    configs = list(cases(options.rows))
    for config, measured in measure_fresh(record.missing("fresh", spread(configs, options.fresh))):
        if not record.add("fresh", config, measured):  # before this process itself takes of the device
            break
    record.data |= {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    record.data["device_memory"] = torch.cuda.mem_get_info()[1]
    for config in record.missing("rows", configs):
        try:
            measured = measure(config)
        except (RuntimeError, AssertionError) as error:
            measured = str(error)
        if not record.add("rows", config, measured):
            break
    compiled = [dataclasses.replace(config, compile="on") for config in spread(configs, options.compiled)]
    for config in record.missing("compiled", compiled):
        if not record.add("compiled", config, measure(config)):
            break
    peaks = {json.dumps(key_of(c)): r for c in configs for r in record.data["rows"] if key_of(c).items() <= r.items()}
    for config in record.missing("tight", spread(configs[3:], options.tight)):
        row = peaks.get(json.dumps(key_of(config)))
        if row and not record.add("tight", config, measure_tight(config, row["peak_allocated"])):
            break


if __name__ == "__main__":
    main()
