"""The C next to this file as a library of this process: compiled for this processor, loaded, called.

It is compiled anew in each process, which takes a second, and its file is deleted once it is loaded: nothing is left
that could be stale, or changed by others.
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

import torch
from torch import Tensor

# -O3 and GCC's own vectors; no rule of IEEE is given up but errno and traps, which nobody reads
FLAGS = ["-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-fopenmp", "-fPIC"]
FOLDER = Path(__file__).parent
TIMEOUT_S = 60

_lock = threading.Lock()
_loaded: list[ctypes.CDLL] = []
_local = threading.local()


def suits() -> bool:
    """Whether the kernels are made for this machine: Linux, x86-64 and AVX2 at least."""
    vectors = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return sys.platform == "linux" and platform.machine() == "x86_64" and vectors


def compiler() -> str:
    """GCC's version; "" when there is no GCC."""
    path = shutil.which("gcc")
    if path is None:
        return ""
    told = subprocess.run([path, "-dumpfullversion"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    return told.stdout.strip()


def library() -> ctypes.CDLL:
    """The library, compiled when it is asked for the first time.

    Raises:
        RuntimeError, OSError, subprocess.TimeoutExpired: it cannot be compiled or loaded here.
    """
    with _lock:
        if not _loaded:
            _loaded.append(_load())
        return _loaded[0]


def _load() -> ctypes.CDLL:
    gcc = shutil.which("gcc")
    if gcc is None:
        raise RuntimeError("there is no C compiler (gcc) on this machine.")
    with tempfile.TemporaryDirectory(prefix="lab-native-") as folder:
        parts = [(str(path), f"{folder}/{path.stem}.o") for path in sorted(FOLDER.glob("*.c"))]
        target, objects = f"{folder}/native.so", [part for _, part in parts]
        _run([[gcc, *FLAGS, "-c", source, "-o", part] for source, part in parts])
        _run([[gcc, "-shared", *objects, "-Wl,--as-needed", _openmp(), "-lm", "-o", target]])
        found = ctypes.CDLL(target)
    for name in ("loss_scratch", "multiply_scratch", "attention_scratch"):
        getattr(found, name).restype = ctypes.c_long
    return found


def _run(commands: list[list[str]]) -> None:
    """All at once.

    Raises:
        RuntimeError, subprocess.TimeoutExpired: one has failed; it says why.
    """
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        told = [process.communicate(timeout=TIMEOUT_S)[1] for process in started]
    finally:
        for process in started:
            process.kill()  # nothing, where it is done
    for process, errors in zip(started, told, strict=True):
        if process.returncode:
            raise RuntimeError(next((line for line in errors.splitlines() if "error" in line), "gcc failed."))


def _openmp() -> str:
    """PyTorch's own OpenMP library: threads of a second one would wait for each other with those of the first."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    mapped = dict.fromkeys(line.split(maxsplit=5)[5] for line in lines if "/libgomp" in line)
    of_torch = [path for path in mapped if Path(path).is_relative_to(Path(torch.__file__).parents[1])]
    if not mapped:
        raise RuntimeError("PyTorch has no libgomp here, whose threads the kernels share.")
    return (of_torch or [*mapped])[0]


def call(name: str, *arguments: Tensor | int | None) -> int:
    """Call a function whose whole numbers are `long`, and whose tensors are contiguous or told with their strides."""
    return int(
        getattr(library(), name)(
            *(
                ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else None if a is None else ctypes.c_long(a)
                for a in arguments
            )
        )
    )


def scratch(floats: int) -> Tensor:
    """This thread's scratch memory, contents arbitrary: kept from call to call, as fresh pages cost as much as the
    arithmetic."""
    memory: Tensor | None = getattr(_local, "memory", None)
    if memory is None or len(memory) < floats:
        _local.memory = None  # first what there was goes
        memory = _local.memory = torch.empty(floats)
    return memory
