"""engine.native.library: compiled in a second, alone in its process, and a reason where that fails."""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from engine import native
from engine.native import library
from engine.paths import PROJECT

CPU = torch.device("cpu")


@pytest.fixture
def not_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As in a new process; returns its folder of temporary files."""
    monkeypatch.setattr(library, "_loaded", [])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_compiled_once_and_leaves_no_file(not_loaded: Path) -> None:
    first = library.loaded()
    assert library.loaded() is first
    assert [*not_loaded.iterdir()] == []


def test_threads_are_those_of_pytorch() -> None:
    """One library of OpenMP in a process, else two pools of threads look on for each other's cores."""
    code = (
        "import torch; from engine.native import library as own; own.loaded(); print(own._openmp())\n"
        "names = (line.split(maxsplit=5)[-1].strip() for line in open('/proc/self/maps'))\n"
        "print(*{n for n in names if n.rpartition('/')[2].startswith(('libgomp', 'libomp', 'libiomp'))}, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=100)
    linked, *mapped = done.stdout.splitlines()
    assert mapped == [linked], done.stderr


def test_no_compiler(not_loaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(not_loaded))
    assert native.why_not(CPU).startswith("there is no GCC on this machine. Install it")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'cc1: fatal error: out of memory allocating 65536 bytes' >&2; exit 1", "out of memory"),
        ("echo 'x.c:1: fatal error: omp.h: No such file' >&2; exit 1", "fatal error: omp.h: No such file"),
        ("exit 1", "gcc failed"),
        ("exit 0", "cannot open shared object file"),
    ],
)
def test_a_compiler_that_fails(script: str, reason: str, not_loaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gcc = not_loaded / "gcc"
    gcc.write_text(f"#!/bin/sh\n{script}\n")
    gcc.chmod(0o755)
    monkeypatch.setenv("PATH", str(not_loaded))
    assert reason in native.why_not(CPU)
    monkeypatch.undo()
    assert native.why_not(CPU) == ""  # tried anew, and not spoilt by what failed


def test_a_library_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(*arguments: object) -> int:
        result = library.call(*arguments)  # type: ignore[arg-type]
        if arguments[0] == "multiply":
            next(a for a in arguments[10:] if isinstance(a, torch.Tensor)).mul_(0.5)
        return result

    monkeypatch.setattr("engine.native.layers.call", half)
    assert native.why_not(CPU) == "it computes something else."


@pytest.mark.parametrize(("what", "value"), [("platform", "darwin"), ("machine", "aarch64"), ("capability", "DEFAULT")])
def test_other_machines_keep_to_pytorch(what: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.suits()
    if what == "platform":
        monkeypatch.setattr(sys, "platform", value)
    elif what == "machine":
        monkeypatch.setattr(platform, "machine", lambda: value)
    else:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: value)
    assert not native.suits()
    assert "Linux on x86-64" in native.why_not(CPU)


@pytest.mark.parametrize(
    "wrong", [torch.zeros(4, 4, dtype=torch.bfloat16), torch.zeros(4, 4).double(), torch.zeros(4, 4, device="meta")]
)
def test_what_is_not_fp32_on_a_cpu_is_refused(wrong: torch.Tensor) -> None:
    """C would take its bytes for others."""
    right = torch.zeros(4, 4)
    for left, other in ((wrong, right), (right, wrong)):
        with pytest.raises(TypeError, match="fp32 on a CPU"):
            native.multiply(left, other)


def test_scratch_memory_is_in_fp32_whatever_the_default_is() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        library._local.memory = None
        assert library.scratch(10).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_compiler_is_told_by_its_version(not_loaded: Path) -> None:
    library.loaded()
    told = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout
    assert native.compiler() and native.compiler() in told
