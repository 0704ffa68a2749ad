"""Stopped and resumed equals uninterrupted, byte for byte; and every driver trains the same."""

from __future__ import annotations

import importlib
import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import TrainConfig, resume_run, session, train
from engine import config as config_module
from engine import step as step_module
from engine.checkpoint import Checkpoint
from engine.cli.train import main
from engine.config import Preset
from engine.control import Control
from engine.distributed import Team
from engine.environment import processor_name
from engine.errors import ConfigError, RunError
from engine.kernels import Kernels
from engine.run import ActiveRun, Run, list_runs, load_run
from engine.start import branch_run, new_run
from tests.native_here import needs_native

loop = importlib.import_module("engine.train")

STOPS = 20
CONFIG = TrainConfig(
    config="nano",
    corpus="tiny",
    epochs=100,
    max_steps=STOPS + 2,
    batch_size=2,
    context_length=32,
    dropout=0.1,
    eval_every=4,
    sample_every=7,
    sample_length=3,
    threads=2,
)


@pytest.fixture
def after_step(monkeypatch: pytest.MonkeyPatch) -> dict[int, Callable[[], None]]:
    """Step -> what to do right after it was logged, once."""
    actions: dict[int, Callable[[], None]] = {}
    log = ActiveRun.log

    def log_and_act(self: ActiveRun, row: dict[str, Any]) -> None:
        log(self, row)
        actions.pop(row["step"], lambda: None)()

    monkeypatch.setattr(ActiveRun, "log", log_and_act)
    return actions


