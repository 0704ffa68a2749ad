"""The C next to this file as a library of this process: compiled for this processor, loaded, called.

It is compiled anew in each process, which takes a second or less, and its file is deleted once it is loaded: nothing is
left that could be stale, or changed by others.
"""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Of IEEE's rules only errno and traps are given up, which nobody reads; a product and a sum may round once, not twice
FLAGS = ["-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-ffp-contract=fast", "-fopenmp", "-fPIC"]
FOLDER = Path(__file__).parent
TIMEOUT_S = 60

_lock = threading.Lock()
_loaded: list[ctypes.CDLL] = []
_version = ""  # of the GCC that compiled it
_local = threading.local()


def suits() -> bool:
    """Whether the kernels are made for this machine: Linux, x86-64 and AVX2 at least."""
    vectors = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return sys.platform == "linux" and platform.machine() == "x86_64" and vectors


def compiler() -> str:
    """The version of the GCC that compiled the library; "" when none has."""
    return _version


def loaded() -> ctypes.CDLL:
    """The library, compiled when it is asked for the first time.

    Raises:
        RuntimeError: it cannot be compiled here, in a sentence of ours or GCC's.
        OSError, subprocess.TimeoutExpired: it cannot be loaded, or GCC not run.
    """
    with _lock:
        if not _loaded:
            _loaded.append(_load())
        return _loaded[0]


def _load() -> ctypes.CDLL:
    global _version
    gcc = shutil.which("gcc")
    if gcc is None:
        raise RuntimeError("there is no GCC on this machine. Install it (on Debian and Ubuntu: apt-get install gcc).")
    with tempfile.TemporaryDirectory(prefix="lab-native-") as folder:
        parts = [(str(path), f"{folder}/{path.stem}.o") for path in sorted(FOLDER.glob("*.c"))]
        target, objects = f"{folder}/native.so", [part for _, part in parts]
        _run([[gcc, *FLAGS, "-c", source, "-o", part] for source, part in parts])
        _run([[gcc, "-shared", *objects, "-Wl,--as-needed", _openmp(), "-lm", "-o", target]])
        found = ctypes.CDLL(target)
    _version = _run([[gcc, "-dumpfullversion"]])[0].strip()
    for name in ("loss_scratch", "multiply_scratch", "attention_scratch"):
        getattr(found, name).restype = ctypes.c_long
    return found


def _run(commands: list[list[str]]) -> list[str]:
    """All at once; returns what each prints.

    Raises:
        RuntimeError, subprocess.TimeoutExpired: one has failed; it says why.
    """
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, **pipes) for command in commands]
    try:
        told = [process.communicate(timeout=TIMEOUT_S) for process in started]
    finally:
        for process in started:
            process.kill()  # nothing, where it is done
    for process, (_, errors) in zip(started, told, strict=True):
        if process.returncode:
            raise RuntimeError(next((line for line in errors.splitlines() if "error" in line), "gcc failed."))
    return [printed for printed, _ in told]


def _openmp() -> str:
    """PyTorch's own OpenMP library: threads of a second one would wait for each other with those of the first."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    mapped = dict.fromkeys(line.split(maxsplit=5)[5] for line in lines if "/libgomp" in line)
    of_torch = [path for path in mapped if "/torch" in path]  # torch/lib or torch.libs
    if not mapped:
        raise RuntimeError("PyTorch has no libgomp here, whose threads the kernels share.")
    return (of_torch or [*mapped])[0]


def call(name: str, *arguments: Tensor | int | None) -> int:
    """Call a function whose whole numbers are `long`, and whose tensors are contiguous or told with their strides.

    Raises:
        TypeError: a tensor is not in fp32 or int64, or not on the CPU.
    """
    return int(getattr(loaded(), name)(*map(_argument, arguments)))


def _argument(value: Tensor | int | None) -> Any:
    if value is None:
        return None
    if not isinstance(value, Tensor):
        return ctypes.c_long(value)
    if value.dtype not in (torch.float32, torch.int64) or value.device.type != "cpu":
        raise TypeError(f"The kernels in C take fp32 on a CPU, not {value.dtype} on {value.device}.")
    return ctypes.c_void_p(value.data_ptr())


def scratch(floats: int) -> Tensor:
    """This thread's scratch memory, contents arbitrary: kept from call to call, as fresh pages cost as much as the
    arithmetic."""
    memory: Tensor | None = getattr(_local, "memory", None)
    if memory is None or len(memory) < floats:
        _local.memory = None  # first what there was goes
        memory = _local.memory = torch.empty(floats, dtype=torch.float32, device="cpu")
    return memory
