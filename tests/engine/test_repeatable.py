"""engine.repeatable: PyTorch's switch is on while somebody needs it, in whatever thread, and as it was afterwards."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
import torch

from engine.repeatable import repeatable

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def switch() -> tuple[bool, bool, bool]:
    fills: bool = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    on, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    return on, warns, fills


ON = (True, False, False)


@pytest.fixture(autouse=True, params=[(False, False), (True, True)], ids=["off before", "warns before"])
def before(request: pytest.FixtureRequest) -> Iterator[tuple[bool, bool, bool]]:
    torch.use_deterministic_algorithms(request.param[0], warn_only=request.param[1])
    yield switch()
    torch.use_deterministic_algorithms(False)


def test_it_is_on_inside_and_as_it_was_outside(before: tuple[bool, bool, bool]) -> None:
    with repeatable(GPU):
        assert switch() == ON
        with repeatable(GPU):
            assert switch() == ON
        assert switch() == ON
    assert switch() == before


def test_an_error_leaves_it_as_it_was(before: tuple[bool, bool, bool]) -> None:
    with pytest.raises(ZeroDivisionError), repeatable(GPU):
        1 / 0  # noqa: B018
    assert switch() == before


def test_a_cpu_needs_none(before: tuple[bool, bool, bool]) -> None:
    with repeatable(CPU):
        assert switch() == before


def test_it_stays_on_until_the_last_of_several_threads_is_done(before: tuple[bool, bool, bool]) -> None:
    first_in, second_out = threading.Event(), threading.Event()
    seen = []

    def first() -> None:
        with repeatable(GPU):
            first_in.set()
            second_out.wait(10)
            seen.append(switch())

    thread = threading.Thread(target=first)
    thread.start()
    first_in.wait(10)
    with repeatable(GPU):
        seen.append(switch())
    second_out.set()
    thread.join()
    assert seen == [ON, ON] and switch() == before


def test_cublas_was_told_before_it_is_used() -> None:
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")
