"""All that the processor's kernels are asked, each set of vectors it has is asked."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch

from engine.native import library
from tests.native_here import needs_native

AVX2 = ("-mno-avx512f",)  # what a processor without AVX-512 would compile


@functools.cache
def compiled(*flags: str) -> object:
    """The library, compiled with more flags."""
    flags_before = library.FLAGS
    try:
        library.FLAGS = [*flags_before, *flags]
        return library._load()
    finally:
        library.FLAGS = flags_before


@pytest.fixture(params=[pytest.param((), id="native"), pytest.param(AVX2, id="AVX2")], autouse=True)
def vectors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the kernels be those that are compiled for vectors of a kind."""
    if needs_native.args[0]:
        pytest.skip(needs_native.kwargs["reason"])
    monkeypatch.setattr(library, "_loaded", [compiled(*request.param)])
    yield


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """As many threads as computed with."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
