"""Runs with very many rows, and what a redraw of their comparison costs.

    python tests/many_rows.py DIR --runs 10 --rows 1000000 --redraws 200

writes them to DIR, draws them over each other, changes the view again and again, and prints seconds and memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.config import TrainConfig, to_dict
from engine.metrics import METRICS


def write_runs(folder: Path, runs: int, rows: int) -> list[str]:
    """Write runs' folders and return their ids; a million rows take about a second."""
    return [write_run(folder, number, rows) for number in range(runs)]


def write_run(folder: Path, number: int, rows: int, *, after: int = 0, **info: Any) -> str:
    """One run, whose first step follows `after`; `info` goes to its run.json."""
    random = np.random.default_rng(number)
    step = np.arange(after + 1, after + rows + 1)
    loss = 3 + 7.8 * np.exp(-step * 12 / rows) + random.normal(0, 0.1, rows)
    columns = {
        "step": step,
        "epoch": step / 1000,
        "tokens": step * 1024,
        "elapsed_s": step * (0.1 + 0.01 * number),
        "time": pa.array(1_764_000_000_000 + step, pa.int64()).cast(pa.timestamp("ms", tz="UTC")),
        "train_loss": loss,
        "val_loss": pa.array(loss + 0.1, mask=step % max(1, rows // 100) != 0),
        "learning_rate": np.full(rows, 1e-3),
        "grad_norm": random.gamma(2, 0.5, rows),
        "tokens_per_s": random.normal(10_000, 200, rows),
        "memory_gib": np.full(rows, 1.5),
    }
    run = folder / f"20261122-1530{number:02}-nano-verdict-{number:04x}"
    run.mkdir(parents=True, exist_ok=True)
    config = to_dict(TrainConfig(context_length=256, learning_rate=1e-3 * (number + 1), device="cpu"))
    described = {"name": f"Run {number}", "state": "completed", "config": config, "total_steps": after + rows, **info}
    (run / "run.json").write_text(json.dumps(described))
    pq.write_table(pa.table(columns, schema=METRICS), run / "metrics.parquet")
    return run.name


def memory_mib() -> float:
    """What this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def views(redraws: int) -> list[dict[str, str]]:
    """Addresses of comparisons that differ in axis, smoothing and curve."""
    axes = ("Step", "Tokens", "Training time", "Epoch")
    curves = ("Loss", "Throughput", "Gradient norm")
    return [
        {"x": axes[i % 4], "curve": curves[i % 3], "smoothing": f"{i % 97 / 100:.2f}", "log_x": str(i % 2 == 0).lower()}
        for i in range(redraws)
    ]


def main() -> None:
    """Generate, draw, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--redraws", type=int, default=200)
    asked = parser.parse_args()
    os.environ["LAB_RUNS"] = str(asked.folder)
    began = time.perf_counter()
    ids = write_runs(asked.folder, asked.runs, asked.rows)
    print(f"{len(ids)} runs of {asked.rows:,} rows written in {time.perf_counter() - began:.1f} s")
    from tests.app.test_comparison import show

    began = time.perf_counter()
    show(*ids)
    print(f"first drawing, read from disk: {time.perf_counter() - began:.2f} s, {memory_mib():,.0f} MiB")
    took, held = [], []
    for address in views(asked.redraws):
        began = time.perf_counter()
        show(*ids, **address)
        took.append(time.perf_counter() - began)
        held.append(memory_mib())
    ordered = sorted(took)
    print(f"{len(took)} redraws: median {ordered[len(took) // 2]:.3f} s, largest {ordered[-1]:.3f} s")
    quarters = [held[len(held) * i // 4] for i in range(4)] + [held[-1]]
    print("memory over the redraws, MiB:", *(f"{mib:,.0f}" for mib in quarters))


if __name__ == "__main__":
    main()
