"""engine.cublaslt: what it asks of the library, which a stand-in in this process's memory does; on a card,
tests/gpu/repeat.py."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine import cublaslt
from engine.cublaslt import fastest, multiply

DTYPES = {14: torch.bfloat16, 2: torch.float16, 0: torch.float32}


class Library:
    """cuBLASLt's functions as its manual describes them: matrices lie column by column; result = a · b + beta · c, with
    what the epilogue makes of it. Each product has five kernels; the third adds up otherwise, the fourth says so, and
    the last does not suit."""

    def __init__(self) -> None:
        self.objects: dict[int, Any] = {}
        self.used: list[int] = []
        self.cut: list[tuple[int, int]] = []  # into how many parts, and how these were added up
        self.cannot_be_cut = {1}
        self.proposals = 5

    def _new(self, handle: Any, value: Any) -> int:
        self.objects[len(self.objects) + 1] = value
        handle._obj.value = len(self.objects)
        return 0

    def cublasLtCreate(self, handle: Any) -> int:
        return self._new(handle, None)

    def cublasLtMatmulDescCreate(self, handle: Any, compute: int, scale: int) -> int:
        assert (compute, scale) == (68, 0)  # all of it in fp32
        return self._new(handle, {})

    def cublasLtMatmulPreferenceCreate(self, handle: Any) -> int:
        return self._new(handle, {})

    def cublasLtMatmulPreferenceDestroy(self, _: Any) -> int:
        return 0

    def cublasLtMatrixLayoutCreate(self, handle: Any, kind: int, rows: Any, columns: Any, stride: Any) -> int:
        assert stride.value == rows.value
        return self._new(handle, (DTYPES[kind], rows.value, columns.value))

    def _set(self, handle: Any, attribute: int, value: Any, size: Any) -> int:
        assert ctypes.sizeof(value._obj) == size.value
        self.objects[handle.value][attribute] = value._obj.value
        return 0

    cublasLtMatmulDescSetAttribute = cublasLtMatmulPreferenceSetAttribute = _set

    def cublasLtMatmulAlgoGetHeuristic(self, *arguments: Any) -> int:
        preference, wanted, found, count = arguments[6:]
        assert self.objects[preference.value] == {1: 48 * 2**20, 3: 6, 5: 16, 6: 16, 7: 16, 8: 16}
        for i in range(self.proposals):
            found[i].algorithm[0], found[i].scratch, found[i].state = i, 64 * i, 7 * (i == 4)
        count._obj.value = min(wanted, self.proposals)
        return 0

    def cublasLtMatmulAlgoConfigGetAttribute(self, kernel: Any, attribute: int, value: Any, size: Any, _: Any) -> int:
        assert size.value == 4
        splits = kernel._obj.algorithm[0] == 3
        value._obj.value = kernel._obj.algorithm[attribute] or {2: 2 if splits else 1, 3: 2 if splits else 0}[attribute]
        return 0

    def cublasLtMatmulAlgoConfigSetAttribute(self, kernel: Any, attribute: int, value: Any, size: Any) -> int:
        assert size.value == 4
        kernel._obj.algorithm[attribute] = value._obj.value
        return 7 if kernel._obj.algorithm[0] in self.cannot_be_cut else 0

    def cublasLtMatmulAlgoCheck(self, _: Any, operation: Any, *more: Any) -> int:
        a, b, c, out, kernel, result = more
        assert c is out and len({self.objects[layout.value][0] for layout in (a, b)}) == 1
        result._obj.scratch, result._obj.state = 2**20 * kernel._obj.algorithm[2], 0
        return 0

    def cublasLtMatmul(
        self, _: Any, operation: Any, one: Any, a: Any, a_layout: Any, b: Any, b_layout: Any, *more: Any
    ) -> int:
        beta, c, c_layout, out, out_layout, kernel, scratch, scratch_size, _ = more
        assert scratch_size.value == kernel._obj.scratch and bool(scratch.value) == bool(scratch_size.value)
        does = self.objects[operation.value]
        self.used.append(kernel._obj.algorithm[0])
        self.cut.append((kernel._obj.algorithm[2], kernel._obj.algorithm[3]))
        left, right = self._matrix(a, a_layout), self._matrix(b, b_layout)
        left, right = left.T if does[3] else left, right.T if does[4] else right
        result, before = self._matrix(out, out_layout), self._matrix(c, c_layout)
        value = left.double() @ right.double() * one._obj.value
        if beta._obj.value:
            value += beta._obj.value * before.double()
        if self.used[-1] == 2:
            value = value * 1.01  # as if it rounded otherwise
        if does[7] in (cublaslt.BIAS, cublaslt.GELU_AUX_BIAS):
            value += _read(does[8], result.dtype, result.size(0)).double()[:, None]
        if does[7] in (cublaslt.GELU_AUX_BIAS, cublaslt.DGELU):
            assert does[12] == result.size(0)
            aux = _read(does[11], result.dtype, result.numel()).view(result.size(1), result.size(0)).T
            if does[7] == cublaslt.DGELU:
                value = torch.ops.aten.gelu_backward(value, aux.double(), approximate="tanh")
            else:
                aux.copy_(value)
                value = F.gelu(value, approximate="tanh")
        result.copy_(value)
        return 0

    def _matrix(self, pointer: Any, layout: Any) -> Tensor:
        dtype, rows, columns = self.objects[layout.value]
        return _read(pointer.value, dtype, rows * columns).view(columns, rows).T


def _read(address: int, dtype: torch.dtype, count: int) -> Tensor:
    memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype, count=count)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    stand_in = Library()
    monkeypatch.setattr(cublaslt, "_library", lambda: stand_in)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(cublaslt, "_multiprocessors", lambda _: 132)
    yield stand_in
    cublaslt.planned.cache_clear()
    cublaslt._handle.cache_clear()


def values(*shape: int, turned: bool = False, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)
    return drawn.T.contiguous().T if turned else drawn


@pytest.mark.parametrize("turned", [*itertools.product([False, True], repeat=2)])
@pytest.mark.parametrize("result", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("add", [False, True])
def test_products_are_those_of_the_matrices(
    turned: tuple[bool, bool], result: torch.dtype, add: bool, library: Library
) -> None:
    x, w, out = values(8, 24, turned=turned[0]), values(24, 16, turned=turned[1]), values(8, 16, dtype=result)
    wanted = x.double() @ w.double() + (out.double() if add else 0)
    multiply(x, w, out, add=add)
    torch.testing.assert_close(out, wanted.to(result))
    assert library.used == [0]  # of small ones the first


def test_epilogues_add_a_bias_and_apply_gelu(library: Library) -> None:
    x, w, bias, out, aux = values(8, 24), values(24, 16), values(16), values(8, 16), values(8, 16)
    plain = x.double() @ w.double() + bias.double()
    multiply(x, w, out, epilogue=cublaslt.BIAS, bias=bias)
    torch.testing.assert_close(out, plain.bfloat16())
    multiply(x, w, out, epilogue=cublaslt.GELU_AUX_BIAS, bias=bias, aux=aux)
    torch.testing.assert_close(aux, plain.bfloat16())
    torch.testing.assert_close(out, F.gelu(plain, approximate="tanh").bfloat16())
    multiply(x, w, out, epilogue=cublaslt.DGELU, aux=aux)
    wanted = torch.ops.aten.gelu_backward(x.double() @ w.double(), aux.double(), approximate="tanh")
    torch.testing.assert_close(out, wanted.bfloat16())


def test_what_lies_otherwise_is_copied(library: Library) -> None:
    """Every second column, and a matrix that begins at an odd address."""
    x, w = values(8, 48)[:, ::2], values(1 + 24 * 16)[1:].view(24, 16)
    multiply(x, w, out := torch.empty(8, 16, dtype=torch.bfloat16))
    torch.testing.assert_close(out, (x.double() @ w.double()).bfloat16())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """The milliseconds that kernels take."""
    took = {0: 1.0, 1: 0.5, 2: 0.1}
    monkeypatch.setattr(cublaslt, "LARGE_PRODUCT", 1)
    monkeypatch.setattr(cublaslt, "_milliseconds", lambda launch, kernel, repeats: took[kernel.algorithm[0]])
    return took


def test_the_fastest_with_the_same_bits_does_large_ones(library: Library, clock: dict[int, float]) -> None:
    x, w, out = values(8, 24), values(24, 16), torch.empty(8, 16, dtype=torch.bfloat16)
    for _ in range(2):
        multiply(x, w, out)
        torch.testing.assert_close(out, (x.double() @ w.double()).bfloat16())
    assert library.used == [0, 1, 2, 1, 1]  # all tried, then the second, twice


def test_it_is_chosen_for_each_shape(library: Library, clock: dict[int, float]) -> None:
    for rows in (8, 16, 8):
        multiply(values(rows, 24), values(24, 16), torch.empty(rows, 16, dtype=torch.bfloat16))
    assert library.used == [0, 1, 2, 1] * 2 + [1]


def test_little_gain_leaves_the_first(library: Library, clock: dict[int, float]) -> None:
    clock[1] = 0.995
    multiply(values(8, 24), values(24, 16), torch.empty(8, 16, dtype=torch.bfloat16))
    assert library.used[-1] == 0


def test_what_a_gelu_is_applied_to_has_to_be_the_same_too(library: Library, clock: dict[int, float]) -> None:
    """Where it is negative enough, GELU is 0 of anything."""
    x, w = values(8, 24).abs(), -values(24, 16).abs() - 5
    out, aux = torch.empty(8, 16, dtype=torch.bfloat16), torch.empty(8, 16, dtype=torch.bfloat16)
    clock[1] = 2.0
    multiply(x, w, out, epilogue=cublaslt.GELU_AUX_BIAS, bias=torch.zeros(16).bfloat16(), aux=aux)
    assert not out.any() and library.used[-1] == 0


@pytest.mark.parametrize("when", ["it is added", "a graph is recorded"])
def test_nothing_is_tried_where_it_cannot_be(
    when: str, library: Library, clock: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = torch.zeros(8, 16)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: when == "a graph is recorded")
    multiply(values(8, 24), values(24, 16), out, add=when == "it is added")
    assert library.used == [0]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    multiply(values(8, 24), values(24, 16), out)
    assert library.used == [0, 0, 1, 2, 1]


@pytest.mark.parametrize("value", ["every row alike", "not a number"])
def test_values_that_tell_nothing_leave_it_open(value: str, library: Library, clock: dict[int, float]) -> None:
    """As when a model is compiled before a resumed run's first step, or overflowed."""
    x, w, out = values(8, 24), values(24, 16), torch.empty(8, 16, dtype=torch.bfloat16)
    multiply(x[:1].repeat(8, 1) if value == "every row alike" else x * math.nan, w, out)
    assert library.used == [0, 0]
    multiply(x, w, out)
    assert library.used[-1] == 1


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ((2304, 65536, 768), 5),  # 48 tiles of 192 × 192, five times, for twice 132 multiprocessors
        ((768, 196608, 768), 7),  # 18 of 256 × 128
        ((768, 65536, 768), 7),
        ((768, 32768, 768), None),  # parts would be short
        ((3072, 65536, 768), 2),
        ((4096, 65536, 1024), None),  # 128 whole tiles are enough
        ((3072, 65536, 1024), None),  # of 192 × 128
        ((65536, 768, 2304), None),
        ((50304, 16384, 768), None),
    ],
)
def test_long_sums_are_cut_so_that_the_card_is_busy(shape: tuple[int, int, int], parts: int | None) -> None:
    assert cublaslt.parts_of(*shape, 132) == parts


