"""What all tests share, and the processes that they start."""

from __future__ import annotations

import os

import engine  # noqa: F401 - before torch, whose threads wait as it says

# The servers of tests are on this machine, and a proxy would look for them on its own.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
