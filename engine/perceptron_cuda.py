"""A block's perceptron on a GPU with the GELU inside of its matrix products, where cuBLASLt can do that fast.

Between its two products a perceptron holds four times the residual stream, and a GELU of its own reads and writes all
of that, forward and backward, while the card multiplies nothing. cuBLASLt applies it to each tile of a product before
it leaves the registers (its "epilogues" GELU_AUX_BIAS and DGELU), as llm.c does. PyTorch does not offer these, so they
are called by ctypes, in the library that PyTorch has loaded. Which of its kernels is used depends on the shapes alone,
and none adds up in an arbitrary order: the same step repeats bit for bit.

Shapes: N rows, D width, F = 4·D.
"""

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from engine.trial import Pairs

# From cublasLt.h and library_types.h; these numbers are part of the library's ABI.
TRANSPOSE_A, TRANSPOSE_B, EPILOGUE, BIAS_POINTER, AUX_POINTER, AUX_STRIDE = 3, 4, 7, 8, 11, 12
GELU_AUX_BIAS, DGELU = 164, 192
COMPUTE_FP32, FP32 = 68, 0
MAX_SCRATCH = 1
SCRATCH_BYTES = 32 * 2**20  # without any, DGELU becomes a kernel of its own
NO_MEMORY = 3  # a status
TYPES = {torch.bfloat16: 14, torch.float16: 2}
ALIGNED = 8  # widths have to be a multiple of it

_lock = threading.Lock()  # a plan's pointers are set just before its launch


class _Heuristic(ctypes.Structure):
    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


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


class _Plan:
    """A product of row-major matrices and its epilogue, (N, K) times (K, M) -> (N, M), on one device.

    cuBLASLt's matrices are column-major, which makes each of these its own transpose: it multiplies in the other order.
    """

    def __init__(self, device: int, dtype: torch.dtype, rows: int, inner: int, columns: int, epilogue: int) -> None:
        self.handle, self.transposed = _handle(device), epilogue == GELU_AUX_BIAS
        self.operation = ctypes.c_void_p()
        _call("cublasLtMatmulDescCreate", ctypes.byref(self.operation), COMPUTE_FP32, FP32)
        self._set(TRANSPOSE_A, ctypes.c_int32(self.transposed))
        self._set(TRANSPOSE_B, ctypes.c_int32(0))
        self._set(EPILOGUE, ctypes.c_uint32(epilogue))
        self._set(AUX_STRIDE, ctypes.c_int64(columns))
        weight = (inner, columns) if self.transposed else (columns, inner)
        self.weight, self.x, self.out = (
            self._layout(dtype, *shape) for shape in (weight, (inner, rows), (columns, rows))
        )
        self.algorithm = _Heuristic()
        preference, count = ctypes.c_void_p(), ctypes.c_int()
        _call("cublasLtMatmulPreferenceCreate", ctypes.byref(preference))
        most, size = ctypes.c_size_t(SCRATCH_BYTES), ctypes.c_size_t(ctypes.sizeof(ctypes.c_size_t))
        _call("cublasLtMatmulPreferenceSetAttribute", preference, MAX_SCRATCH, ctypes.byref(most), size)
        layouts = (self.weight, self.x, self.out, self.out)
        found = (preference, 1, ctypes.byref(self.algorithm), ctypes.byref(count))
        _call("cublasLtMatmulAlgoGetHeuristic", self.handle, self.operation, *layouts, *found)
        _call("cublasLtMatmulPreferenceDestroy", preference)
        if not count.value:
            raise RuntimeError("cuBLASLt has no such product")

    def _set(self, attribute: int, value: Any) -> None:
        size = ctypes.c_size_t(ctypes.sizeof(value))
        _call("cublasLtMatmulDescSetAttribute", self.operation, attribute, ctypes.byref(value), size)

    @staticmethod
    def _layout(dtype: torch.dtype, rows: int, columns: int) -> ctypes.c_void_p:
        layout = ctypes.c_void_p()
        sizes = ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows)
        _call("cublasLtMatrixLayoutCreate", ctypes.byref(layout), TYPES[dtype], *sizes)
        return layout

    def run(self, x: Tensor, weight: Tensor, out: Tensor, aux: Tensor, bias: Tensor | None) -> None:
        """Launch it on the current stream; `aux` is what the GELU was or is applied to, read or written."""
        one, zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        stream = ctypes.c_void_p(torch.cuda.current_stream(x.device).cuda_stream)
        result = (_pointer(out), self.out)
        factors = (_pointer(weight), self.weight, _pointer(x), self.x)
        scratch = torch.empty(self.algorithm.workspace, dtype=torch.uint8, device=x.device)
        workspace = _pointer(scratch), ctypes.c_size_t(scratch.numel())
        with _lock:
            self._set(AUX_POINTER, _pointer(aux))
            if bias is not None:
                self._set(BIAS_POINTER, _pointer(bias))
            _call(
                "cublasLtMatmul", self.handle, self.operation, ctypes.byref(one), *factors, ctypes.byref(zero),
                *result, *result, ctypes.byref(self.algorithm), *workspace, stream,
            )  # fmt: skip


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