def test_a_cut_product_is_by_kernels_that_can_be_cut(library: Library, clock: dict[int, float]) -> None:
    """The second of the stand-in's cannot; the others are cut alike, and of these the fastest with the same bits."""
    x, w, out = values(192, 24000, turned=True), values(24000, 64), torch.empty(192, 64, dtype=torch.bfloat16)
    library.cannot_be_cut, clock[3] = {1, 3}, 9.0
    assert cublaslt.parts_of(192, 24000, 64, 132) is None
    multiply(x, w, out)
    assert set(library.cut) == {(0, 0)}
    cublaslt.planned.cache_clear()
    library.used.clear()
    library.cut.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cublaslt, "parts_of", lambda rows, inner, columns, processors: 2)
        multiply(x, w, out)
    assert set(library.cut) == {(2, 2)} and library.used == [0, 2, 0]
    torch.testing.assert_close(out, (x.double() @ w.double()).bfloat16())


def test_what_would_take_too_much_memory_is_not_cut(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cublaslt, "parts_of", lambda rows, inner, columns, processors: 49)  # MiB, in the stand-in
    multiply(values(8, 24, turned=True), values(24, 16), torch.empty(8, 16, dtype=torch.bfloat16))
    assert library.cut == [(0, 0)]


def test_only_gradients_of_weights_are_cut(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cublaslt, "parts_of", lambda rows, inner, columns, processors: 2)
    for turned in (False, True):
        multiply(values(8, 24, turned=turned), values(24, 16), torch.empty(8, 16, dtype=torch.bfloat16))
    assert library.cut == [(0, 0), (2, 2)]


