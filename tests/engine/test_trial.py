"""engine.trial: a kernel is taken only when it gives what PyTorch gives."""

from __future__ import annotations

import pytest
import torch

from engine.trial import why_not

CPU = torch.device("cpu")
ONES = torch.ones(64)


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        (ONES, ONES, ""),
        (ONES.bfloat16() * 1.004, ONES, ""),
        (ONES * 0, ONES * 0, ""),
        (ONES * 1.03, ONES, "it computes something else."),
        (ONES * torch.nan, ONES, "it computes something else."),
        (ONES * torch.inf, ONES, "it computes something else."),
    ],
)
def test_it_is_taken_when_it_differs_by_rounding(ours: torch.Tensor, theirs: torch.Tensor, reason: str) -> None:
    assert why_not(lambda: [(ONES, ONES), (ours, theirs)], CPU) == reason


def test_what_it_fails_with_is_told_in_a_line() -> None:
    def fails() -> list[tuple[torch.Tensor, torch.Tensor]]:
        raise RuntimeError("no C compiler\n  at line 3\n")

    assert why_not(fails, CPU) == "RuntimeError: no C compiler"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("cublasLtCreate: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        MemoryError(),
    ],
)
def test_memory_that_ran_out_says_nothing_of_a_kernel(error: Exception) -> None:
    def fails() -> list[tuple[torch.Tensor, torch.Tensor]]:
        raise error

    with pytest.raises(type(error)):
        why_not(fails, CPU)
