"""Run a module with the memory that this process may still take limited, so that memory really runs out.

python tests/with_little_memory.py 2.5 -m streamlit run app/Home.py

The limit is on address space (Linux): what the module's libraries take is there before, and so many GiB come to it.
"""

from __future__ import annotations

import resource
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil
import torch  # with its threads, which take addresses

GIB = 2**30


def main() -> None:
    """`GIB -m MODULE [ARGUMENT ...]`"""
    if len(sys.argv) < 4 or sys.argv[2] != "-m":
        sys.exit("usage: python tests/with_little_memory.py GIB -m MODULE [ARGUMENT ...]")
    torch.ones(512, 512) @ torch.ones(512, 512)
    limit = psutil.Process().memory_info().vms + int(float(sys.argv[1]) * GIB)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.argv = sys.argv[3:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
