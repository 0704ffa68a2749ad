"""engine.heap: what is freed stays while a CPU trains, and goes when it is done."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

PIECES = """
import ctypes, resource
from engine import TrainConfig
from engine.environment import give_back_memory, held_bytes, memory_bounded
from engine.heap import freed_memory_kept

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]

def allocate(size):
    piece = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(piece, 1, size)
    return piece
"""

KEEP = """
SIZE = 40_000_000

def fresh_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for piece in [allocate(size) for size in (SIZE, SIZE // 2, 3 * SIZE)]:
        libc.free(piece)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = held_bytes()
with freed_memory_kept(TrainConfig(device="cpu")):
    first, second = fresh_pages(), fresh_pages()
give_back_memory()
left = held_bytes() - before
others = []
for settings in ({"device": "cuda"}, {"device": "cpu", "config": "medium", "attention_impl": "manual"}):
    with freed_memory_kept(TrainConfig(**settings)):
        fresh_pages()
        others.append(fresh_pages())
print(first, second, left // 1_000_000, *others)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such thresholds")
def test_while_a_cpu_trains_freed_memory_stays_and_then_goes() -> None:
    result = subprocess.run([sys.executable, "-c", PIECES + KEEP], capture_output=True, text=True, check=True)
    first, second, left, *others = map(int, result.stdout.split())
    all_pages = 4.5 * 40_000_000 / resource.getpagesize()
    assert first > 0.9 * all_pages and min(others) > 0.5 * all_pages
    assert second < 0.01 * all_pages
    assert left < 20


BOUND_TWICE = """
def bound():
    with memory_bounded("cpu"):
        return resource.getrlimit(resource.RLIMIT_DATA)[0]

bound()  # loads torch
before = bound()
with freed_memory_kept(TrainConfig(device="cpu")):
    pieces, last = [allocate(50_000_000) for _ in range(12)], allocate(1_000_000)  # keeps the heap from shrinking
    for piece in pieces:
        libc.free(piece)
give_back_memory()
print((bound() - before) // 1_000_000)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries do not tell")
def test_what_a_heap_gave_back_is_not_allowed_for_twice() -> None:
    """600 MB of addresses that a first training left are free for a second one, within its bound."""
    result = subprocess.run([sys.executable, "-c", PIECES + BOUND_TWICE], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 250  # others take and free memory meanwhile
