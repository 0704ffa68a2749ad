"""engine.environment: what a process gives back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

READ_AND_GIVE_BACK = """
import engine, numpy, pyarrow, pyarrow.compute
from engine.environment import give_back_memory, held_bytes
column = pyarrow.array(numpy.arange(2_000_000) * 1.0)
read = [pyarrow.compute.add(column, 1.0) for _ in range(10)]  # 16 MB each
held = held_bytes()
del read
give_back_memory()
print(pyarrow.default_memory_pool().backend_name, (held - held_bytes()) // 1_000_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is told at once on Linux only")
def test_what_arrow_freed_goes_back_to_the_system() -> None:
    """In a process of its own: others have holes to fill. Arrow keeps it for a second, to read on with it."""
    result = subprocess.run([sys.executable, "-c", READ_AND_GIVE_BACK], capture_output=True, text=True, check=True)
    backend, megabytes = result.stdout.split()
    assert backend == "mimalloc" and int(megabytes) > 120


BOUND_TWICE = """
import ctypes, resource
from engine import TrainConfig
from engine.environment import give_back_memory, memory_bounded
from engine.heap import freed_memory_kept

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]

def bound():
    with memory_bounded("cpu"):
        return resource.getrlimit(resource.RLIMIT_DATA)[0]

def allocate(size):
    piece = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(piece, 1, size)
    return piece

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
    result = subprocess.run([sys.executable, "-c", BOUND_TWICE], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 250  # others take and free memory meanwhile
