"""PyTorch's promise that an operation done twice on a GPU gives the same bits, for as long as somebody needs it.

Without it, fused attention adds up gradients in whatever order they are ready, and a run of long contexts that was
resumed parts in the last bits from one that was never stopped. The switch is one for all threads of a process, and
turns operations that cannot repeat into errors, so it is on only while a gradient is computed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_filling: Any = torch.utils.deterministic
_lock = threading.Lock()
_users = 0
_before = (False, False, True)


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Make what is computed on a GPU in here repeatable; on a CPU it is anyway.

    cuBLAS has to be told beforehand, by CUBLAS_WORKSPACE_CONFIG, which `engine/__init__.py` sets, and the compiler by
    an option, as `engine.accelerate.compile_stack` does. Of `torch.use_deterministic_algorithms` this is the inner
    half: the other loads the compiler, which takes a second, and sets its switch for the calling thread alone.
    """
    if device.type != "cuda":
        yield
        return
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _users, _before
    with _lock:
        if _users == 0:
            on, warns = (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            )
            _before = (on, warns, _filling.fill_uninitialized_memory)
            _filling.fill_uninitialized_memory = False  # it would cost time, and we read nothing that was not written
            torch._C._set_deterministic_algorithms(True, warn_only=False)
        _users += 1


def _leave() -> None:
    global _users
    with _lock:
        _users -= 1
        if _users == 0:
            on, warns, fills = _before
            _filling.fill_uninitialized_memory = fills
            torch._C._set_deterministic_algorithms(on, warn_only=warns)
