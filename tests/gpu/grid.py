"""Train on a real GPU in every combination of the settings that decide how it computes, and record what was measured.

    python tests/gpu/grid.py --out tests/data/h100_grid.json

Needs a CUDA GPU and about ten minutes, so it is no part of the suite; `tests/gpu/test_grid_data.py` holds the recorded
numbers to their promises. Each combination is a real run through `engine.train`: losses, throughput, peak memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ["LAB_RUNS"] = tempfile.mkdtemp(prefix="grid-")

import torch

from engine import TrainConfig, resume_run, train
from engine.control import Control
from engine.errors import LabError
from engine.model import GPT
from engine.run import ActiveRun, Run
from engine.start import new_run
from engine.trash import empty_trash, trash_run


def discard(run_id: str) -> None:
    """Make room on the disk."""
    empty_trash([trash_run(run_id).entry])


PRECISIONS = ("fp32", "bf16", "fp16")
OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw_8bit")
STEPS = {"nano": 40, "medium": 14}


def config_for(preset: str, **settings: Any) -> TrainConfig:
    """A short run that depends on its settings alone."""
    common: dict[str, Any] = dict(
        config=preset,
        corpus="verdict",
        epochs=1000,
        max_steps=STEPS[preset],
        batch_size=4,
        device="cuda",
        learning_rate=2e-3 if preset == "nano" else 3e-4,
        sample_length=0,
        eval_every=-1,
    )
    return TrainConfig(**(common | settings))


def measure(preset: str, **settings: Any) -> dict[str, Any]:
    """One run of the grid: its losses, its throughput after warming up, its peak memory."""
    torch.cuda.empty_cache()
    config = config_for(preset, **settings)
    started = time.time()
    run = train(config)
    rows = run.metrics
    warm = rows[rows.step > STEPS[preset] // 2]
    seconds = warm.elapsed_s.iloc[-1] - warm.elapsed_s.iloc[0]
    result = {
        "config": preset,
        **settings,
        "train_loss": [round(x, 5) for x in rows.train_loss],
        "val_loss": round(float(rows.val_loss.iloc[-1]), 5),
        "tokens_per_s": round((len(warm) - 1) * config.tokens_per_step / seconds),
        "peak_gib": round(float(rows.memory_gib.max()), 3),
        "state": run.state,
    }
    result["wall_s"] = round(time.time() - started, 1)
    discard(run.id)
    return result


class StopAt(Control):
    """Pauses, saves and stops at given steps, by looking at the run as it goes."""

    def __init__(self, run: ActiveRun, step: int) -> None:
        super().__init__()
        log = run.log

        def log_and_stop(row: dict[str, Any]) -> None:
            log(row)
            if row["step"] == step - 2:
                self.apply("save")
            if row["step"] >= step:
                self.apply("stop")

        run.log = log_and_stop  # type: ignore[method-assign]


def resume_difference(**settings: Any) -> dict[str, Any]:
    """How far a stopped and resumed run's losses are from an uninterrupted one's; 0 is exact."""
    config = config_for("nano", dropout=0.1, **settings)
    whole = train(config)
    run = new_run(config)
    stopped = train(config, run, StopAt(run, 20))
    step = stopped.checkpoints[-1].step
    continued = resume_run(stopped.id)
    resumed = train(continued.config, continued)
    assert list(resumed.metrics.step) == list(range(1, STEPS["nano"] + 1)), "a step is missing or twice"
    differences = (whole.metrics.train_loss - resumed.metrics.train_loss).abs()
    saved = [checkpoint.step for checkpoint in stopped.checkpoints]
    for finished in (whole, resumed):
        discard(finished.id)
    return {**settings, "stopped_at": step, "saved": saved, "largest_difference": float(differences.max())}


def non_finite(optimizer: str) -> dict[str, Any]:
    """Make the loss NaN at step 8: the run must fail there, with its weights untouched by it."""
    config = config_for("nano", optimizer=optimizer, compile="off")  # a recorded step would not call `loss` again
    run = new_run(config)
    calls, real, before = 0, GPT.loss, {}

    def loss(self: GPT, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 8:
            before.update({name: weight.detach().clone() for name, weight in self.named_parameters()})
        model.append(self)
        return real(self, *args, **kwargs) * (float("nan") if calls >= 8 else 1.0)

    model: list[GPT] = []
    GPT.loss = loss  # type: ignore[method-assign]
    try:
        train(config, run)
        sentence = ""
    except LabError as error:
        sentence = str(error)
    finally:
        GPT.loss = real  # type: ignore[method-assign]
    same = all(torch.equal(before[name], weight) for name, weight in model[-1].named_parameters())
    reader: Run = run.reader
    last = int(reader.metrics.step.iloc[-1])
    result = {"optimizer": optimizer, "state": reader.state, "step": last, "weights_untouched": same, "says": sentence}
    discard(run.id)
    return result


def main() -> None:
    """Measure everything and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--presets", nargs="+", default=["nano", "medium"])
    parser.add_argument(
        "--precisions", nargs="+", default=PRECISIONS, help="renew these, keep what --out has of others"
    )
    parser.add_argument("--seconds", type=float, default=540, help="stop beginning new combinations after this long")
    options = parser.parse_args()
    started = time.time()
    before = json.loads(options.out.read_text()) if options.out.exists() else {"grid": [], "resume": []}
    kept = {name: [r for r in before[name] if r["precision"] not in options.precisions] for name in ("grid", "resume")}
    results: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "batch_size": 4,
        "steps": STEPS,
        "resume": kept["resume"]
        + [resume_difference(precision=p, optimizer=o) for p in options.precisions for o in OPTIMIZERS],
        "non_finite": [non_finite(o) for o in OPTIMIZERS],
        "grid": kept["grid"],
    }
    for line in [*results["resume"], *results["non_finite"]]:
        print(line, flush=True)
    axes = (options.presets, options.precisions, OPTIMIZERS, ("sdpa", "manual"), (False, True))
    for preset, precision, optimizer, attention, checkpointing in itertools.product(*axes):
        if time.time() - started > options.seconds:
            print("out of time")
            break
        row = measure(
            preset,
            precision=precision,
            optimizer=optimizer,
            attention_impl=attention,
            gradient_checkpointing=checkpointing,
        )
        results["grid"].append(row)
        shown = [v for k, v in row.items() if k != "train_loss"]
        print(*shown, row["train_loss"][0], row["train_loss"][-1], flush=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(os.environ["LAB_RUNS"], ignore_errors=True)


if __name__ == "__main__":
    main()
