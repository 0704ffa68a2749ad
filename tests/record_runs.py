"""Train real runs that show what the diagnosis speaks of, and keep what they measured as fixtures.

    python tests/record_runs.py [NAME …] [--device cpu]

Takes about a quarter of an hour on two cores, so it is no part of the suite. Each run goes through `engine.train` as
any other does; its metrics land in `tests/data/runs/NAME.parquet`, with settings, length and loss ladder in the file's
own metadata. What the diagnosis should say of each is written in `tests/engine/test_diagnosis.py`, not here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow as pa
import pyarrow.parquet as pq

from engine import TrainConfig, list_runs, train
from engine.config import from_dict, to_dict
from engine.corpora.ladder import cached_ladder
from engine.errors import LabError
from engine.metrics import METRICS
from engine.run import Run
from engine.start import new_run

FOLDER = Path(__file__).parent / "data" / "runs"

# `topics` is the help text that comes with Python: 139,000 tokens of technical prose, large enough not to be learned by
# heart in one pass, and on every machine.
SMALL: dict[str, Any] = dict(context_length=64, batch_size=4, sample_length=0, save_every=-1)
RUNS: dict[str, dict[str, Any]] = {
    "smoke": dict(corpus="verdict", epochs=3),
    "thirty-epochs": dict(corpus="verdict", epochs=30),
    "one-pass": SMALL | dict(corpus="topics", epochs=1, context_length=128),
    "one-sequence-a-step": SMALL | dict(corpus="topics", epochs=1, max_steps=600, batch_size=1),
    "accumulated": SMALL | dict(corpus="topics", epochs=1, max_steps=60, grad_accum_steps=4),
    "overfit": SMALL | dict(corpus="tiny", epochs=1000, max_steps=400, batch_size=1, learning_rate=1e-3),
    "overfit-verdict": SMALL | dict(corpus="verdict", epochs=1000, max_steps=300),
    "rate-too-high": SMALL | dict(corpus="verdict", epochs=1000, max_steps=100, learning_rate=0.5),
    "rate-high": SMALL | dict(corpus="topics", epochs=1, max_steps=150, learning_rate=0.03, warmup_steps=0),
    "rate-too-low": SMALL | dict(corpus="verdict", epochs=1000, max_steps=80, learning_rate=1e-6),
    "no-clipping": SMALL | dict(corpus="topics", epochs=1, max_steps=150, learning_rate=0.01, grad_clip=0.0),
    "always-clipped": SMALL | dict(corpus="topics", epochs=1, max_steps=150, grad_clip=0.1),
}


def add_topics(folder: Path) -> None:
    """Put Python's own help into a corpora folder."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    (folder / "topics.txt").write_text(text, encoding="utf-8")


def record(name: str, run: Run) -> None:
    """Write a run's metrics and the facts that a diagnosis takes."""
    config, info = run.config, run.info
    ladder = cached_ladder(info["corpus_sha256"], info.get("val_corpus_sha256"), config.val_fraction)
    facts = {
        "config": to_dict(config),
        "total_steps": run.total_steps,
        "diverged": bool(info.get("diverged")),
        "state": run.state,
        "ladder": [[rung.name, rung.loss] for rung in ladder.rungs] if ladder else [],
        "device": info["environment"]["machine"]["device_name"],
    }
    table = pa.Table.from_pandas(run.metrics, schema=METRICS, preserve_index=False)
    FOLDER.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"run": json.dumps(facts)}), FOLDER / f"{name}.parquet")


def main() -> None:
    """Record the runs that were named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RUNS)}; all when none is named")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    lab = Path(tempfile.mkdtemp(prefix="record-runs-"))
    for variable, folder in (("LAB_RUNS", lab / "runs"), ("LAB_CORPORA", lab / "corpora")):
        folder.mkdir()
        os.environ[variable] = str(folder)
    add_topics(lab / "corpora")
    for name in options.names or RUNS:
        config: TrainConfig = from_dict(RUNS[name] | {"device": options.device})
        with contextlib.suppress(LabError):  # a run that diverges fails, and that is what is wanted of it
            train(config, new_run(config, name=name))
        run = list_runs()[0]
        record(name, run)
        last = run.metrics.iloc[-1]
        print(f"{name}: {run.state}, step {last.step:.0f}, loss {last.train_loss:.3f}", flush=True)


if __name__ == "__main__":
    main()
