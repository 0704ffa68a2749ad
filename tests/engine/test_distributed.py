"""Several processes train one run: as one would, stopped together, resumed exactly, and told when one of them dies.

Each test starts `torchrun` for two processes on the CPU (gloo). Sums over two processes round otherwise than in one, so
losses of one and two processes are held to within 1e-4 nats; everything else is exact.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import psutil
import pytest

from engine import TrainConfig, resume_run, train
from engine.config import differences, option
from engine.errors import ConfigError, RunError
from engine.paths import PROJECT
from engine.plan import make_plan
from engine.run import Run, list_runs
from engine.start import branch_run, shared_out
from engine.world import ALONE, World, this_world

TOLERANCE = 1e-4  # nats
CONFIG = TrainConfig(
    corpus="tiny",
    epochs=100,
    max_steps=8,
    batch_size=2,
    context_length=16,
    learning_rate=1e-3,
    warmup_steps=2,
    threads=1,
    eval_every=4,
    sample_length=2,
    save_every=4,
    keep_checkpoints=0,
)
TWO = World(size=2, local_size=2)

pytestmark = [
    pytest.mark.timeout(500),  # three starts of three processes, beside whatever else the machine does
    pytest.mark.usefixtures("small_nano"),
]


def start(*arguments: str, processes: int = 2) -> subprocess.Popen[str]:
    """`torchrun … -m engine.train` in a terminal, with the small nano of these tests."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [*command, "tests/with_small_nano.py", "-m", "engine.train", *arguments],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def flags(config: TrainConfig) -> list[str]:
    """The settings as one writes them on the command line."""
    return [word for name in differences(TrainConfig(), config) for word in option(name, getattr(config, name)).split()]


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code and output."""
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def wait_for(what: Callable[[], Run | None]) -> Run:
    """The run, once it is there."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if run := what():
            return run
        time.sleep(0.05)
    raise AssertionError("the run did not come that far")


def rank_of(torchrun: subprocess.Popen[str], rank: int) -> int:
    """The process id of a rank."""
    children = psutil.Process(torchrun.pid).children()
    return next(child.pid for child in children if child.environ().get("RANK") == str(rank))


def losses(run: Run) -> list[float]:
    """Training losses, one a step from the first, none missing or twice."""
    assert list(run.metrics["step"]) == list(range(1, len(run.metrics) + 1))
    return list(run.metrics["train_loss"])


def digests(run: Run) -> dict[str, str]:
    """SHA-256 of the last weights, of the optimizer with all ranks' random generators, and of the counters."""
    manifest = json.loads((run.checkpoints[-1].path / "manifest.json").read_text())
    return {name: entry["sha256"] for name, entry in manifest["files"].items()}


def go_back(run: Run, step: int) -> None:
    """Make a run one that was killed after the checkpoint of a step."""
    for checkpoint in run.checkpoints:
        if checkpoint.step > step:
            shutil.rmtree(checkpoint.path)
    info = run.info | {"state": "running"}
    (run.folder / "run.json").write_text(json.dumps(info))


def test_two_processes_train_as_one_and_stop_together_and_one_goes_on() -> None:
    config = replace(CONFIG, max_steps=24)
    process = start(*flags(config))
    run = wait_for(lambda: next((r for r in list_runs() if len(r.metrics) >= 2), None))
    process.send_signal(signal.SIGTERM)  # torchrun sends it on to every rank
    finish(process)

    stopped_at = len(run.metrics)
    assert run.state == "stopped" and 2 <= stopped_at < 24, run.info.get("error")
    assert run.checkpoints[-1].step == stopped_at
    assert run.info["world_size"] == 2 and run.config.grad_accum_steps == 1
    assert set(run.info["arithmetic"]) == {"PyTorch", "processor"}  # the other process has the same
    assert run.info["progress"]["position"] == stopped_at * 4
    assert run.metrics.iloc[-1].tokens == stopped_at * 4 * 16

    resumed = resume_run(run.id)  # in this process, alone
    assert "1 process instead of 2" in run.events[-1].message
    train(resumed.config, resumed)
    alone = train(replace(config, grad_accum_steps=2))
    assert run.config.grad_accum_steps == 2 and run.info["world_size"] == 1
    assert run.state == alone.state == "completed" and len(run.metrics) == 24
    assert losses(run) == pytest.approx(losses(alone), abs=TOLERANCE)
    assert list(run.metrics["val_loss"].dropna()) == pytest.approx(
        list(alone.metrics["val_loss"].dropna()), abs=TOLERANCE
    )
    assert losses(alone)[0] - losses(alone)[-1] > 100 * TOLERANCE  # it would have shown


