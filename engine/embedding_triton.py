"""Token and position embeddings on a GPU: one kernel forward, and gradients that repeat, each row of them read once.

PyTorch makes a table's rows, adds the two, rounds them, each by an operation in fp32, and the same backwards. Here a
row is read, added and written rounded. Backward, all places are sorted by their token, and each program adds up rows of
some places, in order: most tokens begin and end in one program; what begins in another, or goes on in the next, is put
aside and added up at the end, in order too. So the same step, done twice, gives the same bits, however often a token
comes. Needs Triton, and a C compiler.

Shapes: B sequences, T positions, D width, V vocabulary, N = B·T places.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from engine.trial import Pairs

PLACES = 32  # of a program
WARPS, STAGES = 2, 3
PARTS, PART_LANES = 16, 256  # of what was put aside, that are read at a time


@triton.jit
def _embed(tokens, token_rows, position_rows, out, time, width, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """One position of one sequence."""
    at = tl.program_id(0).to(tl.int64)
    token, position = tl.load(tokens + at), at % time
    lanes = tl.arange(0, LANES)
    inside = lanes < width
    row = tl.load(token_rows + token * width + lanes, mask=inside)
    row += tl.load(position_rows + position * width + lanes, mask=inside)
    tl.store(out + at * width + lanes, row.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _token_gradients(  # type: ignore[no-untyped-def]
    d_out, tokens, places, d_rows, aside, count, width,
    LANES: tl.constexpr, PLACES: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The sums over rows at places of the same token, for `PLACES` of the sorted places.

    Those of tokens that are all here go to `d_rows`. The first, if its token began in the program before, goes to row
    2·program of `aside`; another last one, if its token goes on in the next, to row 2·program + 1.
    """
    lanes = tl.arange(0, LANES)
    inside = lanes < width
    first = tl.program_id(0) * PLACES
    end = tl.minimum(first + PLACES, count)
    token = tl.load(tokens + first)
    began_before = (first > 0) & (tl.load(tokens + tl.maximum(first - 1, 0)) == token)
    aside += tl.program_id(0).to(tl.int64) * 2 * width
    goal = tl.where(began_before, aside, d_rows + token.to(tl.int64) * width)
    total = tl.zeros((LANES,), tl.float32)
    for at in tl.range(first, end, num_stages=STAGES):
        row = tl.load(d_out + tl.load(places + at) * width + lanes, mask=inside, other=0.0).to(tl.float32)
        following = tl.load(tokens + at)
        is_new = following != token
        tl.store(goal + lanes, total, mask=lanes < tl.where(is_new, width, 0))
        goal = tl.where(is_new, d_rows + following.to(tl.int64) * width, goal)
        total = tl.where(is_new, row, total + row)
        token = following
        began_before = began_before & (is_new == 0)
    goes_on = (end < count) & (tl.load(tokens + tl.minimum(end, count - 1)) == token)
    goal = tl.where(goes_on & (began_before == 0), aside + width, goal)
    tl.store(goal + lanes, total, mask=inside)


@triton.jit
def _sums_of_parts(  # type: ignore[no-untyped-def]
    tokens, ends, d_rows, aside, width, PLACES: tl.constexpr, PARTS: tl.constexpr, PART_LANES: tl.constexpr
):
    """The row of a token that begins in this program's places and goes on in the next one's: what is in `aside`."""
    number = tl.program_id(0)
    lanes = tl.program_id(1) * PART_LANES + tl.arange(0, PART_LANES)
    inside = lanes < width
    last = number * PLACES + PLACES - 1
    token, end = tl.load(tokens + last), tl.load(ends + number)
    first = number * PLACES
    before = tl.load(tokens + tl.maximum(first - 1, 0))
    begins_here = (first == 0) | (before != token)
    if begins_here & (end > last + 1):
        total = tl.load(aside + (2 * number + 1).to(tl.int64) * width + lanes, mask=inside, other=0.0)
        stop = (end - 1) // PLACES + 1  # programs before it have some of the token
        for start in range(number + 1, stop, PARTS):
            part = start + tl.arange(0, PARTS)
            here = (part < stop)[:, None] & inside[None, :]
            rows = aside + (2 * part).to(tl.int64)[:, None] * width + lanes[None, :]
            total += tl.sum(tl.load(rows, mask=here, other=0.0), 0)
        tl.store(d_rows + token.to(tl.int64) * width + lanes, total, mask=inside)


