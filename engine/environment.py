"""This machine, in facts: device, memory, threads, versions. Torch is loaded only where its answer is needed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import resource
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from engine.errors import ConfigError, Problem

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """What training can use here.

    Attributes:
        device: `cuda` when a GPU can be used, else `cpu`.
        device_name: of the GPU, or of the processor.
        device_memory_gib: of the GPU, or of the computer.
        gpus: names of all GPUs.
        memory_gib: of the computer; in a container, what it may use.
        threads: cores that this process may use.
        precision: what `auto` stands for.
    """

    device: str
    device_name: str
    device_memory_gib: float
    gpus: tuple[str, ...]
    memory_gib: float
    threads: int
    precision: str


def this_machine() -> Machine:
    """Look at this machine. Loads torch."""
    import torch

    gpus = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    memory = memory_limit() / GIB
    if gpus:
        gpu_memory = torch.cuda.get_device_properties(0).total_memory / GIB
        precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        return Machine("cuda", gpus[0], gpu_memory, gpus, memory, default_threads(), precision)
    return Machine("cpu", processor_name(), memory, gpus, memory, default_threads(), "fp32")


def memory_limit() -> int:
    """Bytes of memory this process may use: the computer's, or less where a control group says so."""
    total = int(psutil.virtual_memory().total)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path, encoding="ascii") as file:
                total = min(total, int(file.read()))
        except (OSError, ValueError):
            continue
    return total


KEPT_FREE = 0.05  # of the computer's memory, for what else this process and others do while it trains


def memory_within_reach(device: str) -> int:
    """Bytes on the device that no other process holds: what is free, and what this process has. Of a computer's memory
    a little is left out. Loads torch."""
    import torch

    if device.startswith("cuda") and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    limit, process = memory_limit(), psutil.Process().memory_info()
    reach = min(limit, int(psutil.virtual_memory().available) + process.rss) - int(KEPT_FREE * limit)
    addresses = resource.getrlimit(resource.RLIMIT_AS)[0]  # what `ulimit -v` leaves
    return reach if addresses == resource.RLIM_INFINITY else min(reach, addresses - process.vms + process.rss)


@contextlib.contextmanager
def memory_bounded(device: str) -> Iterator[None]:
    """While a CPU trains: asking for more memory than there is fails, as it does on a GPU, and is told in a sentence.

    Linux would grant it, and kill the process once it is used: the app, the run's last words and all. Other systems
    swap instead.
    """
    if device != "cpu" or sys.platform != "linux":
        yield
        return
    process = psutil.Process().memory_info()
    room = memory_within_reach(device) - process.rss - _free_in_heap()  # which is counted in `data`, but was given back
    if memory_limit() == psutil.virtual_memory().total:  # a control group has limits of its own for swap
        room += int(psutil.swap_memory().free)
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    bound = process.data + max(0, room)
    lowest = min([bound, *(limit for limit in limits if limit != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_DATA, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)


class _MallocInfo(ctypes.Structure):
    """`mallinfo2` of malloc.h: ten numbers, of which the ninth, `fordblks`, are bytes that are free."""

    _fields_ = (("numbers", ctypes.c_size_t * 10),)


def _free_in_heap() -> int:
    """Bytes of addresses that the C library's heap has and uses for nothing; 0 where it does not tell (glibc does)."""
    told = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if told is None:
        return 0
    told.restype = _MallocInfo
    return int(told().numbers[8])


def held_bytes() -> int:
    """Resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def give_back_memory() -> None:
    """Return what was freed to the system, where the C library (glibc) or Arrow keep it: an app trains and reads many
    runs."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    if arrow := sys.modules.get("pyarrow"):
        arrow.default_memory_pool().release_unused()


def has_bf16(device: str) -> bool:
    """Whether a device computes in bf16: every CPU does, and GPUs do from NVIDIA's Ampere on. Loads torch for a GPU."""
    if device.startswith("cpu"):
        return True
    import torch

    index = int(device.partition(":")[2] or 0)
    return index >= torch.cuda.device_count() or torch.cuda.get_device_capability(index) >= (8, 0)


def has_fp8(device: str) -> bool:
    """Whether a device multiplies in fp8: GPUs do from NVIDIA's Ada and Hopper on. Loads torch for a GPU."""
    if device.startswith("cpu"):
        return False
    import torch

    return torch.cuda.get_device_capability(device) >= (8, 9)


def begin_peak() -> bool:
    """Let `peak_bytes` count from now on; whether the system can (Linux, and not in every sandbox)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark and nothing else
    except OSError:
        return False
    return _high_water_mark() is not None


def _high_water_mark() -> int | None:
    try:
        told = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(told[1]) * 1024 if told else None


def peak_bytes() -> int:
    """The most resident memory that this process has held, since `begin_peak` where that works.

    `ru_maxrss` alone would begin with that of the process that started this one.
    """
    if (mark := _high_water_mark()) is not None:
        return mark
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def default_threads() -> int:
    """Cores this process may run on; hardware threads that share a core don't help matrix products."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or usable
    return max(1, min(usable, physical))


def processor_name() -> str:
    """The processor's name as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def resolve_device(device: str, precision: str) -> tuple[str, str]:
    """What `auto` stands for, checked against what this machine can do.

    Returns:
        device (`cpu` or `cuda:N`) and precision (`fp32`, `bf16`, `fp16` or `fp8`).

    Raises:
        ConfigError: there is no such device, or it cannot compute in that precision.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if count else "cpu"
    if device == "cpu":
        if problems := problems_on_cpu(precision):
            raise ConfigError(problems)
        return "cpu", "fp32" if precision == "auto" else precision
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        there = f"this machine has {count}" if count else "PyTorch finds no CUDA GPU here"
        raise ConfigError([Problem("device", f"{device} does not exist: {there}. Use auto or cpu.")])
    if precision == "bf16" and not has_bf16(device):
        name = torch.cuda.get_device_name(index)
        raise ConfigError([Problem("precision", f"{name} has no bf16 arithmetic. Use fp16 or fp32.")])
    if precision == "fp8" and not has_fp8(device):
        name = torch.cuda.get_device_name(index)
        raise ConfigError([Problem("precision", f"{name} has no fp8 arithmetic: {_FP8_CARDS} have. Use auto.")])
    if precision == "auto":
        precision = "bf16" if has_bf16(device) else "fp32"
    return f"cuda:{index}", precision


def problems_on_cpu(precision: str) -> list[Problem]:
    """Why a CPU does not train in a precision, where it does not. No torch."""
    if precision == "fp16":
        return [Problem("precision", _FP16_ON_CPU)]
    if precision == "fp8" and not has_fp8("cpu"):
        return [Problem("precision", _FP8_ON_CPU)]
    return []


_FP16_ON_CPU = (
    "fp16 trains on a CUDA GPU only: on a CPU it is many times slower than fp32 and gains nothing. Use fp32 or bf16."
)
_FP8_CARDS = "NVIDIA's cards from Ada and Hopper on (compute capability 8.9)"
_FP8_ON_CPU = f"fp8 trains on a GPU only: of all devices, {_FP8_CARDS} multiply in it. Use fp32 or bf16."


def versions() -> dict[str, Any]:
    """Versions and hardware, for `run.json`."""
    names = ("torch", "numpy", "pandas", "pyarrow", "tiktoken", "bitsandbytes", "streamlit")
    return {
        "machine": asdict(this_machine()),
        "host": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in names},
    }


def package_version(name: str) -> str | None:
    """Of an installed package; None when it is not."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
