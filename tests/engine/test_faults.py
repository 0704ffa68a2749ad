"""Bad input, damaged files, full disks, signals: one clear sentence each, and nothing is lost."""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import engine.cli.generate
import engine.cli.runs
import engine.cli.train
from engine import checkpoint, session, step, tables
from engine.checkpoint import load, verify
from engine.config import TrainConfig, from_dict
from engine.control import Control
from engine.errors import CheckpointError, ConfigError, RunBusyError, RunError, TrainingError
from engine.model import GPT
from engine.paths import PROJECT
from engine.run import ActiveRun, Run, list_runs, load_run
from engine.start import branch_run, new_run, resume_run
from engine.train import train
from tests.with_small_nano import shrink_nano

SETTINGS: dict[str, Any] = dict(
    config="nano", corpus="tiny", context_length=16, batch_size=1, max_steps=4, threads=1, dropout=0.1, seed=5,
    eval_every=2, eval_batches=1, sample_every=2, sample_length=2, save_every=2,
)  # fmt: skip
CONFIG = TrainConfig(**SETTINGS)
FLAGS = [word for name, value in SETTINGS.items() for word in ("--" + name.replace("_", "-"), str(value))]
EXACT = ["step", "epoch", "tokens", "train_loss", "val_loss", "learning_rate", "grad_norm"]


@pytest.fixture(autouse=True)
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of runs for one test, and a nano that is quicker than the real one."""
    shrink_nano(monkeypatch.setattr)
    with tempfile.TemporaryDirectory() as name:
        monkeypatch.setenv("LAB_RUNS", name)
        yield Path(name)


@pytest.fixture(scope="module")
def models() -> Iterator[tuple[Path, Path]]:
    """Two runs of the same settings: one unbroken, and one stopped after step 2 of 4."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_RUNS", name)
        shrink_nano(patch.setattr)
        whole = train(CONFIG)
        run, control = new_run(CONFIG), Control()
        _at_step(patch, 2, lambda: control.apply("stop"))
        yield whole.folder, train(CONFIG, run, control).folder


@pytest.fixture
def unbroken(models: tuple[Path, Path]) -> Run:
    return Run(models[0])


@pytest.fixture
def stopped(models: tuple[Path, Path], runs: Path) -> Run:
    """A run of four steps that was stopped after two."""
    return Run(shutil.copytree(models[1], runs / models[1].name))


@pytest.fixture
def small_disk(runs: Path) -> Iterator[Callable[[str], None]]:
    """The folder of runs on a file system of its own; call it to change its mount options."""

    def mount(options: str) -> bool:
        return (
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", runs], capture_output=True).returncode == 0
        )

    if os.geteuid() != 0 or not mount("size=17m"):
        pytest.skip("file systems cannot be mounted here")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", runs], check=True) and None
    finally:
        subprocess.run(["umount", "--lazy", runs], check=True)


