"""Measure the most memory a training process holds on a CPU, to hold `engine.memory`'s estimate to it.

    python tests/cpu_memory_grid.py --out tests/data/cpu_memory.json

Needs about fifteen minutes on two cores with GCC and 4 GiB of memory; goes on where it left off. Each row is a whole
run of three steps, with its validation, its sample and its checkpoint, in a process of its own, as
`python -m engine.train` is: the peak of its resident memory. All are computed by PyTorch, and those in fp32 again by
the lab's own kernels. A third of the rows, drawn with a fixed seed, is held back from fitting.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.config import TrainConfig, check
from engine.environment import peak_bytes
from engine.memory import GIB, estimate_memory

STEPS = 3
LARGEST = {"nano": 8192, "small": 2048, "medium": 1024}  # tokens of a batch, for the sake of time
CHOICES: dict[str, tuple[Any, ...]] = {
    "precision": ("fp32", "fp32", "bf16"),
    "optimizer": ("adamw", "adamw", "adamw_8bit"),
    "attention_impl": ("sdpa", "sdpa", "manual"),
    "gradient_checkpointing": (False, False, True),
    "tie_embeddings": (True, True, False),
    "dropout": (0.0, 0.0, 0.1),
    "grad_accum_steps": (1, 1, 2),
}
VARIED = ("config", "batch_size", "context_length", *CHOICES, "compile")


def corner_cases() -> Iterator[dict[str, Any]]:
    """A usual run of the smaller presets, one change at a time; the smallest and the largest batches."""
    for base in (
        {"config": "nano", "batch_size": 16, "context_length": 256},
        {"config": "small", "batch_size": 4, "context_length": 256},
    ):
        yield base
        for name, values in CHOICES.items():
            if name != "grad_accum_steps" or base["config"] == "nano":
                yield base | {name: values[-1]}
    yield {"config": "nano", "batch_size": 4, "context_length": 256}
    yield {"config": "nano", "batch_size": 1, "context_length": 64}
    yield {"config": "nano", "batch_size": 2, "context_length": 2048, "attention_impl": "manual"}
    yield {"config": "nano", "batch_size": 2, "context_length": 2048, "attention_impl": "manual", "precision": "bf16"}
    yield {"config": "small", "batch_size": 2, "context_length": 512}
    yield {"config": "medium", "batch_size": 1, "context_length": 512}
    yield {"config": "medium", "batch_size": 2, "context_length": 256, "optimizer": "adamw_8bit", "precision": "bf16"}
    yield {"config": "medium", "batch_size": 1, "context_length": 1024, "gradient_checkpointing": True}


def random_cases(seed: int = 0) -> Iterator[dict[str, Any]]:
    """Endless random settings of the two smaller presets."""
    dice = random.Random(seed)
    while True:
        preset = dice.choice(("nano", "nano", "small"))
        context = dice.choice((64, 128, 256, 512, 1024))
        batch = round(2 ** dice.uniform(0, 7))
        if 64 <= batch * context <= LARGEST[preset]:
            case = {"config": preset, "batch_size": batch, "context_length": context}
            yield case | {name: dice.choice(values) for name, values in CHOICES.items()}


def cases(wanted: int) -> list[tuple[TrainConfig, bool]]:
    """So many different settings, and whether they are held back; those in fp32 again, with the lab's own kernels."""
    found: dict[TrainConfig, None] = {}
    for source in (corner_cases(), random_cases()):
        for settings in source:
            if len(found) == wanted:
                break
            config = config_of(settings)
            assert not check(config), settings
            found[config] = None
    held_back = set(random.Random(0).sample(range(wanted), wanted // 3))
    plain = [(config, number in held_back) for number, config in enumerate(found)]
    return plain + [(replace(config, compile="on"), held) for config, held in plain if config.precision == "fp32"]


def config_of(settings: dict[str, Any]) -> TrainConfig:
    """A short run with these settings."""
    short = {"max_steps": STEPS, "eval_every": -1, "eval_batches": 1, "sample_length": 2, "compile": "off"}
    return TrainConfig(**({"corpus": "grid", "device": "cpu", "precision": "fp32"} | short | settings))


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """A row, measured in a process of its own with runs and corpora of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("runs", "corpora"):
            (folder / part).mkdir()
        dice = random.Random(0)
        words = (dice.choice(("one", "two", "three", "four", "five")) for _ in range(60_000))  # a word is a token
        (folder / "corpora" / "grid.txt").write_text(" ".join(words))
        done = subprocess.run(
            [sys.executable, __file__, "--one", json.dumps(settings)],
            env=os.environ | {"LAB_RUNS": str(folder / "runs"), "LAB_CORPORA": str(folder / "corpora")},
            capture_output=True,
            text=True,
            timeout=300,
        )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def measure_one(settings: dict[str, Any]) -> None:
    """The body of such a process; prints its row."""
    from engine.train import train

    began = time.time()
    run = train(config_of(settings))
    assert run.state == "completed", run.info
    print(json.dumps({"peak": peak_bytes(), "seconds": round(time.time() - began, 1)}))


def main() -> None:
    """Measure, and write after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, default=42, help="how many settings to measure")
    parser.add_argument("--seconds", type=float, default=520, help="begin no row after this long")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure_one(json.loads(options.one))
        return
    data = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    data |= {"torch": version("torch"), "python": platform.python_version(), "system": platform.system()}
    began = time.time()
    for config, held_back in cases(options.rows):
        key = {name: getattr(config, name) for name in VARIED}
        if any(key.items() <= row.items() for row in data["rows"]):
            continue
        if time.time() - began > options.seconds:
            break
        row = key | {"held_back": held_back} | measure(key)
        data["rows"].append(row)
        options.out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        off = estimate_memory(config, "cpu").total / row["peak"] - 1
        print(f"{off:+.1%}", *key.values(), f"{row['peak'] / GIB:.3f} GiB {row['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
