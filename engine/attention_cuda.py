"""Causal attention on a GPU with gradients that repeat bit for bit, and fast: the backward pass of FlashAttention-2.

PyTorch's fused kernels add up the queries' gradient from all keys in whatever order these get done, so that the same
step, done twice, differs in its last bits; a resumed run would part from one that was never stopped. Here each program
owns the rows that it writes: one kernel goes over the keys of some queries, one over the queries of some keys, each in
order (algorithm 2 of arXiv:2307.08691, the attention weights computed once more for the second). Read and written is
the block that holds queries, keys and values side by side, as its linear layer made it and wants its gradient back.
Each kernel also adds its gradient up over the positions it owns: that is the layer's bias's, for which all of it would
have to be read once more.

Shapes: B sequences, T positions, H heads, D = H·(head size).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from engine.attention import fused_attention
from engine.cublaslt import HOPPER
from engine.loss_triton import LOG2_E
from engine.trial import Pairs


@dataclass(frozen=True)
class Tiles:
    """How a kernel cuts its work up: positions that it reads at a time, and how it runs."""

    read: int
    warps: int
    stages: int
    registers: int | None = None  # at most, of a thread


# The fastest of some twenty on an H100. Wide heads take more shared memory, of which small cards have 99 KB.
OWN = 64  # positions of a program
QUERIES, KEYS = Tiles(64, 4, 3), Tiles(64, 4, 2)
WIDE_QUERIES, WIDE_KEYS = Tiles(32, 4, 2), Tiles(32, 4, 2)
COPIED_KEYS = Tiles(64, 4, 2, 168)  # of which three programs fit on a multiprocessor, instead of two: 12 % less time
WORTH_DESCRIBING = 2**24  # values from which on that gains more than the 40 µs that it takes the host
ALIGNED = 128  # contexts that are a multiple of it need no masks at their end


@triton.jit
def _load(pointers, inside, ALL_INSIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.load(pointers) if ALL_INSIDE else tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def _store(pointers, values, inside, ALL_INSIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    if ALL_INSIDE:
        tl.store(pointers, values)
    else:
        tl.store(pointers, values, mask=inside)


@triton.jit
def _add_keys(  # type: ignore[no-untyped-def]
    d_q, q, d_out, log_sum, delta, rows, start, offsets, keys, top, lane, time, stride, width, scale,
    DIAGONAL: tl.constexpr, EVEN: tl.constexpr, COPIED: tl.constexpr,
):  # fmt: skip
    """`d_q` and what the keys from `start` on add to it."""
    columns = start + offsets
    if COPIED:
        k, v = keys.load([top + start, lane + width]), keys.load([top + start, lane + 2 * width])
    else:
        k = _load(keys + start * stride, (columns < time)[:, None], EVEN)
        v = _load(keys + width + start * stride, (columns < time)[:, None], EVEN)
    p = tl.exp2(tl.dot(q, k.T) * (scale * LOG2_E) - log_sum[:, None])
    if DIAGONAL:
        p = tl.where(rows[:, None] >= columns[None, :], p, 0.0)
    d_scores = p * (tl.dot(d_out, v.T) - delta[:, None])
    return tl.dot(d_scores.to(k.dtype), k, d_q)


@triton.jit
def _queries_gradient(  # type: ignore[no-untyped-def]
    qkv, out, d_out, log_sums, deltas, d_qkv, sums, time, heads, scale,
    SIZE: tl.constexpr, OWN: tl.constexpr, READ: tl.constexpr, STAGES: tl.constexpr, EVEN: tl.constexpr,
    COPIED: tl.constexpr,
):  # fmt: skip
    """The gradient of `OWN` queries of a head, its sum over them, and their `deltas`: sums of out · d_out, which the
    keys' need too. `qkv`, `out`, `d_out` and `d_qkv` as for `_keys_gradient`."""
    blocks = tl.cdiv(time, OWN)
    block = blocks - 1 - tl.program_id(0) % blocks  # those with the most keys first
    of_all = (tl.program_id(0) // blocks).to(tl.int64)  # heads of all sequences
    sequence, head = of_all // heads, of_all % heads
    width = heads * SIZE
    stride = 3 * width
    first = block * OWN  # the first key that not all of these queries may see
    rows, lanes, offsets = first + tl.arange(0, OWN), tl.arange(0, SIZE), tl.arange(0, READ)
    inside = rows < time
    log_sums += of_all * time
    deltas += of_all * time
    top, lane = (sequence * time).to(tl.int32), (head * SIZE).to(tl.int32)
    if COPIED:
        keys = qkv
        q, do, o = qkv.load([top + first, lane]), d_out.load([top + first, lane]), out.load([top + first, lane])
    else:
        here = sequence * time * stride + head * SIZE  # of this head
        keys = qkv + here + width + offsets[:, None] * stride + lanes[None, :]
        at_q = here + rows[:, None] * stride + lanes[None, :]
        at_out = sequence * time * width + head * SIZE + rows[:, None] * width + lanes[None, :]
        q = _load(qkv + at_q, inside[:, None], EVEN)
        do = _load(d_out + at_out, inside[:, None], EVEN)
        o = _load(out + at_out, inside[:, None], EVEN)
    log_sum = _load(log_sums + rows, inside, EVEN) * LOG2_E
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    _store(deltas + rows, delta, inside, EVEN)

    d_q = tl.zeros((OWN, SIZE), tl.float32)
    for start in tl.range(0, first, READ, num_stages=STAGES):
        d_q = _add_keys(
            d_q, q, do, log_sum, delta, rows, start, offsets, keys, top, lane, time, stride, width, scale,
            False, EVEN, COPIED,
        )  # fmt: skip
    for start in range(first, first + OWN, READ):
        d_q = _add_keys(
            d_q, q, do, log_sum, delta, rows, start, offsets, keys, top, lane, time, stride, width, scale,
            True, EVEN, COPIED,
        )  # fmt: skip
    d_q *= scale
    if COPIED:
        d_qkv.store([top + first, lane], d_q.to(q.dtype))
    else:
        _store(d_qkv + at_q, d_q.to(q.dtype), inside[:, None], EVEN)
    tl.store(sums + (sequence * blocks + block) * stride + head * SIZE + lanes, tl.sum(d_q, 0))


@triton.jit
def _add_queries(  # type: ignore[no-untyped-def]
    d_k, d_v, k, v, columns, start, offsets, queries, d_outs, top, lane, log_sums, deltas, time, stride, width, scale,
    DIAGONAL: tl.constexpr, EVEN: tl.constexpr, COPIED: tl.constexpr,
):  # fmt: skip
    """`d_k`, `d_v` and what the queries from `start` on add to them; scores lie transposed here, keys by queries."""
    rows = start + offsets
    inside = rows < time
    if COPIED:
        q, do = queries.load([top + start, lane]), d_outs.load([top + start, lane])
    else:
        q = _load(queries + start * stride, inside[:, None], EVEN)
        do = _load(d_outs + start * width, inside[:, None], EVEN)
    log_sum = _load(log_sums + start, inside, EVEN) * LOG2_E
    delta = _load(deltas + start, inside, EVEN)
    p = tl.exp2(tl.dot(k, q.T) * (scale * LOG2_E) - log_sum[None, :])
    if DIAGONAL:
        p = tl.where(columns[:, None] <= rows[None, :], p, 0.0)
    if not EVEN:
        p = tl.where(inside[None, :], p, 0.0)
    d_v = tl.dot(p.to(do.dtype), do, d_v)
    d_scores = p * (tl.dot(v, do.T) - delta[None, :])
    return tl.dot(d_scores.to(q.dtype), q, d_k), d_v


@triton.jit
def _keys_gradient(  # type: ignore[no-untyped-def]
    qkv, d_out, log_sums, deltas, d_qkv, sums, time, heads, scale,
    SIZE: tl.constexpr, OWN: tl.constexpr, READ: tl.constexpr, STAGES: tl.constexpr, EVEN: tl.constexpr,
    COPIED: tl.constexpr,
):  # fmt: skip
    """The gradients of `OWN` keys of a head and of their values, and their sums over these.

    `qkv`, `d_out` and `d_qkv` are pointers, or if `COPIED` descriptors of matrices with a row for each position of all
    sequences, whose blocks of `OWN` = `READ` rows and `SIZE` columns a unit of the card copies.
    """
    blocks = tl.cdiv(time, OWN)
    of_all = (tl.program_id(0) // blocks).to(tl.int64)
    sequence, head = of_all // heads, of_all % heads
    width = heads * SIZE
    stride = 3 * width
    first = tl.program_id(0) % blocks * OWN
    columns, lanes, offsets = first + tl.arange(0, OWN), tl.arange(0, SIZE), tl.arange(0, READ)
    log_sums += of_all * time + offsets
    deltas += of_all * time + offsets
    top, lane = (sequence * time).to(tl.int32), (head * SIZE).to(tl.int32)
    if COPIED:
        queries, d_outs = qkv, d_out
        k, v = qkv.load([top + first, lane + width]), qkv.load([top + first, lane + 2 * width])
    else:
        here = sequence * time * stride + head * SIZE
        queries = qkv + here + offsets[:, None] * stride + lanes[None, :]
        d_outs = d_out + sequence * time * width + head * SIZE + offsets[:, None] * width + lanes[None, :]
        inside = (columns < time)[:, None]
        at_k = here + width + columns[:, None] * stride + lanes[None, :]
        k, v = _load(qkv + at_k, inside, EVEN), _load(qkv + width + at_k, inside, EVEN)

    d_k, d_v = tl.zeros((OWN, SIZE), tl.float32), tl.zeros((OWN, SIZE), tl.float32)
    for start in range(first, first + OWN, READ):
        d_k, d_v = _add_queries(
            d_k, d_v, k, v, columns, start, offsets, queries, d_outs, top, lane, log_sums, deltas, time, stride, width,
            scale, True, EVEN, COPIED,
        )  # fmt: skip
    for start in tl.range(first + OWN, time, READ, num_stages=STAGES):  # the queries that see all of these keys
        d_k, d_v = _add_queries(
            d_k, d_v, k, v, columns, start, offsets, queries, d_outs, top, lane, log_sums, deltas, time, stride, width,
            scale, False, EVEN, COPIED,
        )  # fmt: skip
    d_k *= scale
    if COPIED:
        d_qkv.store([top + first, lane + width], d_k.to(k.dtype))
        d_qkv.store([top + first, lane + 2 * width], d_v.to(k.dtype))
    else:
        _store(d_qkv + at_k, d_k.to(k.dtype), inside, EVEN)
        _store(d_qkv + width + at_k, d_v.to(k.dtype), inside, EVEN)
    sums += (sequence * blocks + first // OWN) * stride + width + head * SIZE
    tl.store(sums + lanes, tl.sum(d_k, 0))
    tl.store(sums + width + lanes, tl.sum(d_v, 0))


@torch.library.custom_op("lab::causal_attention", mutates_args=(), device_types="cuda")
def causal_attention(qkv: Tensor, bias: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Causal self-attention, differentiable once.

    Args:
        qkv: queries, keys and values side by side, (B, T, 3·D), in bf16 or fp16.
        bias: what was added to each position to make them, (3·D,), detached there: its gradient is made here.
        heads: H; `engine.kernels` tells for which head sizes it works here.

    Returns:
        The attention's result, (B, T, D), and the logarithm of each row's sum of exponentials, (B, H, T), in fp32.
    """
    batch, time, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in qkv.split(width, dim=2))
    aten = torch.ops.aten
    if _prefers_cudnn(qkv.device):
        y, log_sums, *_ = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, True)
    else:
        y, log_sums, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)
    return y.transpose(1, 2).reshape(batch, time, width), log_sums.reshape(batch, heads, time).contiguous()


def _prefers_cudnn(device: torch.device) -> bool:
    """As PyTorch does: on Hopper and Blackwell's data centre cards, from the version on that has no known mistakes."""
    version = torch.backends.cudnn.version() or 0
    return torch.cuda.get_device_capability(device) in ((9, 0), (10, 0)) and version > 91500


@causal_attention.register_fake
def _shapes(qkv: Tensor, bias: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    batch, time, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    return qkv.new_empty(batch, time, width), qkv.new_empty(batch, heads, time, dtype=torch.float32)


def gradient(
    qkv: Tensor, out: Tensor, log_sums: Tensor, d_out: Tensor, heads: int, copied: bool | None = None
) -> tuple[Tensor, Tensor]:
    """From the gradient of `causal_attention`'s result, (B, T, D), that of `qkv`, (B, T, 3·D), and its sum over all
    positions, (3·D,), in fp32. `copied`: whether their blocks are copied; by themselves where that pays."""
    batch, time, width = out.shape
    size = width // heads
    qkv, out, d_out = qkv.contiguous(), out.contiguous(), d_out.contiguous()
    for_queries, for_keys = (QUERIES, KEYS) if size <= 64 else (WIDE_QUERIES, WIDE_KEYS)
    blocks = triton.cdiv(time, OWN)
    d_qkv, deltas = torch.empty_like(qkv), torch.empty_like(log_sums)
    sums = qkv.new_empty(batch * blocks, 3 * width, dtype=torch.float32)
    common: dict[str, Any] = {"SIZE": size, "OWN": OWN, "EVEN": time % ALIGNED == 0}
    numbers = (time, heads, 1 / math.sqrt(size))
    if copied is None:
        copied = qkv.numel() >= WORTH_DESCRIBING and _can_copy(time, size, qkv.device)
    matrices: tuple[Any, ...] = qkv, out, d_out, d_qkv
    if copied:
        for_keys = COPIED_KEYS
        matrices = tuple(TensorDescriptor.from_tensor(x.flatten(0, 1), [OWN, size]) for x in matrices)
    x, y, d_y, d_x = matrices
    grid = (blocks * batch * heads,)
    common["COPIED"] = copied
    _queries_gradient[grid](x, y, d_y, log_sums, deltas, d_x, sums, *numbers, **common, **_launch(for_queries))
    _keys_gradient[grid](x, d_y, log_sums, deltas, d_x, sums, *numbers, **common, **_launch(for_keys))
    return d_qkv, sums.sum(0)


def _can_copy(time: int, size: int, device: torch.device) -> bool:
    """Whether the card's unit for copying blocks (Hopper's TMA) can read and write for the kernels, which then
    need fewer registers. It knows no end of a sequence but that of all."""
    return time % ALIGNED == 0 and size == 64 and torch.cuda.get_device_capability(device) == HOPPER


def _launch(tiles: Tiles) -> dict[str, int]:
    limit = {} if tiles.registers is None else {"maxnreg": tiles.registers}
    return {"READ": tiles.read, "STAGES": tiles.stages, "num_warps": tiles.warps, **limit}


@torch.library.custom_op("lab::causal_attention_backward", mutates_args=(), device_types="cuda")
def causal_attention_backward(
    qkv: Tensor, out: Tensor, log_sums: Tensor, d_out: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    """`gradient`, as an operation that a compiler takes as it is."""
    return gradient(qkv, out, log_sums, d_out, heads)


@causal_attention_backward.register_fake
def _backward_shapes(qkv: Tensor, out: Tensor, log_sums: Tensor, d_out: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(qkv), qkv.new_empty(qkv.size(2), dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], *output)
    ctx.heads, ctx.bias_dtype = inputs[2], inputs[1].dtype


def _backward(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
    d_qkv, d_bias = causal_attention_backward(*ctx.saved_tensors, d_out, ctx.heads)
    return d_qkv, d_bias.to(ctx.bias_dtype), None


causal_attention.register_autograd(_backward, setup_context=_save)


def own_attention(qkv: Tensor, bias: Tensor, heads: int) -> Tensor:
    """`causal_attention`'s result alone, (B, T, D)."""
    return causal_attention(qkv, bias, heads)[0]


def beside_pytorch(size: int, dtype: torch.dtype, device: torch.device) -> Pairs:
    """Result and gradients for heads of a size by `own_attention` and PyTorch, at contexts with and without a rest, and
    long enough for the loops of the kernels to overlap their loads."""
    heads, generator = 3, torch.Generator(device).manual_seed(0)
    for time in (4 * ALIGNED, 4 * ALIGNED - 1):
        x = torch.randn(2, time, 3 * heads * size, generator=generator, device=device).to(dtype).requires_grad_()
        bias = torch.randn(3 * heads * size, generator=generator, device=device).requires_grad_()
        g = torch.randn(2, time, heads * size, generator=generator, device=device).to(dtype)
        ours = own_attention(x + bias.detach().to(dtype), bias, heads)
        theirs = fused_attention(x + bias.to(dtype), heads)
        yield ours, theirs
        yield from zip(*(torch.autograd.grad(y, (x, bias), g) for y in (ours, theirs)), strict=True)
        if _can_copy(time, size, device):  # which a few sequences do not ask for by themselves
            y, log_sums = causal_attention(x.detach(), bias.detach(), heads)
            both = (gradient(x.detach(), y, log_sums, g, heads, copied) for copied in (True, False))
            yield from zip(*both, strict=True)
