"""The most memory that training holds, to be compared with the estimate."""

from __future__ import annotations

import json
import subprocess
import sys

import torch

from engine.bench.train import random_state, run_steps
from engine.config import TrainConfig, from_dict, to_dict
from engine.paths import PROJECT

STEPS = 6  # the fifth is recorded, where steps are


def measure_memory(config: TrainConfig) -> int:
    """Bytes at the peak of a few steps in a fresh process: allocated on a GPU, resident on a CPU.

    Args:
        config: checked, with device, precision and threads filled in.

    Raises:
        RuntimeError: the process ended without an answer; its last line says why.
    """
    command = [sys.executable, "-m", "engine.bench.memory", json.dumps(to_dict(config))]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}, perhaps out of memory"]
        raise RuntimeError(lines[-1])
    return int(done.stdout.split()[-1])


def _peak(config: TrainConfig) -> int:
    import resource

    state = random_state(config)
    run_steps(state, STEPS if state.device.type == "cuda" else 2)
    if state.device.type == "cuda":
        return torch.cuda.max_memory_allocated(state.device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # Linux counts in KiB


if __name__ == "__main__":
    print(_peak(from_dict(json.loads(sys.argv[1]))))
