"""Run what Triton compiles for a GPU on this machine's CPU, by Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.paths import PROJECT


def printed_numbers(function: Callable[[], None]) -> list[float]:
    """What a function of a test module prints, in a process of its own: Triton reads TRITON_INTERPRET when it is
    loaded. Skips the test where Triton is not installed."""
    pytest.importorskip("triton")
    source = Path(function.__code__.co_filename).relative_to(PROJECT)
    module = ".".join(source.with_suffix("").parts)
    done = subprocess.run(
        [sys.executable, "-c", f"from {module} import {function.__name__} as it; it()"],
        cwd=PROJECT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [float(number) for number in done.stdout.split()]
