"""A live run without a training: its folder is written as the engine writes it, at the pace that a test likes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from engine.config import TrainConfig, from_dict, to_dict
from engine.metrics import METRICS
from engine.paths import runs_dir
from engine.plan import make_plan
from engine.run import ActiveRun, new_info
from engine.tables import write_parquet

ROW: dict[str, Any] = dict(learning_rate=0.001, tokens_per_s=1800.0, memory_gib=0.8)


def written_run(steps: int, *, total_steps: int = 200_000, state: str = "running") -> ActiveRun:
    """A run that has done so many steps and goes on: its lock is held until it is closed."""
    config = from_dict(to_dict(TrainConfig(device="cpu", max_steps=total_steps, epochs=100_000.0)))
    plan = make_plan(config, train_tokens=20_000, val_tokens=2_000)
    run_id = f"20261122-153012-nano-verdict-{steps % 10_000:04d}"
    folder = runs_dir() / run_id
    folder.mkdir()
    if steps:
        table = pa.Table.from_pandas(_rows(np.arange(1, steps + 1)), schema=METRICS, preserve_index=False)
        write_parquet(table, folder / "metrics.parquet")
    run = ActiveRun(run_id, plan, new_info(run_id, plan, name="A written run")).open()
    run.set_state(state)
    return run


def log_steps(run: ActiveRun, first: int, last: int, **values: Any) -> None:
    """Log these steps, `values` in each, and put them on disk."""
    for row in _rows(np.arange(first, last + 1)).drop(columns=["time", "val_loss"]).to_dict("records"):
        run.log(row | values)
    run.flush()


def _rows(steps: np.ndarray) -> pd.DataFrame:
    noise = np.random.default_rng(1).normal(0, 0.1, len(steps))
    rows = pd.DataFrame({"step": steps, "epoch": steps / 14, "tokens": steps * 1024, "elapsed_s": steps * 0.5} | ROW)
    rows["train_loss"] = 3 + 7.8 * np.exp(-steps / 3000) + noise
    rows["val_loss"] = np.where(steps % 1000 == 0, 3.2 + 7 * np.exp(-steps / 3000), np.nan)
    rows["grad_norm"] = 1 + np.abs(noise)
    rows["time"] = datetime.now(UTC).replace(microsecond=0)
    return rows
