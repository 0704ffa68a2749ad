"""What the engine's tests share: folders of their own, a small corpus, and few threads."""

from __future__ import annotations

import os
import shutil

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the promises are the CPU's; tests/gpu has the others. Before torch is loaded

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.with_small_nano import shrink_nano

# One machine, one outcome: the same examples every time, however slow the machine is at the moment.
settings.register_profile("lab", deadline=None, max_examples=50, derandomize=True, database=None)
settings.load_profile("lab")


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """Tiny models gain nothing from more, and other processes may be at work."""
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The power stays on while tests run, and thousands of fsyncs take minutes on a slow disk."""
    monkeypatch.setattr(os, "fsync", os.fstat)


@pytest.fixture(autouse=True)
def runs_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty `runs/` for the test alone. It is gone after it: checkpoints of all tests would be gigabytes."""
    lab = tmp_path_factory.mktemp("lab")
    folder = lab / "runs"
    folder.mkdir()
    monkeypatch.setenv("LAB_RUNS", str(folder))
    yield folder
    shutil.rmtree(lab, ignore_errors=True)


@pytest.fixture(autouse=True)
def corpora_folder(runs_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `corpora/` for the test alone; built-in corpora are found in the project all the same."""
    folder = runs_folder.with_name("corpora")
    folder.mkdir()
    monkeypatch.setenv("LAB_CORPORA", str(folder))
    return folder


@pytest.fixture
def small_nano(monkeypatch: pytest.MonkeyPatch) -> None:
    """For trainings of which nothing is asked that depends on size."""
    shrink_nano(monkeypatch.setattr)


@pytest.fixture
def add_corpus(corpora_folder: Path) -> Callable[[str, str], Path]:
    """Drop a text into the corpora folder: `add_corpus("mine", "Some text.")` returns its path."""

    def add(name: str, text: str) -> Path:
        path = corpora_folder / f"{name}.txt"
        path.write_text(text, encoding="utf-8")
        return path

    return add
