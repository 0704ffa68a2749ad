"""The most memory that this process has held, for tests that start one to ask it."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


def peak_bytes() -> int:
    """Peak resident memory. `ru_maxrss` alone would begin with that of the process that started this one."""
    status = Path("/proc/self/status")
    if status.exists():
        [kib] = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
        return int(kib) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
