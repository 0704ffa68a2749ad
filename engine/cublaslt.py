"""Matrix products on a GPU by cuBLASLt: each by the fastest of its kernels that give the same bits.

PyTorch takes the kernel that cuBLASLt proposes first. At the shapes of a small GPT others that it proposes take up to a
quarter less time. Which, depends on shape, card and version, so it is measured, at the first product of a shape. Tried
are those that cut the inner dimension into the same number of parts, since such kernels add up in the same order on the
cards where this was looked at; and of these only those count that give the first one's result, bit for bit, with the
values at hand. So the clock decides how long a product takes, not what comes out of it: a resumed run, or another
process, may choose another kernel and still computes the same numbers. The number of parts is the first proposal's, or
where the inner dimension is long, as in a weight's gradient, one that leaves few multiprocessors idle (`parts_of`).

PyTorch offers neither that choice nor GELU inside of a product, so the library that it has loaded is called by ctypes.

Shapes: N rows, K inner, M columns.
"""

import ctypes
import functools
import math
import statistics
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.moments import LARGE_PRODUCT

# From cublasLt.h and library_types.h; these numbers are part of the library's ABI.
TRANSPOSE_A, TRANSPOSE_B, EPILOGUE, BIAS_POINTER, AUX_POINTER, AUX_STRIDE = 3, 4, 7, 8, 11, 12
PLAIN, BIAS, GELU_AUX_BIAS, DGELU = 1, 4, 164, 192
COMPUTE_FP32, FP32 = 68, 0
MAX_SCRATCH, REDUCTIONS, ALIGNMENTS = 1, 3, (5, 6, 7, 8)
PARTS, REDUCTION = 2, 3  # of a kernel: into how many it splits the inner dimension, and how these are added up
REDUCE_IN_FP32, REPEATABLE = (
    2,
    2 | 4,
)  # ways to add up the parts of a split inner dimension; the one left out does it in place
NO_MEMORY = 3  # a status
TYPES = {torch.bfloat16: 14, torch.float16: 2, torch.float32: FP32}

SCRATCH_BYTES = 48 * 2**20  # without any, DGELU becomes a kernel of its own
ALIGNED = 8  # widths have to be a multiple of it, so that each row begins at a multiple of 16 bytes
HOPPER = (9, 0)  # where all of this was measured, and pays
PROPOSALS = 16  # at most; some 8 come
TILES = ((256, 128), (128, 256), (192, 192))  # of a result, that the fastest kernels make at a time
SMALLER_TILES = ((192, 128), (128, 192))  # of those that are nearly as fast
FULL = 0.9  # of the multiprocessors at work, on average over the rounds in which tiles are made
LEAST_PART, MOST_PARTS = 9216, 8  # of the inner dimension, and how many: their sums are written and read once more
ROUNDS, ROUND_MS = 3, 0.5  # of measuring: the median counts
GAIN = 0.99  # of the first one's time, under which another is taken instead
SAMPLE_BYTES = 2**24  # of a result that is compared
BITS = {2: torch.int16, 4: torch.int32}

_lock = threading.Lock()  # a product's pointers are set just before its launch


class Heuristic(ctypes.Structure):
    """`cublasLtMatmulHeuristicResult_t`: a kernel, and what it needs."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("scratch", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


def pays(dtype: torch.dtype, width: int, device: torch.device) -> bool:
    """Whether products of such factors are meant to be done here; `width` is a model's."""
    suits = dtype in (torch.bfloat16, torch.float16) and width % ALIGNED == 0
    return suits and torch.cuda.get_device_capability(device) == HOPPER


@functools.cache
def _library() -> ctypes.CDLL:
    """The cuBLASLt that this process has loaded.

    Raises:
        OSError: it has none or several, or this system does not tell.
    """
    torch.cuda.current_blas_handle()  # loads it
    with open("/proc/self/maps", encoding="utf-8") as maps:
        loaded = {line.split(maxsplit=5)[-1].strip() for line in maps if "libcublasLt.so" in line}
    if len(loaded) != 1:
        raise OSError(f"{len(loaded)} versions of libcublasLt.so are loaded")
    return ctypes.CDLL(loaded.pop())


def cublas_version() -> str:
    """Of the cuBLASLt that this process has loaded, as its header writes it; "unknown" where that can't be told."""
    try:
        version = _library().cublasLtGetVersion
    except (OSError, AttributeError):
        return "unknown"
    version.restype = ctypes.c_size_t
    return str(version())


