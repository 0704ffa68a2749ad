"""`docs/memory.md` tells the figures of the present estimate and the recorded measurements."""

from __future__ import annotations

import re
import statistics
from typing import Any

import pytest

from engine import memory
from engine.paths import PROJECT
from tests import memory_tables
from tests.memory_tables import CPU, GPU, config_of, errors, tables

PAGE = memory_tables.PAGE.read_text(encoding="utf-8")


def estimate(row: dict[str, Any]) -> memory.Breakdown:
    return memory.estimate_memory(config_of(row), "cuda")


@pytest.mark.parametrize("name", tables())
def test_its_tables_are_made_from_the_data_and_the_present_estimate(name: str) -> None:
    expected = f"<!-- table: {name} -->\n\n{tables()[name]}\n"
    assert expected in PAGE, "update it: python tests/memory_tables.py"


def test_it_has_no_other_table_of_results() -> None:
    assert set(re.findall(r"<!-- table: (.*?) -->", PAGE)) == set(tables())


def test_what_it_says_of_the_measurements_is_so() -> None:
    assert GPU["gpu"] in PAGE and GPU["torch"] in PAGE and f"{len(GPU['rows'])} settings" in PAGE
    contexts = [config_of(row).model.context_length for row in GPU["rows"]]
    assert f"contexts of {min(contexts)} to\n{max(contexts):,}" in PAGE
    assert {row["batch_size"] for row in GPU["rows"]} >= {1, 64}
    assert f"{memory.CACHE_SHARE:.0%}".replace("%", " %") in PAGE
    assert f"{memory.CUDA_CONTEXT // memory.MIB} MiB on a GPU" in PAGE
    assert f"{memory.MANAGED_CONTEXT // memory.MIB} MiB more" in PAGE
    assert f"{memory.CUBLAS_WORKSPACE // memory.MIB} MiB: cuBLAS" in PAGE
    assert f"PyTorch {CPU['torch'].partition('+')[0]};" in PAGE and CPU["system"] in PAGE
    process, bitsandbytes = memory.CPU_PROCESS // memory.MIB, memory.CPU_BITSANDBYTES // memory.MIB
    assert f"{process} MiB, and bitsandbytes {bitsandbytes} MiB" in PAGE
    assert f"{memory.CPU_COMPILER // memory.MIB} MiB of PyTorch's compiler" in PAGE
    assert memory.CPU_GAPS == 1 / 5 and "a fifth is added" in PAGE


def test_each_command_of_it_names_a_script_that_exists() -> None:
    for script in re.findall(r"^python (\S+\.py)", PAGE, re.MULTILINE):
        assert (PROJECT / script).exists(), script


def test_cache_and_context_are_what_processes_of_their_own_took() -> None:
    """Most runs reserve no more than the estimate says, and no context is larger, nor much smaller."""
    share = [row["peak_reserved"] / row["peak_allocated"] - 1 <= memory.CACHE_SHARE for row in GPU["rows"]]
    assert sum(share) >= 2 / 3 * len(share)
    taken = [row["device_used"] - row["peak_reserved"] - estimate(row).paged for row in GPU["fresh"]]
    left = [(estimate(row).context - used) / memory.MIB for row, used in zip(GPU["fresh"], taken, strict=True)]
    assert min(left) >= 0 and max(left) <= 60 and statistics.median(left) <= 25
    assert f"took {min(taken) // memory.MIB} to {max(taken) // memory.MIB:,} MiB" in PAGE
    # the same peaks as in the process that measured all rows
    assert max(map(abs, errors(GPU["fresh"]))) <= 0.02
