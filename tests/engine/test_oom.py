"""Running out of memory ends the run, and nothing else: it says what would fit, and the next run has all the memory."""

from __future__ import annotations

import dataclasses
import gc
import re
import resource
import sys
import weakref
from typing import Any

import psutil
import pytest
import torch

from engine import TrainConfig, environment, load_run, session
from engine.memory import estimate_memory
from engine.model import GPT

SHORT = TrainConfig(corpus="tiny", context_length=64, batch_size=2, max_steps=3, sample_length=0, eval_every=-1)


def test_it_fails_with_what_would_fit_frees_everything_and_the_next_run_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[weakref.ref[GPT]] = []
    real = GPT.loss

    def loss(self: GPT, *args: Any, **kwargs: Any) -> torch.Tensor:
        models.append(weakref.ref(self))
        if len(models) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(GPT, "loss", loss)
    gc.disable()  # a GPU's memory does not wait until Python happens to look for cycles
    try:
        run = load_run(session.start(TrainConfig(batch_size=8, max_steps=3, sample_length=0, eval_every=-1)))
        assert session.wait(60)
        assert models[0]() is None, "the model of a failed run is kept alive"
    finally:
        gc.enable()
    assert run.state == "failed"
    assert run.info["error"].startswith("Memory ran out on cpu. By the estimate these would fit: ")
    for change in run.info["would_fit"]:
        changed = dataclasses.replace(run.config, **change["settings"])
        assert estimate_memory(changed, "cpu").total == change["total"] < estimate_memory(run.config, "cpu").total
    assert run.info["would_fit"]
    assert re.search(r"batch_size \d with grad_accum_steps \d \(saves \d", run.info["error"])
    monkeypatch.undo()


def test_the_next_run_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(GPT, "loss", _no_memory)
        failed = load_run(session.start(SHORT))
        assert session.wait(60)
    assert failed.state == "failed"
    again = load_run(session.start(SHORT))
    assert session.wait(60)
    assert again.state == "completed"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems swap, and kill nobody")
def test_a_cpu_run_is_refused_memory_before_the_system_kills_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    held, swap = psutil.Process().memory_info().rss, psutil.swap_memory().free
    monkeypatch.setattr(environment, "memory_within_reach", lambda device: held - swap + 400 * 2**20)
    large = dataclasses.replace(SHORT, corpus="verdict", context_length=2048, attention_impl="manual")
    run = load_run(session.start(large))
    assert session.wait(60)
    assert run.state == "failed" and run.info["error"].startswith("Memory ran out on cpu.")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def _no_memory(*args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.empty(2**50, dtype=torch.uint8)  # the allocator's own error: a petabyte is nowhere to be had