def test_two_go_on_with_what_one_began() -> None:
    run = train(replace(CONFIG, grad_accum_steps=2))
    expected = losses(run)
    go_back(run, 4)
    code, out, err = finish(start("--resume", run.id))
    assert code == 0, err
    assert "by 2 processes" in out
    assert any("2 processes instead of 1" in event.message for event in run.events)
    assert run.state == "completed" and run.config.grad_accum_steps == 1 and run.world_size == 2
    assert losses(run) == pytest.approx(expected, abs=TOLERANCE)


def test_a_dead_rank_is_named_and_the_run_resumes_exactly() -> None:
    config = replace(CONFIG, dropout=0.1, max_steps=20, save_every=8)
    code, _, err = finish(start(*flags(config)))
    assert code == 0, err
    whole = list_runs()[0]

    process = start(*flags(config))
    run = wait_for(lambda: next((r for r in list_runs() if r.id != whole.id and r.checkpoints), None))
    victim = rank_of(process, 1)
    os.kill(victim, signal.SIGKILL)
    code, _, err = finish(process)
    assert code != 0 and run.state == "failed"
    assert run.info["error"].startswith("Rank 1 (host ") and f"process {victim})" in run.info["error"]
    assert run.info["error"].endswith("The run can be resumed from its last checkpoint.")
    assert err.count("Failed: Rank 1 ") == 1
    assert run.problems == [] and len(run.metrics) < 20

    code, _, err = finish(start("--resume", run.id))
    assert code == 0, err
    assert run.state == "completed"
    assert losses(run) == losses(whole)
    assert digests(run) == digests(whole)


def test_mistakes_are_told_once() -> None:
    code, out, err = finish(start("--batch-size", "0", "--corpus", "nowhere"))
    assert code != 0 and out == ""
    assert err.count("--batch-size: ") == 1 and err.count("--corpus: ") == 1
    assert list_runs() == []


# ------------------------------------------------------------------------------------- without other processes


def test_the_plan_counts_all_processes() -> None:
    alone, two = (make_plan(CONFIG, 649, 72, world_size=n) for n in (1, 2))
    assert (two.sequences_per_step, two.tokens_per_step) == (4, 64)
    assert two.steps_per_epoch == alone.steps_per_epoch / 2
    whole = replace(CONFIG, max_steps=0, epochs=1)
    assert [make_plan(whole, 649, 72, world_size=n).total_steps for n in (1, 2, 4)] == [20, 10, 5]
    with pytest.raises(ConfigError, match="2 × 1 × 64 processes = 128 windows"):
        make_plan(CONFIG, 649, 72, world_size=64)


def test_steps_that_cannot_be_shared_out_are_refused() -> None:
    run = train(replace(CONFIG, grad_accum_steps=6, max_steps=1))
    assert shared_out(run, TWO).grad_accum_steps == 3
    with pytest.raises(RunError, match=r"takes 6 batches of 2 a step.*among 4 processes. Start 1, 2, 3, 6 of them"):
        resume_run(run.id, World(size=4, local_size=4))
    branch = branch_run(run.id, None, {"max_steps": 3}, world=TWO)
    branch.close()
    assert branch.config.grad_accum_steps == 3 and branch.plan.sequences_per_step == 12


def test_only_torchrun_makes_a_world(monkeypatch: pytest.MonkeyPatch) -> None:
    assert this_world() == ALONE
    monkeypatch.setenv("WORLD_SIZE", "8")  # as some schedulers do
    assert this_world() == ALONE
    told = {"RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    world = this_world()
    assert (world.rank, world.size, world.local_rank, world.local_size, world.leads) == (3, 8, 1, 2, False)
    assert world.devices("cuda:0") == ("cuda:0", "cuda:1") and world.devices("cpu") == ("cpu",)
    assert ALONE.devices("cuda:1") == ("cuda:1",)
