"""Whether a kernel works on this card: it is tried beside PyTorch's own operations, and what they give is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from torch import Tensor

from engine.errors import first_line, is_out_of_memory

TOLERANCE = 0.02  # of a result's norm: several times what bf16 rounds, and far less than any mistake makes

Pairs = Iterable[tuple[Tensor, Tensor]]  # the same by a kernel and by PyTorch


def why_not(beside_pytorch: Callable[[], Pairs], device: torch.device, tolerance: float = TOLERANCE) -> str:
    """Try a kernel.

    Args:
        beside_pytorch: computes the same things by the kernel and by PyTorch.
        device: where; it becomes the current one meanwhile.
        tolerance: how far results may be apart, as a share of their norm.

    Returns:
        The reason why it cannot be used, in one line; "" when it can.

    Raises:
        torch.OutOfMemoryError and others that say so: memory ran out, which says nothing about the kernel.
    """
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            if all(_alike(ours, theirs, tolerance) for ours, theirs in beside_pytorch()):
                return ""
        return "it computes something else."
    except Exception as error:  # no Triton, no C compiler, no headers, another library, a card too old or too new
        if is_out_of_memory(error):
            raise
        return first_line(error)


def _alike(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    return bool((ours.float() - theirs.float()).norm() <= tolerance * theirs.float().norm())
