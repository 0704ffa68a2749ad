"""The C library's heap while a CPU trains: what a step frees is kept, as the next step asks for the same again."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

from engine.config import TrainConfig
from engine.cpu_moments import CpuStep

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # from malloc.h


@contextlib.contextmanager
def freed_memory_kept(config: TrainConfig) -> Iterator[None]:
    """While it lasts, nothing that is freed goes back to the system, if that suits what is trained.

    glibc would return large pieces at once, and the system clear each page anew for the next step: 36 ms of 450 for
    `nano`, 190 of 1,350 for `small`. `engine.environment.give_back_memory` returns it all afterwards. Whole attention
    matrices of a megabyte's multiples leave gaps that nothing else fills, so with those it stays as it is.
    """
    suits = config.device == "cpu" and not CpuStep(config).maps_attention
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if suits and sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(MMAP_MAX, 0)
    mallopt(TRIM_THRESHOLD, -1)
    try:
        yield
    finally:  # to what its thresholds grow by themselves; that ends with the first call of mallopt
        mallopt(MMAP_MAX, 65536)
        mallopt(MMAP_THRESHOLD, 2**25)
        mallopt(TRIM_THRESHOLD, 2**26)
