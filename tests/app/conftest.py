"""Runs and corpora of their own for every test of a page."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from streamlit.testing.v1 import AppTest

from engine.config import TrainConfig, to_dict
from engine.metrics import METRICS, SAMPLES

HOME = Path(__file__).resolve().parents[2] / "app" / "Home.py"


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`runs/` and `corpora/` in a temporary folder, which is returned."""
    for variable, name in (("LAB_RUNS", "runs"), ("LAB_CORPORA", "corpora")):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / name))
    yield tmp_path


@pytest.fixture
def open_page() -> Callable[..., AppTest]:
    """Open a page as the browser does: `open_page("runs", run="…")`."""

    def open_it(page: str, **query: str) -> AppTest:
        test = AppTest.from_file(str(HOME), default_timeout=30)
        test.query_params.update(query)
        return test.switch_page(f"views/{page}.py").run()

    return open_it


@pytest.fixture
def warmed_up(open_page: Callable[..., AppTest]) -> None:
    """What the first page loads in the background is there: a page that is measured then has its cores to itself."""
    open_page("home")
    for thread in threading.enumerate():
        if thread.name == "warm-up":
            thread.join()


@pytest.fixture
def make_run(folders: Path) -> Callable[..., Path]:
    """Write a run's folder as the engine does, without training: `make_run("20…-1", state="failed", error="…")`."""

    def make(run_id: str, steps: int = 30, **info: Any) -> Path:
        folder = folders / "runs" / run_id
        folder.mkdir(parents=True)
        config = TrainConfig(context_length=64, learning_rate=0.001, device="cpu", precision="fp32")
        last = 6.0 - steps / 100
        described = {
            "id": run_id,
            "name": f"Run {run_id[-1]}",
            "state": "completed",
            "created": "2026-11-22T15:30:12.000Z",
            "config": to_dict(config),
            "total_steps": steps,
            "progress": {"step": steps, "tokens": steps * 256, "train_loss": last, "tokens_per_s": 1234.0},
            **info,
        }
        (folder / "run.json").write_text(json.dumps(described))
        rows = [
            {
                "step": step,
                "epoch": step / 10,
                "tokens": step * 256,
                "elapsed_s": step * 0.2,
                "time": datetime.now(UTC),
                "train_loss": 6.0 - step / 100,
                "val_loss": 6.5 if step % 10 == 0 else None,
                "learning_rate": 0.001,
                "grad_norm": 1.0,
                "tokens_per_s": 1234.0,
                "memory_gib": 0.5,
            }
            for step in range(1, steps + 1)
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=METRICS), folder / "metrics.parquet")
        sample = {"step": steps, "prompt": "It was", "text": " <b>*not*</b> Markdown", "temperature": 0.8, "top_k": 50}
        pq.write_table(pa.Table.from_pylist([sample], schema=SAMPLES), folder / "samples.parquet")
        event = {"time": "2026-11-22T15:31:12.000Z", "step": steps, "kind": "completed", "message": "Completed."}
        (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
        return folder

    return make