def token_gradient(d_out: Tensor, tokens: Tensor, vocabulary: int) -> Tensor:
    """d_out (N, D), tokens (N,) -> for each token the sum of its rows, (V, D), in fp32."""
    count, width = d_out.shape
    in_order, places = tokens.int().sort(stable=True)
    d_rows = torch.zeros(vocabulary, width, device=d_out.device)
    programs = triton.cdiv(count, PLACES)
    aside = torch.empty(2 * programs, width, device=d_out.device)
    _token_gradients[(programs,)](
        d_out, in_order, places, d_rows, aside, count, width,
        LANES=triton.next_power_of_2(width), PLACES=PLACES, STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip
    if whole := count // PLACES:  # the last program's token goes on nowhere
        ends = torch.searchsorted(in_order, in_order[PLACES - 1 :: PLACES].contiguous(), right=True)
        _sums_of_parts[(whole, triton.cdiv(width, PART_LANES))](
            in_order, ends, d_rows, aside, width, PLACES=PLACES, PARTS=PARTS, PART_LANES=PART_LANES
        )
    return d_rows


class _Embedded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, token_rows: Tensor, position_rows: Tensor, dtype: torch.dtype) -> Tensor:
        time, width = tokens.size(1), token_rows.size(1)
        ctx.save_for_backward(tokens)
        ctx.sizes = len(token_rows), len(position_rows)
        out = torch.empty(*tokens.shape, width, dtype=dtype, device=tokens.device)
        _embed[(tokens.numel(),)](
            tokens.contiguous(), token_rows, position_rows, out, time, width,
            LANES=triton.next_power_of_2(width), num_warps=2,
        )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[None, Tensor, Tensor, None]:
        (tokens,) = ctx.saved_tensors
        vocabulary, positions = ctx.sizes
        d_out = d_out.contiguous()
        d_tokens = token_gradient(d_out.flatten(0, 1), tokens.flatten(), vocabulary)
        d_positions = d_out.sum(0, dtype=torch.float32)
        return None, d_tokens, F.pad(d_positions, (0, 0, 0, positions - tokens.size(1))), None


def embed(tokens: Tensor, token_rows: Tensor, position_rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows of tokens and of their positions, added; differentiable once.

    Args:
        tokens: ids, (B, T).
        token_rows: (V, D), in fp32.
        position_rows: (T or more, D), in fp32.
        dtype: of the result.

    Returns:
        (B, T, D).
    """
    out: Tensor = _Embedded.apply(tokens, token_rows, position_rows, dtype)
    return out


def beside_pytorch(width: int, dtype: torch.dtype, device: torch.device) -> Pairs:
    """Result and gradients by `embed` and by PyTorch: of a token that comes in many programs, of those that come
    in one or two, and never.

    Args:
        width: D.
        dtype: of the result.
        device: where.
    """
    generator = torch.Generator(device).manual_seed(0)
    leaves = [torch.randn(size, width, generator=generator, device=device).requires_grad_() for size in (50, 90)]
    rows, positions = leaves
    for time in (3, 2 * PLACES + 5):
        tokens = torch.randint(3, 40, (3, time), generator=generator, device=device)
        tokens[:, ::2] = 7
        d_out = torch.randn(*tokens.shape, width, generator=generator, device=device).to(dtype)
        plain = (F.embedding(tokens, rows) + positions[:time]).to(dtype)
        ours = embed(tokens, rows, positions, dtype)
        yield ours, plain
        yield from zip(*(torch.autograd.grad(y, leaves, d_out) for y in (ours, plain)), strict=True)