def _call(name: str, *arguments: Any) -> None:
    status = getattr(_library(), name)(*arguments)
    if status == NO_MEMORY:
        raise torch.OutOfMemoryError(f"{name}: out of memory")
    if status:
        raise RuntimeError(f"{name} failed with status {status}")


@functools.cache
def _handle(device: int) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    with torch.cuda.device(device):
        _call("cublasLtCreate", ctypes.byref(handle))
    return handle


@dataclass(frozen=True)
class Shape:
    """All that decides which kernels a product can have.

    Attributes:
        device: its index.
        dtype: of the factors.
        result: of the result.
        rows: N.
        inner: K.
        columns: M.
        turned: for each factor whether it lies column by column in memory.
        epilogue: what becomes of the result in the registers.
    """

    device: int
    dtype: torch.dtype
    result: torch.dtype
    rows: int
    inner: int
    columns: int
    turned: tuple[bool, bool] = (False, False)
    epilogue: int = PLAIN


def is_large(rows: int, inner: int, columns: int) -> bool:
    """Whether the kernel of a product of this size is chosen by time."""
    return 2.0 * rows * inner * columns >= LARGE_PRODUCT


def parts_of(rows: int, inner: int, columns: int, processors: int) -> int | None:
    """Into how many parts to cut the inner dimension; None where that is left to the library.

    The fewest for which the tiles of some size, that many times, keep all multiprocessors busy. A weight's gradient has
    few tiles: 768 × 768 weights are 18 of 256 × 128, and in seven parts they are for 126 of an H100's 132. Where whole
    tiles are enough, or parts would be short, the library chooses.
    """

    def fills(parts: int, tile: tuple[int, int]) -> bool:
        rounds = parts * math.ceil(rows / tile[0]) * math.ceil(columns / tile[1]) / processors
        return rounds >= FULL * math.ceil(rounds)

    if any(fills(1, tile) for tile in (*TILES, *SMALLER_TILES)):
        return None
    able = range(2, min(MOST_PARTS, inner // LEAST_PART) + 1)
    return next((parts for parts in able if any(fills(parts, tile) for tile in TILES)), None)


@functools.cache
def _multiprocessors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


class Product:
    """Products of a shape. What cuBLASLt calls a matrix lies column by column, which makes each of ours, (N, K) times
    (K, M), its own transpose there: it multiplies in the other order.

    Raises:
        RuntimeError: cuBLASLt has none.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape, self.handle = shape, _handle(shape.device)
        self.operation = ctypes.c_void_p()
        _call("cublasLtMatmulDescCreate", ctypes.byref(self.operation), COMPUTE_FP32, FP32)
        self._set(TRANSPOSE_A, ctypes.c_int32(shape.turned[1]))
        self._set(TRANSPOSE_B, ctypes.c_int32(shape.turned[0]))
        self._set(EPILOGUE, ctypes.c_uint32(shape.epilogue))
        if shape.epilogue in (GELU_AUX_BIAS, DGELU):
            self._set(AUX_STRIDE, ctypes.c_int64(shape.columns))
        self.x = _layout(shape.dtype, shape.inner, shape.rows, shape.turned[0])
        self.w = _layout(shape.dtype, shape.columns, shape.inner, shape.turned[1])
        self.out = _layout(shape.result, shape.columns, shape.rows)
        self.layouts = (self.w, self.x, self.out, self.out)
        self.proposed = self._proposals()
        self.chosen = self.proposed[0]
        self.is_decided = not is_large(shape.rows, shape.inner, shape.columns)

    def _set(self, attribute: int, value: Any) -> None:
        size = ctypes.c_size_t(ctypes.sizeof(value))
        _call("cublasLtMatmulDescSetAttribute", self.operation, attribute, ctypes.byref(value), size)

    def _proposals(self) -> list[Heuristic]:
        """The kernels to choose from, the same in each process on a card: of a weight's gradient all of the library's
        that can be cut by `parts_of`; else the one that it deems the best, and those that add up as it does."""
        preference = ctypes.c_void_p()
        _call("cublasLtMatmulPreferenceCreate", ctypes.byref(preference))
        wishes = {MAX_SCRATCH: ctypes.c_uint64(SCRATCH_BYTES), REDUCTIONS: ctypes.c_uint32(REPEATABLE)}
        for attribute, value in (wishes | {one: ctypes.c_uint32(2 * ALIGNED) for one in ALIGNMENTS}).items():
            size = ctypes.c_size_t(ctypes.sizeof(value))
            _call("cublasLtMatmulPreferenceSetAttribute", preference, attribute, ctypes.byref(value), size)
        found, count = (Heuristic * PROPOSALS)(), ctypes.c_int()
        into = (preference, PROPOSALS, found, ctypes.byref(count))
        _call("cublasLtMatmulAlgoGetHeuristic", self.handle, self.operation, *self.layouts, *into)
        _call("cublasLtMatmulPreferenceDestroy", preference)
        able = [kernel for kernel in found[: count.value] if kernel.state == 0]
        if not able:
            raise RuntimeError("cuBLASLt has no such product")
        shape = self.shape
        of_a_weight = shape.turned[0] and shape.epilogue == PLAIN  # its gradient: the first factor is d_y.T
        parts = (
            parts_of(shape.rows, shape.inner, shape.columns, _multiprocessors(shape.device)) if of_a_weight else None
        )
        cut = [kernel for one in able if parts and (kernel := self._cut(one, parts)) is not None]
        return cut or [kernel for kernel in able if _order(kernel) == _order(able[0])]

    def _cut(self, kernel: Heuristic, parts: int) -> Heuristic | None:
        """It, with the inner dimension cut into so many parts; None where it cannot be."""
        cut, checked = Heuristic.from_buffer_copy(kernel), Heuristic()
        try:
            for attribute, value in ((PARTS, parts), (REDUCTION, REDUCE_IN_FP32)):
                number = ctypes.c_uint32(value)
                into = (attribute, ctypes.byref(number), ctypes.c_size_t(ctypes.sizeof(number)))
                _call("cublasLtMatmulAlgoConfigSetAttribute", ctypes.byref(cut), *into)
            both = (ctypes.byref(cut), ctypes.byref(checked))
            _call("cublasLtMatmulAlgoCheck", self.handle, self.operation, *self.layouts, *both)
        except torch.OutOfMemoryError:  # says nothing of the kernel, and must not decide how it adds up
            raise
        except RuntimeError:  # not every kernel can be cut
            return None
        cut.scratch = checked.scratch
        return cut if checked.state == 0 and cut.scratch <= SCRATCH_BYTES else None

    def run(
        self, x: Tensor, w: Tensor, out: Tensor, *, bias: Tensor | None, aux: Tensor | None, add: bool = False
    ) -> None:
        """Launch it on the current stream; see `multiply`."""
        with _lock:
            if aux is not None:
                self._set(AUX_POINTER, _pointer(aux))
            if bias is not None:
                self._set(BIAS_POINTER, _pointer(bias))
            launch = functools.partial(self._launch, x, w, out)
            if not self.is_decided and not add and not torch.cuda.is_current_stream_capturing():
                written = [out, aux] if aux is not None and self.shape.epilogue == GELU_AUX_BIAS else [out]
                if (best := fastest(self.proposed, launch, written)) is not None:
                    self.chosen, self.is_decided = best, True
            launch(self.chosen, add=add)

    def _launch(self, x: Tensor, w: Tensor, out: Tensor, kernel: Heuristic, add: bool = False) -> None:
        one, beta = ctypes.c_float(1.0), ctypes.c_float(add)
        stream = ctypes.c_void_p(torch.cuda.current_stream(x.device).cuda_stream)
        scratch = torch.empty(kernel.scratch, dtype=torch.uint8, device=x.device)
        factors, result = (_pointer(w), self.w, _pointer(x), self.x), (_pointer(out), self.out)
        how = (ctypes.byref(kernel), _pointer(scratch), ctypes.c_size_t(scratch.numel()), stream)
        product = (self.handle, self.operation, ctypes.byref(one), *factors, ctypes.byref(beta), *result, *result)
        _call("cublasLtMatmul", *product, *how)


def _order(kernel: Heuristic) -> tuple[int, int]:
    """What decides in which order a kernel adds up."""
    values = ctypes.c_uint32(), ctypes.c_uint32()
    for attribute, value in zip((PARTS, REDUCTION), values, strict=True):
        size, written = ctypes.c_size_t(ctypes.sizeof(value)), ctypes.c_size_t()
        into = (attribute, ctypes.byref(value), size, ctypes.byref(written))
        _call("cublasLtMatmulAlgoConfigGetAttribute", ctypes.byref(kernel), *into)
    return values[0].value, values[1].value


def _layout(dtype: torch.dtype, rows: int, columns: int, turned: bool = False) -> ctypes.c_void_p:
    """Of a matrix of so many rows and columns, or of its transpose, as it lies in memory."""
    layout = ctypes.c_void_p()
    rows, columns = (columns, rows) if turned else (rows, columns)
    sizes = ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows)
    _call("cublasLtMatrixLayoutCreate", ctypes.byref(layout), TYPES[dtype], *sizes)
    return layout


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def fastest(kernels: Sequence[Any], launch: Callable[[Any], None], results: Sequence[Tensor]) -> Any | None:
    """The kernel that takes the least time, of those that give what the first one gives, bit for bit; None if what that
    gives tells nothing about the others.

    Args:
        kernels: to choose from.
        launch: does the work by one of them.
        results: what it writes. Of large ones some rows are compared, spread over all of them.
    """
    parts = [result[:: math.ceil(result.nbytes / SAMPLE_BYTES)] for result in results]
    launch(kernels[0])
    if not all(_tells(part) for part in parts):
        return None
    alike = _alike(kernels, launch, parts)
    repeats = max(1, math.ceil(ROUND_MS / _milliseconds(launch, alike[0], 1)))
    rounds = [[_milliseconds(launch, kernel, repeats) for kernel in alike] for _ in range(ROUNDS)]
    took = [statistics.median(of_one) for of_one in zip(*rounds, strict=True)]
    best = min(range(len(alike)), key=took.__getitem__)
    return alike[best if took[best] < GAIN * took[0] else 0]


def _tells(part: Tensor) -> bool:
    """Whether another order of adding up would show: not where all is NaN, or every row the same."""
    return bool(torch.isfinite(part).all()) and not bool((part == part[:1]).all())


def _alike(kernels: Sequence[Any], launch: Callable[[Any], None], parts: Sequence[Tensor]) -> list[Any]:
    """The first, which has written `parts`, and those that write the same bits there."""
    wanted = [part.clone() for part in parts]
    alike = [kernels[0]]
    for kernel in kernels[1:]:
        for part in parts:
            part.fill_(math.nan)
        try:
            launch(kernel)
        except RuntimeError:  # the library proposed what it cannot do, or what there is no memory for
            continue
        if all(_same_bits(part, one) for part, one in zip(parts, wanted, strict=True)):
            alike.append(kernel)
    return alike


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(BITS[a.itemsize]), b.view(BITS[b.itemsize]))


def _milliseconds(launch: Callable[[Any], None], kernel: Any, repeats: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        launch(kernel)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats


planned = functools.cache(Product)


def multiply(
    x: Tensor,
    w: Tensor,
    out: Tensor,
    *,
    epilogue: int = PLAIN,
    bias: Tensor | None = None,
    aux: Tensor | None = None,
    add: bool = False,
) -> None:
    """x (N, K) times w (K, M), into `out`, (N, M).

    Args:
        x: in bf16 or fp16, rows or columns side by side in memory.
        w: the same.
        out: in their dtype or fp32, rows side by side; it is written from a multiple of 16 bytes on.
        epilogue: BIAS adds one to each row; GELU_AUX_BIAS also writes that to `aux` and its GELU to `out`; DGELU makes
            of a GELU's gradient that of what it was applied to, `aux`.
        bias: (M,), for those that add one.
        aux: (N, M).
        add: to what is there in `out`, instead of writing it; by the kernel that was chosen for writing.
    """
    x, w = _readable(x), _readable(w)
    turned = (not x.is_contiguous(), not w.is_contiguous())
    shape = Shape(x.get_device(), x.dtype, out.dtype, x.size(0), x.size(1), w.size(1), turned, epilogue)
    planned(shape).run(x, w, out, bias=None if bias is None else bias.contiguous(), aux=aux, add=add)


def _readable(x: Tensor) -> Tensor:
    """Itself, or where its values lie otherwise than cuBLASLt reads them, a copy."""
    lies_well = x.is_contiguous() or x.mT.is_contiguous()
    return x if lies_well and x.data_ptr() % (2 * ALIGNED) == 0 else x.clone(memory_format=torch.contiguous_format)
