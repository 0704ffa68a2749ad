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
    """While it lasts, nothing that is freed goes back to the system, if that suits what is trained. Not to be nested.

    glibc would return large pieces at once, and the system clear each page anew for the next step: 36 ms of 450 for
    `nano`, 190 of 1,350 for `small`. `engine.environment.give_back_memory` returns it all afterwards. Attention
    matrices that are held whole would leave gaps that nothing else fills (twice the memory, with a context of 2,048),
    so with those all stays as it is. In threads other than the main one, as in the app, glibc keeps pieces of up to
    64 MiB.
    """
    if not keep_freed_memory(config):
        yield
        return
    try:
        yield
    finally:  # to what its thresholds grow by themselves; that ends with the first call of mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_MAX, 65536)
        libc.mallopt(MMAP_THRESHOLD, 2**25)
        libc.mallopt(TRIM_THRESHOLD, 2**26)


def keep_freed_memory(config: TrainConfig) -> bool:
    """The same for good, for processes that do nothing else; returns whether it suits."""
    suits = config.device == "cpu" and sys.platform == "linux" and not CpuStep(config).maps_attention
    libc = ctypes.CDLL(None)
    if not suits or not hasattr(libc, "mallopt"):
        return False
    libc.mallopt(MMAP_MAX, 0)
    libc.mallopt(TRIM_THRESHOLD, -1)
    return True
