"""engine.environment: what a process gives back."""

from __future__ import annotations

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