def hashes(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of the weights, of the optimizer with the RNG states, and of the counters with the data position."""
    manifest = json.loads((checkpoint.path / "manifest.json").read_text())
    return {name: entry["sha256"] for name, entry in manifest["files"].items()}


def measured(run: Run) -> list[dict[str, Any]]:
    """What was measured at each step; clocks and memory are not part of the promise."""
    rows = run.metrics.drop(columns=["time", "elapsed_s", "tokens_per_s", "memory_gib"])
    return list(rows.fillna(-1.0).to_dict("records"))


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("changes", "stops"),
    [
        ({}, range(1, STOPS + 1)),
        ({"optimizer": "adamw_8bit"}, (1, 4, 7, 8)),
        pytest.param({"compile": "on", "dropout": 0.0}, (1, 2, 7, 8), marks=needs_native),
    ],
)
def test_stopped_and_resumed_equals_uninterrupted(
    changes: dict[str, Any],
    stops: Sequence[int],
    after_step: dict[int, Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    less = Preset(2, 2, 64, 256, 2e-3, "wide enough for moments in 8 bits and for work that threads share")
    monkeypatch.setattr(config_module, "PRESETS", config_module.PRESETS | {"nano": less})  # a third to write each time
    config = replace(CONFIG, **changes, max_steps=max(stops) + 2)
    expected: dict[int, dict[str, str]] = {}

    def remember(folder: Path, keep: int) -> None:
        newest = Run(folder).checkpoints[-1]
        expected[newest.step] = hashes(newest)
        prune(folder, 1)

    prune = loop.prune
    with monkeypatch.context() as patch:
        patch.setattr(loop, "prune", remember)
        whole = train(replace(config, save_every=1))

    active = new_run(config)
    for stop in stops:
        if stop % 2:  # by request
            control = Control()
            after_step[stop] = lambda control=control: control.apply("stop")  # type: ignore[misc]
            train(active.config, active, control)
        else:  # by Ctrl-C in a terminal
            after_step[stop] = lambda: os.kill(os.getpid(), signal.SIGINT)
            assert main(["--resume", active.id, "--json"]) == 0
        reader = load_run(active.id)
        assert reader.state == "stopped"
        assert reader.checkpoints[-1].step == stop
        assert hashes(reader.checkpoints[-1]) == expected[stop]
        if not stop % 2:
            active = resume_run(active.id)
    finished = train(active.config, active)

    assert finished.state == "completed"
    assert measured(finished) == measured(whole)
    assert hashes(finished.checkpoints[-1]) == expected[config.max_steps]
    assert list(finished.samples.text) == list(whole.samples.text)


@pytest.mark.parametrize("compile", ["auto", pytest.param("on", marks=needs_native)])
def test_terminal_background_thread_and_library_train_the_same(
    compile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(CONFIG, max_steps=6, compile=compile)
    library = train(config)
    flags = ["--corpus", "tiny", "--epochs", "100", "--max-steps", "6", "--batch-size", "2", "--context-length", "32"]
    flags += ["--dropout", "0.1", "--eval-every", "4", "--sample-every", "7", "--sample-length", "3", "--threads", "2"]
    flags += ["--compile", compile]
    assert main([*flags, "--json"]) == 0
    [terminal] = [run for run in list_runs() if run.id != library.id]
    background = load_run(session.start(config))
    assert session.wait(60)
    for other in (terminal, background):
        assert measured(other) == measured(library)
        assert hashes(other.checkpoints[-1]) == hashes(library.checkpoints[-1])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["train_loss"] for line in lines if line["kind"] == "step"] == list(library.metrics.train_loss)


def test_a_checkpoint_in_between_changes_nothing() -> None:
    plain = train(replace(CONFIG, max_steps=6, eval_every=-1, sample_every=-1))
    busy = train(replace(CONFIG, max_steps=6, eval_every=1, sample_every=1, save_every=1))
    assert list(plain.metrics.train_loss) == list(busy.metrics.train_loss)
    assert hashes(plain.checkpoints[-1]) == hashes(busy.checkpoints[-1])


def test_gradient_accumulation_equals_the_large_batch() -> None:
    large = train(replace(CONFIG, max_steps=4, batch_size=4, dropout=0.0))
    accumulated = train(replace(CONFIG, max_steps=4, batch_size=1, grad_accum_steps=4, dropout=0.0))
    assert list(accumulated.metrics.train_loss) == pytest.approx(list(large.metrics.train_loss), rel=1e-4)
    assert list(accumulated.metrics.tokens) == list(large.metrics.tokens)


def test_resume_of_a_complete_run_or_a_changed_text_is_refused(add_corpus: Callable[[str, str], Path]) -> None:
    add_corpus("mine", "The cat sat on the mat. " * 200)
    config = replace(CONFIG, corpus="mine", max_steps=3)
    complete = train(config)
    with pytest.raises(RunError, match="is complete"):
        resume_run(complete.id)
    control = Control()
    control.apply("stop")
    active = new_run(config)
    stopped = train(active.config, active, control)
    assert (stopped.state, stopped.checkpoints[-1].step) == ("stopped", 0)
    add_corpus("mine", "The dog sat on the mat. " * 200)
    with pytest.raises(RunError, match="has changed"):
        resume_run(stopped.id)


def test_branch_starts_at_the_checkpoint_and_records_its_parent(capsys: pytest.CaptureFixture[str]) -> None:
    parent = train(replace(CONFIG, max_steps=4))
    flags = ["--branch", f"{parent.id}@4", "--max-steps", "6", "--learning-rate", "0.0001", "--optimizer", "adamw_8bit"]
    assert main([*flags, "--json"]) == 0
    [branch] = [run for run in list_runs() if run.id != parent.id]
    assert list(branch.metrics.step) == [5, 6]
    assert branch.info["parent"]["run"] == parent.id
    assert branch.info["parent"]["step"] == 4
    assert branch.info["parent"]["changes"] == {
        "max_steps": [4, 6],
        "learning_rate": [parent.config.learning_rate, 0.0001],
        "optimizer": ["adamw", "adamw_8bit"],
    }
    assert any("starts afresh" in event.message for event in branch.events)
    assert load_run(parent.id).metrics.equals(parent.metrics)
    capsys.readouterr()
    assert main(["--branch", parent.id, "--config", "small", "--no-tie-embeddings"]) == 2
    assert main(["--branch", parent.id, "--max-steps", "4"]) == 2
    said = capsys.readouterr().err
    assert "--config: it decides the shapes" in said
    assert "--tie-embeddings: it decides the shapes" in said
    assert "--max-steps: the branch would be over before it starts: its checkpoint is at step 4. Ask for more" in said
    assert "--epochs" not in said  # there are enough of them
    assert main(["--branch", parent.id, "--max-steps", "4", "--epochs", "0.001"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in said] == ["--epochs", "--max-steps"]


def test_an_unchanged_branch_continues_like_its_parent(after_step: dict[int, Callable[[], None]]) -> None:
    whole = train(replace(CONFIG, max_steps=6, save_every=3))
    branch = branch_run(whole.id, 3)
    continued = train(branch.config, branch)
    assert list(continued.metrics.train_loss) == list(whole.metrics.train_loss)[3:]
    with pytest.raises(ConfigError, match="out of range"):
        branch_run(whole.id, 3, {"learning_rate": 7.0})


# ------------------------------------------------------------------------------------- what rounds otherwise

HERE = {"PyTorch": torch.__version__, "processor": f"{processor_name()} ({torch.backends.cpu.get_cpu_capability()})"}
ON_A_CARD = {"PyTorch": "2.3.0", "GPU": "NVIDIA L4", "attention": "Triton"}


def stopped(told: Any) -> Run:
    """A run that was stopped before its first step, by a computer of which its checkpoint tells this."""
    control = Control()
    control.apply("stop")
    run = train(replace(CONFIG, max_steps=1), new_run(replace(CONFIG, max_steps=1)), control)
    path = run.checkpoints[-1].path / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["arithmetic"] == HERE
    path.write_text(json.dumps(manifest | {"arithmetic": told}))
    return run


def gone_on(active: ActiveRun) -> Run:
    return train(active.config, active)


def warnings(run: Run) -> list[str]:
    return [event.message for event in run.events if event.kind == "warning"]


@pytest.mark.parametrize("go_on", [resume_run, branch_run])
def test_another_arithmetic_is_told(go_on: Callable[[str], ActiveRun]) -> None:
    run = gone_on(go_on(stopped(ON_A_CARD).id))
    [warning] = warnings(run)
    assert f"PyTorch {torch.__version__} instead of 2.3.0; GPU none instead of NVIDIA L4; attention none" in warning
    assert warning.endswith("numbers are those of an unbroken run up to rounding, not in every bit.")
    assert run.info["arithmetic"] == dict(run.checkpoints[-1].arithmetic) == HERE


@pytest.mark.parametrize("go_on", [resume_run, branch_run])
@pytest.mark.parametrize("told", [HERE, None, 3, [], {}, "x"])
def test_the_same_one_is_not_nor_an_older_or_odd_record(told: Any, go_on: Callable[[str], ActiveRun]) -> None:
    assert warnings(gone_on(go_on(stopped(told).id))) == []


def test_what_computed_the_checkpoint_counts_not_who_tried_since() -> None:
    """Elsewhere it was begun to be resumed, and died before a step."""
    run = stopped(HERE)
    info = run.info | {"arithmetic": ON_A_CARD}
    (run.folder / "run.json").write_text(json.dumps(info))
    assert warnings(gone_on(resume_run(run.id))) == []


def test_kernels_that_do_not_work_are_told_in_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "choose_kernels", lambda *_, **__: Kernels(lacking=("No compiler here.",)))
    assert warnings(train(replace(CONFIG, max_steps=1))) == ["No compiler here."]


@needs_native
@pytest.mark.parametrize("first", ["on", "off"])
def test_a_branch_with_and_without_native_kernels_is_told_and_goes_on_alike(first: str) -> None:
    parent = train(replace(CONFIG, max_steps=8, dropout=0.0, save_every=4, compile=first))
    other = {"on": "off", "off": "on"}[first]
    active = branch_run(parent.id, 4, {"compile": other})
    branch = train(active.config, active)
    [warning] = warnings(branch)
    assert ("loss C instead of PyTorch" if other == "on" else "loss none instead of C") in warning
    losses = [list(run.metrics.set_index("step").train_loss.loc[5:8]) for run in (parent, branch)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize(("here", "elsewhere"), [("no gcc\nin /usr/bin", ""), ("", "no gcc"), ("no gcc", "no gcc")])
def test_a_compilation_that_fails_is_told_and_not_tried_again(
    here: str, elsewhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, and on another rank's."""
    tried = []

    def compile_model(state: Any) -> None:
        tried.append(state.step)
        if here:
            raise RuntimeError(here)
        state.model.compiled = state.model.stack

    monkeypatch.setattr(step_module, "compiles", lambda plan, _: plan.config.compile != "off")
    monkeypatch.setattr(step_module, "compile_model", compile_model)
    monkeypatch.setattr(Team, "gather", lambda self, value: [value, elsewhere] if isinstance(value, str) else [value])
    run = train(replace(CONFIG, max_steps=6))
    assert run.state == "completed" and tried == [2]
    told = [("Compilation failed, ", "RuntimeError: no gcc")] * bool(here)
    told += [("Compilation failed on rank 1, ", "no gcc")] * bool(elsewhere)
    assert len(warnings(run)) == len(told)
    for message, (begins, ends) in zip(warnings(run), told, strict=True):
        assert message.startswith(begins) and message.endswith(f"up to rounding: {ends}")
    failed = {"blocks": "not compiled"} if here else {}
    failed |= {"blocks of rank 1": "not compiled"} if elsewhere else {}
    assert run.info["arithmetic"] == dict(run.checkpoints[-1].arithmetic) == HERE | failed