def _at_step(patch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    """Do something once, when the row of a step was logged."""
    log, done = ActiveRun.log, []

    def log_and_act(self: ActiveRun, row: dict[str, Any]) -> None:
        log(self, row)
        if row["step"] == step and not done:
            done.append(step)
            act()

    patch.setattr(ActiveRun, "log", log_and_act)


def _is_a_sentence(text: str, *words: str) -> None:
    """One line for a person, which names all these."""
    assert "Traceback" not in text and "defect" not in text
    assert len(text.strip().splitlines()) == 1 and text.strip().endswith("."), text
    for word in words:
        assert word in text, text


def _equals(run: Run, unbroken: Run) -> None:
    """Each step once, and the bytes of the run that had no trouble."""
    assert run.state == "completed" and run.problems == []
    pd.testing.assert_frame_equal(run.metrics[EXACT], unbroken.metrics[EXACT], check_exact=True)
    assert list(run.samples["text"]) == list(unbroken.samples["text"])
    for name in checkpoint.FILES:
        assert (run.checkpoints[-1].path / name).read_bytes() == (unbroken.checkpoints[-1].path / name).read_bytes()


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"corpus": "nope"}, ["--corpus", "'nope'", "verdict, tiny"]),
        ({"corpus": "../runs"}, ["--corpus", "'../runs'"]),
        ({"context_length": 2000}, ["--context-length", "2,000", "larger corpus"]),
        ({"batch_size": 4096}, ["--batch-size", "4096", "Lower"]),
        ({"device": "tpu"}, ["--device", "'tpu'", "cpu"]),
        ({"device": "cuda:99"}, ["--device"]),
    ],
)
def test_a_bad_setting_is_one_sentence(
    bad: dict[str, Any], words: list[str], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [word for name, value in bad.items() for word in ("--" + name.replace("_", "-"), str(value))]
    assert engine.cli.train.main([*FLAGS, *flags]) == 2
    _is_a_sentence(capsys.readouterr().err, *words)
    with pytest.raises(ConfigError) as caught:
        train(TrainConfig(**SETTINGS | bad))
    assert [problem.field for problem in caught.value.problems] == list(bad)
    assert list_runs() == [] and not list(runs.glob("*"))


def test_all_bad_numbers_are_told_together(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = {"config": "mega", "epochs": -1.0, "batch_size": 0, "learning_rate": 7.0, "dropout": float("nan")}
    flags = [word for name, value in bad.items() for word in ("--" + name.replace("_", "-"), str(value))]
    assert engine.cli.train.main([*flags, "--seed", "many"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert {line.partition(":")[0].strip("-").replace("-", "_") for line in lines} == {*bad, "seed"}
    for line in lines:
        _is_a_sentence(line)
    with pytest.raises(ConfigError) as caught:
        train(TrainConfig(**bad))
    assert {problem.field for problem in caught.value.problems} == set(bad)
    with pytest.raises(ConfigError) as caught:
        from_dict({**bad, "seed": "many", "colour": 1})
    assert {problem.field for problem in caught.value.problems} == {*bad, "seed", "colour"}
    assert not list(runs.glob("*"))


@pytest.mark.parametrize(
    "main, arguments",
    [
        (engine.cli.train.main, ["--resume", "{}"]),
        (engine.cli.train.main, ["--branch", "{}@2"]),
        (engine.cli.runs.main, ["show", "{}"]),
        (engine.cli.runs.main, ["delete", "{}"]),
        (engine.cli.generate.main, ["{}"]),
    ],
    ids=["resume", "branch", "show", "delete", "generate"],
)
def test_a_run_id_is_never_a_path(
    main: Callable[[list[str]], int],
    arguments: list[str],
    stopped: Run,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    inner = runs / "inner"
    inner.mkdir()
    monkeypatch.setenv("LAB_RUNS", str(inner))
    before = sorted(path for path in runs.rglob("*"))
    for name in (f"../{stopped.id}", str(stopped.folder), "..", ".", "", "a\x00b", "a/../../b"):
        assert main([argument.format(name) for argument in arguments]) == 1
        _is_a_sentence(capsys.readouterr().err, repr(name), "not the id of a run")
    assert main([argument.format("20000101-000000-none") for argument in arguments]) == 1
    _is_a_sentence(capsys.readouterr().err, "There is no run 20000101-000000-none", str(inner))
    assert sorted(path for path in runs.rglob("*")) == before


# --- damaged files ----------------------------------------------------------------------------------------------------


def _read_all(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("run.json", "events.jsonl"))
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.name != "lock"}


def _add_rows_after_the_checkpoint(run: Run) -> None:
    """As a killed run has them: rows of steps that no checkpoint holds."""
    writer = tables.TableWriter(run.folder, "metrics", tables.pq.read_schema(run.folder / "metrics.parquet"))
    writer.append({"step": 3, "train_loss": 1.0})


def _change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def test_a_changed_byte_in_the_only_checkpoint(stopped: Run, capsys: pytest.CaptureFixture[str]) -> None:
    _add_rows_after_the_checkpoint(stopped)
    for name in ("optimizer.safetensors", "model.safetensors"):
        _change_a_byte(stopped.checkpoints[0].path / name)
    before = _read_all(stopped.folder)
    for main, arguments in (
        (engine.cli.train.main, ["--resume", stopped.id]),
        (engine.cli.generate.main, [stopped.id]),
    ):
        assert main(arguments) == 1
        _is_a_sentence(capsys.readouterr().err, "step-000002", stopped.id, "damaged", "model.safetensors")
    assert _read_all(stopped.folder) == before
    assert len(stopped.metrics) == 3 and stopped.state == "stopped"


def test_a_changed_byte_in_the_newest_checkpoint(unbroken: Run, runs: Path) -> None:
    """The one before it is resumed from, and the log says why."""
    run = Run(shutil.copytree(unbroken.folder, runs / unbroken.id))
    _change_a_byte(run.checkpoints[-1].path / "optimizer.safetensors")
    _equals(train(CONFIG, resume_run(run.id)), unbroken)
    (warning,) = [event.message for event in run.events if event.kind == "warning"]
    _is_a_sentence(warning, "step-000004", "damaged", "optimizer.safetensors")
    assert "Resumed at step 2." in [event.message for event in run.events]


@pytest.mark.parametrize("damage", ["short", "missing", "manifest"])
def test_no_whole_checkpoint_is_left(damage: str, stopped: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = stopped.checkpoints[0].path
    if damage == "short":
        os.truncate(folder / "model.safetensors", 100)
    elif damage == "missing":
        (folder / "state.json").unlink()
    else:
        (folder / "manifest.json").write_text('{"format": 1, "step":')
    before = _read_all(stopped.folder)
    for main, arguments in (
        (engine.cli.train.main, ["--resume", stopped.id]),
        (engine.cli.train.main, ["--branch", stopped.id, "--epochs", "9"]),
        (engine.cli.generate.main, [stopped.id]),
    ):
        assert main(arguments) == 1
        _is_a_sentence(capsys.readouterr().err, stopped.id, "step-000002", "damaged", "Use another checkpoint")
    assert engine.cli.generate.main([f"{stopped.id}@2"]) == 1
    _is_a_sentence(capsys.readouterr().err, "step-000002", "damaged", "Use another checkpoint")
    assert _read_all(stopped.folder) == before and stopped.state == "stopped"
    shutil.rmtree(folder)
    assert engine.cli.train.main(["--resume", stopped.id]) == 1
    _is_a_sentence(capsys.readouterr().err, stopped.id, "no checkpoint yet", "started anew")


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickle_is_never_opened(stopped: Run, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Even where somebody made the manifest fit."""
    trace, folder = runs / "executed", stopped.checkpoints[0].path
    _add_rows_after_the_checkpoint(stopped)
    bomb = pickle.dumps(_Bomb(trace))
    (folder / "model.safetensors").write_bytes(bomb)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.safetensors"] = {"bytes": len(bomb), "sha256": hashlib.sha256(bomb).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    verify(stopped.checkpoints[0])  # the manifest fits
    for reader in (lambda: train(CONFIG, resume_run(stopped.id)), lambda: load(stopped.checkpoints[0])):
        with pytest.raises(CheckpointError) as caught:
            reader()
        _is_a_sentence(str(caught.value), "step-000002", "safetensors")
    assert engine.cli.generate.main([stopped.id]) == 1
    _is_a_sentence(capsys.readouterr().err, "step-000002", "safetensors")
    assert not trace.exists() and list(stopped.metrics["step"]) == [1, 2, 3]
    pickle.loads(bomb)  # it is a live one
    assert trace.exists()


@pytest.mark.parametrize("content", ["", '{"id": ', "[]", "{}"])
def test_a_damaged_run_json(content: str, stopped: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (stopped.folder / "run.json").write_text(content)
    assert stopped.state == "interrupted" and len(stopped.metrics) == 2 and len(list_runs()) == 1
    for main, arguments in (
        (engine.cli.train.main, ["--resume", stopped.id]),
        (engine.cli.train.main, ["--branch", stopped.id]),
        (engine.cli.generate.main, [stopped.id]),
        (engine.cli.runs.main, ["show", stopped.id]),
    ):
        assert main(arguments) == 1
        _is_a_sentence(capsys.readouterr().err, stopped.id, "run.json is missing or damaged")
    assert engine.cli.runs.main(["list"]) == 0


def test_what_a_dead_process_left_behind_does_nothing(stopped: Run, unbroken: Run) -> None:
    (stopped.folder / "request-stop.json").write_text('{"time": "2020-01-01T00:00:00Z"}')
    litter = [
        stopped.folder / ".run.json.abc.part",
        stopped.folder / ".metrics.parquet.abc.part",
        stopped.folder / "metrics" / ".000007.parquet.abc.part",
        stopped.folder / "checkpoints" / ".part-step-000004-99",
        stopped.folder / "checkpoints" / ".trash-step-000001-99",
    ]
    for path in litter[:3]:
        path.write_bytes(b"PAR1")
    for path in litter[3:]:
        path.mkdir()
    with (stopped.folder / "events.jsonl").open("a") as file:
        file.write('{"time": "2026-01-01T0')  # a line torn by a full disk must not swallow the next one
    _equals(train(CONFIG, resume_run(stopped.id)), unbroken)
    assert "resumed" in [event.kind for event in stopped.events]
    assert not any(path.exists() for path in litter)


# --- disks ------------------------------------------------------------------------------------------------------------


def _full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _fails_for(function: Callable[..., Any], is_meant: Callable[[Path], bool]) -> Callable[..., Any]:
    def maybe(*args: Any, **kwargs: Any) -> Any:
        path = next(arg for arg in args if isinstance(arg, Path))
        return _full() if is_meant(path) else function(*args, **kwargs)

    return maybe


@pytest.mark.parametrize(
    "owner, name, is_meant, state",
    [
        (tables, "_write", lambda path: "metrics" in str(path.relative_to(path.parents[1])), "failed"),
        (tables, "_write", lambda path: path.name == "samples.parquet", "failed"),
        (checkpoint, "_save_tensors", lambda path: path.name == "optimizer.safetensors", "failed"),
        (checkpoint, "_write_text", lambda path: path.name == "manifest.json", "failed"),
        (engine.run, "write_json", lambda path: True, "interrupted"),
    ],
    ids=["metrics", "samples", "tensors", "manifest", "run.json"],
)
def test_a_write_that_fails(
    owner: Any, name: str, is_meant: Callable[[Path], bool], state: str, stopped: Run, unbroken: Run
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingError) as caught:
        run = resume_run(stopped.id)
        _at_step(patch, 3, lambda: patch.setattr(owner, name, _fails_for(getattr(owner, name), is_meant)))
        train(CONFIG, run)
    _is_a_sentence(str(caught.value), stopped.id, "is full", "Free some space", "resumed from its last checkpoint")
    assert stopped.state == state
    assert stopped.info["error"] == (str(caught.value) if state == "failed" else "")
    assert list(stopped.metrics["step"])[:2] == [1, 2] and stopped.problems == []
    verify(stopped.checkpoints[0])
    _equals(train(CONFIG, resume_run(stopped.id)), unbroken)


def test_a_failing_write_before_the_first_checkpoint_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_save_tensors", _full)
    with pytest.raises(TrainingError) as caught:
        train(CONFIG)
    _is_a_sentence(str(caught.value), "is full", "no checkpoint yet", "started anew")
    assert list_runs()[0].state == "failed" and list(list_runs()[0].metrics["step"]) == [1, 2]


def test_a_full_disk(
    small_disk: Callable[[str], None], runs: Path, unbroken: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint takes 10 MB here: the first fits on the disk of 17 MB, the second does not."""
    assert engine.cli.train.main([*FLAGS, "--json"]) == 1
    said = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    _is_a_sentence(said, str(runs), "is full", "resumed from its last checkpoint")
    (run,) = list_runs()
    assert run.state == "failed" and run.info["error"] == said
    assert list(run.metrics["step"]) == [1, 2, 3, 4] and run.problems == []
    assert [c.step for c in run.checkpoints] == [2] and not list(run.folder.glob("checkpoints/.part-*"))
    load(run.checkpoints[0])

    before = _read_all(run.folder)
    (runs / "filler").write_bytes(bytes(shutil.disk_usage(runs).free))
    for arguments in (["--resume", run.id], FLAGS):  # now not even a byte fits
        assert engine.cli.train.main(arguments) == 1
        _is_a_sentence(capsys.readouterr().err.splitlines()[-1], str(runs), "is full")
    assert list_runs()[0].id == run.id and len(list_runs()) == 1 and _read_all(run.folder) == before
    assert [path.name for path in runs.iterdir() if path.is_dir()] == [run.id]
    (runs / "filler").unlink()

    small_disk("size=100m")
    _equals(train(CONFIG, resume_run(run.id)), unbroken)


def test_a_disk_that_takes_nothing_any_more(
    small_disk: Callable[[str], None], runs: Path, stopped: Run, unbroken: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill() -> None:
        with (runs / "filler").open("wb") as file, pytest.raises(OSError, match="No space"):
            while True:
                os.write(file.fileno(), bytes(4096))

    _at_step(monkeypatch, 3, fill)
    with pytest.raises(TrainingError) as caught:
        train(CONFIG, resume_run(stopped.id))
    _is_a_sentence(str(caught.value), stopped.id, "is full", "resumed from its last checkpoint")
    assert stopped.state in ("interrupted", "failed") and stopped.problems == []
    assert list(stopped.metrics["step"])[:2] == [1, 2]
    (runs / "filler").unlink()
    small_disk("size=100m")
    _equals(train(CONFIG, resume_run(stopped.id)), unbroken)


def test_a_folder_that_cannot_be_written(
    small_disk: Callable[[str], None], stopped: Run, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _read_all(runs)
    small_disk("ro")
    for main, arguments in (
        (engine.cli.train.main, FLAGS),
        (engine.cli.train.main, ["--resume", stopped.id]),
        (engine.cli.train.main, ["--branch", stopped.id]),
        (engine.cli.runs.main, ["delete", stopped.id]),
    ):
        assert main(arguments) == 1
        _is_a_sentence(capsys.readouterr().err, str(runs), "Read-only", "Make it writable")
    with pytest.raises(RunError, match="Read-only"):
        session.start(CONFIG)
    assert session.active_run() is None
    assert engine.cli.runs.main(["show", stopped.id]) == 0  # all that was there can still be read
    assert engine.cli.generate.main([stopped.id, "--length", "2"]) == 0
    assert _read_all(runs) == before and stopped.state == "stopped"


def test_rows_are_on_disk_before_a_long_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def sampling(*_: Any, **__: Any) -> Iterator[str]:
        seen.append(len(_only().metrics))
        yield "text"

    monkeypatch.setattr(importlib.import_module("engine.generate"), "stream_text", sampling)
    train(TrainConfig(**SETTINGS | dict(sample_every=1, eval_every=-1, save_every=-1, max_steps=3)))
    assert seen == [1, 2, 3]


def _only() -> Run:
    (run,) = list_runs()
    return run


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer, what", [("adamw", "loss"), ("adamw", "gradient"), ("adamw_8bit", "loss"), ("adamw_8bit", "gradient")]
)
def test_no_nan_reaches_the_weights(optimizer: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third of four steps is poisoned; a checkpoint was saved just before."""
    states: list[step.TrainState] = []
    prepare, loss, calls = step.prepare, GPT.loss, iter(range(1, 100))

    def remember(run: ActiveRun, *team: Any) -> step.TrainState:
        states.append(prepare(run, *team))
        return states[0]

    def poisoned(self: GPT, tokens: torch.Tensor, targets: torch.Tensor, **how: Any) -> torch.Tensor:
        value = loss(self, tokens, targets, **how)
        if self.training and next(calls) == 3:
            if what == "loss":
                return value * float("nan")
            value.register_hook(lambda gradient: gradient * float("inf"))
        return value

    monkeypatch.setattr(step, "prepare", remember)
    monkeypatch.setattr(GPT, "loss", poisoned)
    with pytest.raises(TrainingError) as caught:
        train(TrainConfig(**SETTINGS | {"optimizer": optimizer}))
    _is_a_sentence(str(caught.value), "step 3", f"the {what} was no finite number", "lower learning rate")
    run = _only()
    assert run.state == "failed" and run.info["error"] == str(caught.value)
    last = run.metrics.iloc[-1]
    assert last["step"] == 3
    assert pd.isna(last["train_loss"]) == (what == "loss")
    raw = tables.pq.read_table(run.folder / "metrics.parquet")
    assert (raw["train_loss"].to_pylist()[-1] is None) is False  # a NaN that can be seen, not an absent value
    saved = load(run.checkpoints[-1])
    assert run.checkpoints[-1].step == 2
    now = step.snapshot(states[0])
    assert all(torch.equal(now.model[name], value) for name, value in saved.model.items())
    kept = {name: value for name, value in saved.optimizer.items() if not name.startswith("rng.")}
    assert kept and all(torch.equal(now.optimizer[name], value) for name, value in kept.items())


def test_a_huge_learning_rate_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    """With no clipping and steps of 1.0 the loss explodes; whether it ever is NaN or not, no traceback and no NaN
    weight come of it."""
    code = engine.cli.train.main([*FLAGS, "--learning-rate", "1", "--grad-clip", "0", "--max-steps", "8"])
    assert "Traceback" not in capsys.readouterr().err
    assert code == (1 if _only().state == "failed" else 0)
    for saved in _only().checkpoints:
        assert all(value.isfinite().all() for value in load(saved, weights_only=True).model.values())


# --- two at once, and signals -----------------------------------------------------------------------------------------


def test_a_second_run_in_this_process_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    first = session.start(TrainConfig(**SETTINGS | dict(max_steps=0, epochs=1000)))
    try:
        for second in (lambda: session.start(CONFIG), lambda: new_run(CONFIG)):
            with pytest.raises(RunBusyError) as caught:
                second()
            _is_a_sentence(str(caught.value), first, "Stop it first")
            assert caught.value.run_id == first
        assert engine.cli.train.main(FLAGS) == 1
        _is_a_sentence(capsys.readouterr().err, first)
        assert engine.cli.runs.main(["delete", first]) == 1
        _is_a_sentence(capsys.readouterr().err, first, "Stop it first")
        assert [run.id for run in list_runs()] == [first]
    finally:
        session.request(first, "stop")
        assert session.wait(60)
    assert load_run(first).state == "stopped"


def test_another_process_trains_and_is_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "engine.train", *FLAGS, "--max-steps", "0", "--epochs", "1000"]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (list_runs() and len(_only().metrics)):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        assert _only().state == "running"
        with pytest.raises(RunBusyError) as caught:
            session.start(CONFIG)
        _is_a_sentence(str(caught.value), _only().id, "Stop it first")
        with pytest.raises(RunBusyError):
            resume_run(_only().id) if _only().checkpoints else new_run(CONFIG)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0 and "Traceback" not in err
    run = _only()
    assert run.state == "stopped" and f"python -m engine.train --resume {run.id}" in out
    assert run.checkpoints[-1].step == len(run.metrics)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_and_saves(
    number: int, unbroken: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    _at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), number))
    assert engine.cli.train.main(FLAGS) == 0
    said = capsys.readouterr()
    run = _only()
    assert "Traceback" not in said.err and run.state == "stopped" and [c.step for c in run.checkpoints] == [2, 3]
    resume = re.search(r"python -m engine.train (--resume \S+)", said.out)
    assert resume and signal.getsignal(number) is before
    assert engine.cli.train.main(resume[1].split()) == 0
    _equals(run, unbroken)


END = """
import os, sys, engine.cli.train as cli
for report in (cli._TextReport, cli._JsonReport):
    def end(self, error, end=report.end):
        os.kill(os.getpid(), {number})
        end(self, error)
    report.end = end
{then}
sys.exit(cli.main(sys.argv[1:]))
"""
KILLED = "main = cli._main; cli._main = lambda *given: (main(*given), os.kill(os.getpid(), 9))"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("more", [[], ["--json"]])
@pytest.mark.parametrize("then", ["", KILLED])
def test_a_signal_after_the_end_leaves_the_outcome_to_be_told(number: int, more: list[str], then: str) -> None:
    """As torchrun's SIGTERM does when a rank has died: rank 0 had written down the failure, but not said it yet. What
    it said is out by then, and no longer in a buffer."""
    command = [sys.executable, "-c", END.format(number=number, then=then), *FLAGS, *more]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=100)
    run = _only()
    assert process.returncode == (-9 if then else 0) and "Stopping" not in process.stderr, process.stderr
    assert run.state == "completed" and run.id in process.stdout.splitlines()[-1]


def test_an_impatient_ctrl_c_leaves_the_outcome_to_be_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run was stopped and saved by the first one."""
    end = engine.cli.train._TextReport.end

    def end_disturbed(self: Any, error: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        end(self, error)

    monkeypatch.setattr(engine.cli.train._TextReport, "end", end_disturbed)
    _at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert engine.cli.train.main(FLAGS) == 0
    assert f"--resume {_only().id}" in capsys.readouterr().out and _only().state == "stopped"


def test_a_second_ctrl_c_stops_at_once(
    unbroken: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _at_step(monkeypatch, 3, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    assert engine.cli.train.main(FLAGS) == 1
    said = capsys.readouterr()
    run = _only()
    assert "Traceback" not in said.err and "cut short" in said.err and f"--resume {run.id}" in said.out
    assert run.state == "failed" and len(run.metrics) == 3 and [c.step for c in run.checkpoints] == [2]
    _equals(train(CONFIG, resume_run(run.id)), unbroken)


def test_a_run_stopped_before_its_first_step_can_be_resumed_and_branched(unbroken: Run) -> None:
    control = Control()
    control.apply("stop")
    run = train(CONFIG, new_run(CONFIG), control)
    assert run.state == "stopped" and [c.step for c in run.checkpoints] == [0]
    branch = train(CONFIG, branch_run(run.id))
    assert branch.state == "completed"
    _equals(train(CONFIG, resume_run(run.id)), unbroken)
    pd.testing.assert_frame_equal(branch.metrics[EXACT], unbroken.metrics[EXACT], check_exact=True)
