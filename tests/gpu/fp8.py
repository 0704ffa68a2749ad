"""Hold fp8 to bf16 on a card that has it, and print what was measured, one JSON object a line; see docs/gpu.md.

    python tests/gpu/fp8.py > tests/data/h100_fp8.jsonl                                           # about 15 minutes
    python tests/gpu/fp8.py --device cpu --batch 2 --steps 4 --seconds 0.2 --presets nano         # tries the script

Curves are of real runs through `engine.train` on *The Verdict*, speeds those of `engine.bench train`; bf16 beside
fp8, compiled and not.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ["LAB_RUNS"] = tempfile.mkdtemp(prefix="fp8-")

import torch

from engine import TrainConfig, environment, float8, resume_run, train
from engine.bench.train import measure_training
from engine.memory import GIB, estimate_memory
from engine.run import Run
from engine.start import new_run
from tests.gpu.parts import Part, print_found
from tests.stop_at import StopAt

PRECISIONS, COMPILE = ("bf16", "fp8"), ("off", "on")


def config_of(options: argparse.Namespace, preset: str, **settings: Any) -> TrainConfig:
    """A run that depends on its settings alone."""
    common: dict[str, Any] = dict(
        config=preset, corpus="verdict", epochs=10_000, max_steps=options.steps, batch_size=4, device=options.device
    )
    return TrainConfig(**(common | dict(sample_length=0, eval_every=-1, save_every=-1) | settings))


def product_error(device: str) -> dict[str, float]:
    """|found - exact| / |exact| of a linear layer and its gradients, as the card multiplies; about 0.04 to 0.06."""
    torch.manual_seed(0)
    x, weight, g = (torch.randn(256, 256, device=device) for _ in range(3))
    x.requires_grad_()
    weight.requires_grad_()
    bias = torch.randn(256, device=device, requires_grad=True)
    y = float8.linear(x, weight, bias)
    d_x, d_weight, _ = torch.autograd.grad(y, (x, weight, bias), g.bfloat16())
    pairs = {"y": (y, x @ weight.T + bias), "d_x": (d_x, g @ weight), "d_weight": (d_weight, g.T @ x)}
    return {name: float(((a.float() - b).norm() / b.norm()).detach()) for name, (a, b) in pairs.items()}


def curves(options: argparse.Namespace, preset: str, compile: str) -> dict[str, Any]:
    """The losses of fp8 and of bf16 (and of fp32, to tell how far apart precisions may be), step by step."""
    found = {}
    for precision in ("fp32", *PRECISIONS):
        found[precision] = list(
            train(config_of(options, preset, precision=precision, compile=compile)).metrics.train_loss
        )
    return {"config": preset, "compile": compile, "train_loss": found} | {
        f"{a}_{b}": _apart(found[a], found[b]) for a, b in (("fp8", "bf16"), ("bf16", "fp32"))
    }


def _apart(a: list[float], b: list[float]) -> dict[str, float]:
    apart = [abs(x - y) for x, y in zip(a, b, strict=True)]
    return {"median": statistics.median(apart), "largest": max(apart), "last": apart[-1]}


def speed(options: argparse.Namespace, preset: str, precision: str, compile: str) -> dict[str, Any]:
    """Tokens per second, share of the products' rate and peak, beside the estimate of memory."""
    config = config_of(options, preset, precision=precision, compile=compile, batch_size=options.batch)
    device = "cpu" if options.device == "cpu" else "cuda:0"
    threads = environment.default_threads()
    config = replace(config, device=device, context_length=config.model.context_length, threads=threads)
    config = replace(config, learning_rate=config.preset.learning_rate, warmup_steps=10)
    measured = measure_training(config, options.seconds)
    estimate = estimate_memory(config).peak_allocated / GIB
    what = {"config": preset, "precision": precision, "compile": compile, "batch_size": options.batch}
    return what | asdict(measured) | {"utilization": measured.utilization, "estimate_gib": estimate}


def resumed(options: argparse.Namespace, compile: str) -> dict[str, Any]:
    """How far a stopped and resumed run's losses are from an uninterrupted one's; 0 is exact."""
    config = config_of(options, "nano", precision="fp8", compile=compile, dropout=0.1)
    whole, run = train(config), new_run(config)
    stopped: Run = train(config, run, StopAt(options.steps // 2))
    active = resume_run(stopped.id)
    losses = train(active.config, active).metrics.train_loss
    return {"compile": compile, "largest_difference": float((whole.metrics.train_loss - losses).abs().max())}


PARTS: dict[str, Part] = {
    "product_error": lambda options: iter([product_error(options.device)]),
    "resume": lambda options: (resumed(options, how) for how in COMPILE),
    "curves": lambda options: (curves(options, preset, how) for preset in options.presets for how in COMPILE),
    "speed": lambda options: (
        speed(options, preset, precision, how)
        for preset in options.presets
        for how in COMPILE
        for precision in PRECISIONS
    ),
}


def main() -> None:
    """Measure everything, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--presets", nargs="+", default=["nano", "medium"])
    parser.add_argument("--batch", type=int, default=32, help="of the speeds; curves have 4")
    parser.add_argument("--steps", type=int, default=200, help="of a curve")
    parser.add_argument("--seconds", type=float, default=10, help="of each speed")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], default=[*PARTS])
    options = parser.parse_args()
    if options.device == "cpu":
        environment.has_fp8 = lambda device: True  # for the script's sake: the product refuses it there
    print_found(PARTS, options)


if __name__ == "__main__":
    main()
