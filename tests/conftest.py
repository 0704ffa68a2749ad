"""What all tests share, and the processes that they start."""

from __future__ import annotations

import os

# Threads that wait for each other look for some microseconds and then sleep. By default they look for milliseconds,
# which is no faster for tiny models, and many times slower where others want the cores too. Before torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# The servers of tests are on this machine, and a proxy would look for them on its own.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
