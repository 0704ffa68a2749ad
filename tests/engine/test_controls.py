"""Every setting has its effect: for each, what a short run shows that differs in it from another.

What each precision, optimizer, attention and checkpointing does to memory and curves on a GPU is recorded and tested in
tests/gpu/test_grid_data.py and tests/engine/test_memory.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import config as config_module
from engine import train
from engine.accelerate import records
from engine.checkpoint import load
from engine.config import SETTINGS, VOCABULARY_SIZE, Preset, TrainConfig
from engine.errors import ConfigError
from engine.run import Run

TINY = {
    "nano": Preset(2, 2, 32, 16, 1e-2, "quick"),
    "small": Preset(3, 2, 32, 16, 1e-2, "a little less quick"),
}
BASE = TrainConfig(
    batch_size=2, max_steps=3, device="cpu", threads=1, eval_every=-1, eval_batches=2, sample_every=-1, sample_length=8
)


@dataclass(frozen=True)
class Outcome:
    """A run, the bytes that its blocks kept for the backward passes, and the threads it computed with."""

    run: Run
    kept: int
    threads: int

    def column(self, name: str) -> list[float]:
        return list(self.run.metrics[name])

    @property
    def losses(self) -> list[float]:
        return self.column("train_loss")

    @property
    def text(self) -> str:
        return str(self.run.samples.text.iloc[-1])

    @property
    def contents(self) -> Any:
        return load(self.run.checkpoints[-1])

    def norm(self, part: str, of: str) -> float:
        """Length of all tensors of the last checkpoint whose name ends so."""
        found = [t.float().norm() for name, t in getattr(self.contents, part).items() if name.endswith(of)]
        assert found
        return float(torch.stack(found).norm())


def outcome(**changes: Any) -> Outcome:
    """Train with the base's settings and these."""
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += 0 if VOCABULARY_SIZE in tensor.shape else tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run = train(replace(BASE, **changes))
    return Outcome(run, kept, torch.get_num_threads())


@cache
def unchanged_outcome(companions: tuple[tuple[str, Any], ...]) -> Outcome:
    """A run to compare with; its folder stays until the tests are over."""
    return outcome(**dict(companions))


