"""Folders of runs as a long-used lab has them, written without training: `python -m tests.many_runs FOLDER 500`."""

from __future__ import annotations

import io
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from engine.config import PRESETS, TrainConfig, to_dict
from engine.metrics import METRICS
from engine.tables import write_parquet

STATES = ("completed", "completed", "completed", "stopped", "failed", "running")  # the last: interrupted, nobody has it
CORPORA = ("verdict", "tinystories", "wikitext2", "shakespeare")
TAGS = ("baseline", "paper", "try again", "wide")
FIRST = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)


def make_many_runs(folder: Path, count: int, rows: int = 200) -> list[str]:
    """Write `count` runs of `rows` steps each into `folder`; returns their ids, oldest first."""
    metrics = _metrics(rows)
    ids = []
    for number in range(count):
        info = _info(number, rows)
        run = folder / info["id"]
        run.mkdir(parents=True)
        (run / "run.json").write_text(json.dumps(info))
        (run / "metrics.parquet").write_bytes(metrics)
        if number % 5 == 0:
            labels = {"tags": [TAGS[number // 5 % len(TAGS)]], "starred": number % 50 == 0, "notes": f"Note {number}."}
            (run / "labels.json").write_text(json.dumps(labels))
        ids.append(info["id"])
    return ids


def _info(number: int, rows: int) -> dict[str, object]:
    """`run.json`; every run differs from the others in what a list can be sorted by."""
    begun = FIRST + timedelta(hours=7 * number)
    preset, corpus = list(PRESETS)[number % len(PRESETS)], CORPORA[number // 3 % len(CORPORA)]
    loss = 3.0 + (number * 37 % 500) / 100
    run_id = f"{begun:%Y%m%d-%H%M%S}-{preset}-{corpus}-{number:04x}"
    return {
        "schema_version": 1,
        "id": run_id,
        "name": f"{preset} on {corpus}, try {number}",
        "notes": "",
        "tags": [],
        "state": STATES[number % len(STATES)],
        "error": "",
        "created": begun.isoformat().replace("+00:00", "Z"),
        "config": to_dict(TrainConfig(config=preset, corpus=corpus, device="cpu", learning_rate=0.001)),
        "total_steps": rows,
        "parent": None if number % 10 else {"run": "20260101-000000-nano-verdict-beef", "step": 40, "changes": {}},
        "progress": {
            "step": rows,
            "tokens": rows * 1024,
            "elapsed_s": 20.0 + number * 61 % 9000,
            "train_loss": loss,
            "val_loss": loss + 0.3,
            "best_val_loss": loss + 0.2,
            "tokens_per_s": 900.0 + number * 13 % 4000,
        },
    }


def _metrics(rows: int) -> bytes:
    """A curve as a Parquet file."""
    step = np.arange(1, rows + 1)
    loss = 3 + 7 * np.exp(-step / (rows / 4)) + np.random.default_rng(1).normal(0, 0.05, rows)
    columns = {name: pa.nulls(rows, METRICS.field(name).type) for name in METRICS.names}
    columns |= {
        "step": pa.array(step),
        "epoch": pa.array(step / 10),
        "tokens": pa.array(step * 1024),
        "elapsed_s": pa.array(step * 0.5),
        "train_loss": pa.array(loss),
        "val_loss": pa.array(np.where(step % 20 == 0, loss + 0.3, np.nan), from_pandas=True),
        "learning_rate": pa.array(np.full(rows, 0.001)),
        "tokens_per_s": pa.array(np.full(rows, 1234.0)),
    }
    file = io.BytesIO()
    write_parquet(pa.table(columns, schema=METRICS), file)
    return file.getvalue()


if __name__ == "__main__":
    make_many_runs(Path(sys.argv[1]), int(sys.argv[2]))
