"""The most memory that training holds, to be compared with the estimate."""

from __future__ import annotations

import json
import subprocess
import sys

import torch

from engine.bench.train import random_state, run_steps
from engine.config import TrainConfig, from_dict, to_dict
from engine.environment import peak_bytes
from engine.errors import LabError
from engine.paths import PROJECT

STEPS = 6  # the fifth is recorded, where steps are


def measure_memory(config: TrainConfig) -> int:
    """Bytes at the peak of a few steps in a fresh process: allocated on a GPU, resident on a CPU.

    Args:
        config: checked, with device, precision and threads filled in.

    Raises:
        MemoryError: the process ran out of memory.
        LabError: it failed otherwise; its last line says why.
    """
    command = [sys.executable, "-m", "engine.bench.memory", json.dumps(to_dict(config))]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode < 0:  # the system ends what takes too much
        raise MemoryError(f"it was ended by signal {-done.returncode}")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it left no reason"])[-1]
        raise MemoryError(last) if "out of memory" in last else LabError(f"The measured process failed: {last}")
    return int(done.stdout.split()[-1])


def _peak(config: TrainConfig) -> int:
    state = random_state(config)
    run_steps(state, STEPS if state.device.type == "cuda" else 2)
    if state.device.type == "cuda":
        return torch.cuda.max_memory_allocated(state.device)
    return peak_bytes()


if __name__ == "__main__":
    print(_peak(from_dict(json.loads(sys.argv[1]))))