_plan = functools.cache(_Plan)


@torch.library.custom_op("lab::expand_gelu", mutates_args=(), device_types="cuda")
def expand_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, D), weight (F, D), bias (F,) -> the GELU of x @ weight.T + bias, (N, F), and what it was applied to."""
    x, weight = x.contiguous(), weight.contiguous()
    before = x.new_empty(x.size(0), weight.size(0))
    hidden = torch.empty_like(before)
    plan = _plan(x.get_device(), x.dtype, x.size(0), x.size(1), weight.size(0), GELU_AUX_BIAS)
    plan.run(x, weight, hidden, before, bias.contiguous())
    return hidden, before


@expand_gelu.register_fake
def _expanded(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    before = x.new_empty(x.size(0), weight.size(0))
    return torch.empty_like(before), before


@torch.library.custom_op("lab::gelu_backward", mutates_args=(), device_types="cuda")
def gelu_backward(d_y: Tensor, weight: Tensor, before: Tensor) -> Tensor:
    """d_y (N, D), weight (D, F), before (N, F) -> the gradient of `before`, (N, F): of a GELU and a linear layer."""
    d_y, weight, before = d_y.contiguous(), weight.contiguous(), before.contiguous()
    d_before = torch.empty_like(before)
    plan = _plan(d_y.get_device(), d_y.dtype, d_y.size(0), d_y.size(1), weight.size(1), DGELU)
    plan.run(d_y, weight, d_before, before, None)
    return d_before


@gelu_backward.register_fake
def _gradient(d_y: Tensor, weight: Tensor, before: Tensor) -> Tensor:
    return torch.empty_like(before)


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        hidden, before = expand_gelu(x, w1, b1)
        ctx.save_for_backward(x, w1, w2, before, hidden)
        return torch.addmm(b2, hidden, w2.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        x, w1, w2, before, hidden = ctx.saved_tensors
        d_w2, d_b2 = d_y.T @ hidden, d_y.sum(0)
        d_before = gelu_backward(d_y, w2, before)
        return d_before @ w1, d_before.T @ x, d_before.sum(0), d_w2, d_b2


def perceptron(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """`gelu(x @ w1.T + b1) @ w2.T + b2`, with GELU's tanh form; differentiable once.

    Args:
        x: (..., D).
        w1: (F, D), like the others in bf16 or fp16.
        b1: (F,).
        w2: (D, F).
        b2: (D,).

    Returns:
        (..., D).
    """
    y: Tensor = _Perceptron.apply(x.flatten(0, -2), w1, b1, w2, b2)
    return y.unflatten(0, x.shape[:-1])


def beside_pytorch(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Pairs:
    """Result and gradients by `perceptron` and by PyTorch's own operations, on a few rows.

    Args:
        rows: N of a training step, for which the library is asked whether it can.
        width: D.

    Raises:
        RuntimeError, OSError: it cannot.
    """
    for epilogue in (GELU_AUX_BIAS, DGELU):
        _plan(torch.cuda.current_device(), dtype, rows, width, 4 * width, epilogue)
    generator = torch.Generator(device).manual_seed(0)
    shapes = ((64, width), (4 * width, width), (4 * width,), (width, 4 * width), (width,))
    x, *weights = (torch.randn(s, generator=generator, device=device) for s in shapes)
    values = [v.to(dtype).requires_grad_() for v in (x, *(w / w.size(-1) ** 0.5 for w in weights))]
    g = torch.randn(x.shape, generator=generator, device=device).to(dtype)
    return zip(_results(perceptron, values, g), _results(_plain, values, g), strict=True)


def _results(layer: Callable[..., Tensor], values: list[Tensor], g: Tensor) -> list[Tensor]:
    y = layer(*values)
    return [y, *torch.autograd.grad(y, values, g)]


def _plain(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, w1, b1), approximate="tanh"), w2, b2)
