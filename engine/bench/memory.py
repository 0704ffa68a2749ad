"""The most memory that training holds, to be compared with the estimate."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import torch

from engine.bench.train import random_state, run_steps
from engine.config import TrainConfig, from_dict, to_dict
from engine.distributed import SOLO, connect
from engine.environment import peak_bytes
from engine.errors import LabError
from engine.heap import freed_memory_kept
from engine.paths import PROJECT
from engine.world import this_world

STEPS = 6  # the fifth is recorded, where steps are


def measure_memory(config: TrainConfig, processes: int = 1) -> int:
    """Bytes at the peak of a few steps in a fresh process: allocated on a GPU, resident on a CPU.

    Args:
        config: checked, with device, precision and threads filled in.
        processes: that train together; the answer is of the first.

    Raises:
        MemoryError: the process ran out of memory.
        LabError: it failed otherwise; its last line says why.
    """
    together = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"] if processes > 1 else []
    command = [sys.executable, "-m", *together, "engine.bench.memory", json.dumps(to_dict(config))]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode < 0:  # the system ends what takes too much
        raise MemoryError(f"it was ended by signal {-done.returncode}")
    if done.returncode:
        errors = re.findall(r"^(?:\[rank\d+\]: *)?(\w[\w.]*Error: .*)", done.stderr, re.MULTILINE)
        reason = errors[-1] if errors else (done.stderr.strip().splitlines() or ["it left no reason"])[-1]
        if re.search(r"out of memory|can't allocate memory|MemoryError|bad_alloc", done.stderr):
            raise MemoryError(reason)
        raise LabError(f"The measured process failed: {reason}")
    return int(done.stdout.split()[-1])


def _main(config: TrainConfig) -> None:
    """Take the steps, and print the peak; of several processes the first does."""
    world = this_world()
    team = connect(world) if world.size > 1 else SOLO
    config = replace(config, device=world.device_of(world.local_rank, config.device))
    with freed_memory_kept(config):
        state = random_state(config, team)
        run_steps(state, STEPS if state.device.type == "cuda" else 2)
    peak = torch.cuda.max_memory_allocated(state.device) if state.device.type == "cuda" else peak_bytes()
    team.close(in_order=True)
    if world.leads:
        print(peak)


if __name__ == "__main__":
    _main(from_dict(json.loads(sys.argv[1])))
