"""Train with one and with two GPUs of this machine, and print what was measured, one JSON object a line.

    python tests/gpu/two_gpus.py > tests/data/two_gpus.jsonl                            # about five minutes
    python tests/gpu/two_gpus.py --compile on --batch-size 64 --steps 120 >> tests/data/two_gpus.jsonl
    python tests/gpu/two_gpus.py --device cpu --preset nano --batch-size 2 --steps 8    # tries the script without a GPU

Throughput of two processes against one at the same batch per GPU; the loss curve of two against one with the same
global batch; a run of two that is killed back to a checkpoint and resumed; what a run says when a rank is killed.
Every number comes from a real run through `engine.train`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil
import torch

from engine.paths import PROJECT
from engine.run import Run, list_runs

SINGLE = [sys.executable, "-m", "engine.train"]
DOUBLE = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "engine.train"]
QUIET = dict(eval_every=-1, sample_length=0, save_every=-1, epochs=1000)


def make_corpus(folder: Path, words: int = 500_000) -> None:
    """A text that is long enough for large batches: the words of *The Verdict* in a random order."""
    vocabulary = (PROJECT / "corpora" / "verdict.txt").read_text(encoding="utf-8").split()
    chosen = random.Random(1).choices(vocabulary, k=words)
    folder.mkdir()
    (folder / "words.txt").write_text(" ".join(chosen), encoding="utf-8")


def command(launcher: list[str], **settings: Any) -> list[str]:
    """The command line of a run."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    return [*launcher, "--corpus=words", *words]


def run(launcher: list[str], **settings: Any) -> Run:
    """Train, and return the run; what went wrong is shown."""
    known = {r.id for r in list_runs()}
    result = subprocess.run(command(launcher, **settings), cwd=PROJECT, capture_output=True, text=True, timeout=400)
    if result.returncode:
        raise SystemExit(f"{settings}\n{result.stdout}\n{result.stderr}")
    return next(r for r in list_runs() if r.id not in known)


def rate(finished: Run) -> float:
    """Tokens per second over the second half."""
    rows = finished.metrics.iloc[len(finished.metrics) // 2 :]
    return float((rows.tokens.iloc[-1] - rows.tokens.iloc[0]) / (rows.elapsed_s.iloc[-1] - rows.elapsed_s.iloc[0]))


def throughput(options: argparse.Namespace) -> dict[str, Any]:
    """One and two processes, each with the same batch."""
    found: dict[str, Any] = {"batch_size": options.batch_size}
    for name, launcher in (("one", SINGLE), ("two", DOUBLE)):
        done = run(launcher, **common(options), max_steps=options.steps, batch_size=options.batch_size)
        found |= {f"{name}_tokens_per_s": round(rate(done)), f"{name}_gib": float(done.metrics.memory_gib.max())}
        shutil.rmtree(done.folder)
    return found | {"ratio": round(found["two_tokens_per_s"] / found["one_tokens_per_s"], 3)}


def same_losses(options: argparse.Namespace) -> dict[str, Any]:
    """The same global batch, by one process in two passes and by two in one."""
    curves = []
    for launcher, passes in ((SINGLE, 2), (DOUBLE, 1)):
        done = run(
            launcher,
            **common(options),
            max_steps=options.steps,
            batch_size=options.batch_size // 2 or 1,
            grad_accum_steps=passes,
        )
        curves.append(done.metrics.train_loss)
        shutil.rmtree(done.folder)
    return {
        "steps": options.steps,
        "largest_difference": float((curves[0] - curves[1]).abs().max()),
        "first_and_last": [[float(c.iloc[0]), float(c.iloc[-1])] for c in curves],
    }


def exact_resume(options: argparse.Namespace, optimizer: str) -> dict[str, Any]:
    """How far two processes that were resumed are from two that never stopped; 0 and True are exact."""
    settings = common(options) | dict(config="nano", dropout=0.1, optimizer=optimizer, save_every=8, max_steps=20)
    whole = run(DOUBLE, **settings, batch_size=4)
    losses, weights = whole.metrics.train_loss, digest(whole)
    for checkpoint in whole.checkpoints[1:]:
        shutil.rmtree(checkpoint.path)
    (whole.folder / "run.json").write_text(json.dumps(whole.info | {"state": "running"}))
    result = subprocess.run([*DOUBLE, "--resume", whole.id], cwd=PROJECT, capture_output=True, text=True, timeout=400)
    if result.returncode:
        raise SystemExit(result.stderr)
    found = {
        "optimizer": optimizer,
        "steps": list(whole.metrics.step) == list(range(1, 21)),
        "largest_difference": float((whole.metrics.train_loss - losses).abs().max()),
        "same_weights": digest(whole) == weights,
    }
    shutil.rmtree(whole.folder)
    return found


def digest(finished: Run) -> str:
    """SHA-256 of the last weights."""
    manifest = json.loads((finished.checkpoints[-1].path / "manifest.json").read_text())
    return str(manifest["files"]["model.safetensors"]["sha256"])


def killed_rank(options: argparse.Namespace) -> dict[str, Any]:
    """Kill rank 1 in the middle, and see what the run says and how long that takes."""
    settings = common(options) | dict(config="nano", max_steps=100_000, batch_size=4)
    torchrun = subprocess.Popen(
        command(DOUBLE, **settings), cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (list_runs() and len(list_runs()[0].metrics) > 20):
        time.sleep(0.2)
        if torchrun.poll() is not None:
            raise SystemExit("the run ended before its rank 1 was killed")
    ranks = psutil.Process(torchrun.pid).children()
    os.kill(next(r.pid for r in ranks if r.environ().get("RANK") == "1"), signal.SIGKILL)
    killed = time.monotonic()
    torchrun.wait(timeout=120)
    found = {"seconds": round(time.monotonic() - killed, 1)} | {k: list_runs()[0].info[k] for k in ("state", "error")}
    shutil.rmtree(list_runs()[0].folder)
    return found


def common(options: argparse.Namespace) -> dict[str, Any]:
    """What all runs share."""
    how = dict(precision="fp32", context_length=16) if options.device == "cpu" else dict(precision="bf16")
    return QUIET | how | dict(config=options.preset, device=options.device, compile=options.compile)


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "throughput": throughput,
    "same_losses": same_losses,
    "exact_resume": lambda options: [exact_resume(options, name) for name in ("adamw", "adamw_8bit")],
    "killed_rank": killed_rank,
}


def main() -> None:
    """Measure everything, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--preset", default="medium")
    parser.add_argument("--batch-size", type=int, default=32, help="sequences per GPU")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--compile", default="auto", choices=("auto", "on", "off"))
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], default=[*PARTS])
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="two-gpus-"))
    os.environ["LAB_RUNS"], os.environ["LAB_CORPORA"] = str(folder / "runs"), str(folder / "corpora")
    make_corpus(folder / "corpora")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "none"
    try:
        for part in options.parts:
            how = {"gpu": name, "torch": version("torch"), "compile": options.compile, "part": part}
            print(json.dumps(how | {"found": PARTS[part](options)}), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