@pytest.fixture(scope="module")
def runs_of_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs that several tests compare with."""
    return tmp_path_factory.mktemp("controls")


@pytest.fixture(autouse=True)
def tiny_presets(monkeypatch: pytest.MonkeyPatch, runs_of_all: Path) -> Iterator[None]:
    monkeypatch.setenv("LAB_RUNS", str(runs_of_all))
    threads = torch.get_num_threads()
    monkeypatch.setattr(config_module, "PRESETS", TINY)
    yield
    torch.set_num_threads(threads)


def close(a: list[float], b: list[float], within: float) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= within for x, y in zip(a, b, strict=True))


Check = Callable[[Outcome, Outcome], bool]

# setting -> what is changed, and what must be so of the run with the change (it) and the one without (base)
EFFECTS: dict[str, tuple[dict[str, Any], Check]] = {
    "config": ({"config": "small"}, lambda it, base: it.run.info["parameters"] > base.run.info["parameters"]),
    "corpus": ({"corpus": "tiny"}, lambda it, base: it.run.info["corpus_sha256"] != base.run.info["corpus_sha256"]),
    "epochs": ({"epochs": 0.01}, lambda it, base: it.run.total_steps == 2 and it.column("epoch")[-1] >= 0.01),
    "batch_size": ({"batch_size": 4}, lambda it, base: it.column("tokens") == [64, 128, 192]),
    "context_length": ({"context_length": 8}, lambda it, base: it.column("tokens") == [16, 32, 48]),
    "learning_rate": ({"learning_rate": 0.5}, lambda it, base: max(it.column("learning_rate")) == 0.5),
    "seed": ({"seed": 1}, lambda it, base: it.losses[0] != base.losses[0]),
    "max_steps": ({"max_steps": 5}, lambda it, base: len(it.losses) == 5),
    "grad_accum_steps": ({"grad_accum_steps": 2}, lambda it, base: it.column("tokens") == [64, 128, 192]),
    "val_fraction": (
        {"val_fraction": 0.3},
        lambda it, base: it.run.info["val_tokens"] > 2.9 * base.run.info["val_tokens"],
    ),
    "val_corpus": (
        {"val_corpus": "tiny"},
        lambda it, base: it.losses != base.losses and it.column("val_loss")[-1] != base.column("val_loss")[-1],
    ),
    "optimizer": (
        {"optimizer": "adamw_8bit"},
        lambda it, base: (
            any(t.dtype is torch.uint8 and "state" in n for n, t in it.contents.optimizer.items())
            and close(it.losses, base.losses, 0.1)
        ),
    ),
    "warmup_steps": (
        {"warmup_steps": 3},
        lambda it, base: it.column("learning_rate")[0] == pytest.approx(max(base.column("learning_rate")) / 3),
    ),
    "weight_decay": (
        {"weight_decay": 10.0},
        lambda it, base: it.norm("model", "expand.weight") < 0.9 * base.norm("model", "expand.weight"),
    ),
    "grad_clip": (
        {"grad_clip": 0.01},
        lambda it, base: (
            it.column("grad_norm")[0] == base.column("grad_norm")[0] > 0.01
            and it.norm("optimizer", "exp_avg") < 0.1 * base.norm("optimizer", "exp_avg")
        ),
    ),
    "dropout": ({"dropout": 0.5}, lambda it, base: it.losses[1:] != base.losses[1:] and it.kept > base.kept),
    "precision": (
        {"precision": "bf16"},
        lambda it, base: it.losses != base.losses and close(it.losses, base.losses, 0.05),
    ),
    "attention_impl": (
        {"attention_impl": "manual"},
        lambda it, base: it.kept > base.kept and close(it.losses, base.losses, 1e-4),
    ),
    "gradient_checkpointing": (
        {"gradient_checkpointing": True},
        lambda it, base: it.kept < 0.5 * base.kept and it.losses == base.losses,
    ),
    "tie_embeddings": (
        {"tie_embeddings": False},
        lambda it, base: it.contents.model.keys() - base.contents.model.keys() == {"head.weight"},
    ),
    "threads": ({"threads": 2}, lambda it, base: it.threads == 2),
    "eval_every": ({"eval_every": 1}, lambda it, base: it.run.metrics.val_loss.notna().tolist() == [True] * 3),
    "eval_batches": (
        {"eval_batches": 1},
        lambda it, base: it.losses == base.losses and it.column("val_loss")[-1] != base.column("val_loss")[-1],
    ),
    "sample_every": ({"sample_every": 1}, lambda it, base: it.run.samples.step.tolist() == [1, 2, 3]),
    "sample_prompt": ({"sample_prompt": "Once"}, lambda it, base: set(it.run.samples.prompt) == {"Once"}),
    "sample_length": ({"sample_length": 0}, lambda it, base: it.run.samples.empty and not base.run.samples.empty),
    "sample_temperature": ({"sample_temperature": 0.0}, lambda it, base: it.text != base.text),
    "sample_top_k": ({"sample_top_k": 1}, lambda it, base: it.text == outcome(sample_temperature=0.0).text),
    "save_every": ({"save_every": 1}, lambda it, base: [c.step for c in it.run.checkpoints] == [1, 2, 3]),
    "keep_checkpoints": (
        {"save_every": 1, "keep_checkpoints": 2},
        lambda it, base: [c.step for c in it.run.checkpoints] == [2, 3],
    ),
}
NEED_A_GPU = {"device", "compile"}  # see the last two tests


def test_every_setting_has_its_effect_in_the_table() -> None:
    assert EFFECTS.keys() | NEED_A_GPU == SETTINGS.keys()


@pytest.mark.parametrize("name", EFFECTS)
def test_a_setting_has_its_effect(name: str) -> None:
    changes, shows = EFFECTS[name]
    assert name in changes and changes[name] != getattr(BASE, name)
    unchanged = {other: value for other, value in changes.items() if other != name}
    base, it = unchanged_outcome(tuple(unchanged.items())), outcome(**changes)
    assert it.run.state == base.run.state == "completed"
    assert getattr(it.run.config, name) == changes[name]
    assert shows(it, base), (it.run.metrics, base.run.metrics)
    assert not shows(base, base), "this would be so without the change too"


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="cuda does not exist"):
        outcome(device="cuda")
    assert outcome().run.config.device == "cpu"


def test_compilation_is_the_gpus_and_changes_nothing_on_a_cpu() -> None:
    """What it does on a GPU is for tests/engine/test_accelerate.py to tell when, and tests/gpu/grid.py to measure."""
    assert outcome(compile="on").losses == outcome(compile="off").losses
    gpu = torch.device("cuda")
    assert records(replace(BASE, compile="on"), gpu) and not records(replace(BASE, compile="off"), gpu)