def test_epilogues_are_not_cut(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cublaslt, "parts_of", lambda rows, inner, columns, processors: 2)
    out = torch.empty(8, 16, dtype=torch.bfloat16)
    multiply(values(8, 24, turned=True), values(24, 16), out, epilogue=cublaslt.BIAS, bias=values(16))
    assert library.cut == [(0, 0)]


def test_a_shape_without_kernels_is_an_error(library: Library) -> None:
    library.proposals = 0
    with pytest.raises(RuntimeError, match="no such product"):
        multiply(values(8, 24), values(24, 16), torch.empty(8, 16))


def test_kernels_that_fail_or_write_nothing_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    results = [torch.zeros(3, 4), torch.zeros(5, 1)]
    monkeypatch.setattr(cublaslt, "_milliseconds", lambda launch, kernel, repeats: 1 / len(kernel))

    def launch(kernel: str) -> None:
        if kernel == "fails and fails and fails":
            raise RuntimeError("status 15")
        if kernel == "there is no memory for it":
            raise torch.OutOfMemoryError
        for result in results[
            : 1 if kernel == "only the first is written" else 0 if kernel == "does nothing at all" else 2
        ]:
            result.copy_(torch.arange(result.numel()).view(result.shape) + 7)
            result[0] += kernel == "another number" and math.ulp(7) * 2**29

    kernels = ["it", "fails and fails and fails", "there is no memory for it", "does nothing at all"]
    assert fastest([*kernels, "only the first is written", "another number", "fine"], launch, results) == "fine"
    with pytest.raises(torch.OutOfMemoryError):
        fastest(["there is no memory for it", "it"], launch, results)


def test_large_results_are_compared_in_rows_of_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    result = torch.zeros(1000, 4)
    monkeypatch.setattr(cublaslt, "SAMPLE_BYTES", 1600)
    monkeypatch.setattr(cublaslt, "_milliseconds", lambda launch, kernel, repeats: float(kernel == 0))
    for wrong, chosen in ((990, 0), (991, 1)):  # every tenth row is looked at

        def launch(kernel: int, wrong: int = wrong) -> None:
            result.copy_(torch.arange(4000).view(1000, 4))
            result[wrong] += kernel

        assert fastest([0, 1], launch, [result]) == chosen


def test_a_heuristics_answer_is_as_long_as_the_librarys() -> None:
    """cublasLtMatmulHeuristicResult_t: 64 bytes of algorithm, size, status, waves and four numbers in reserve."""
    assert ctypes.sizeof(cublaslt.Heuristic) == 96
