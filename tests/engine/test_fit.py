"""engine.fit: every change it names does fit, saves what it says, and is no larger than it has to be."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from engine.config import TrainConfig, check
from engine.fit import what_would_fit
from engine.memory import GIB, estimate_memory
from engine.paths import PROJECT

LARGE = TrainConfig(config="xlarge", batch_size=16, precision="fp32", attention_impl="manual", device="cuda")


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("gib", [80, 40, 24, 16, 12, 8, 6])
def test_each_change_fits_and_saves_what_it_says(device: str, gib: int) -> None:
    before = estimate_memory(LARGE, device).total
    changes = what_would_fit(LARGE, device, gib * GIB)
    for change in changes:
        changed = replace(LARGE, **change.settings)
        assert not check(changed)
        total = estimate_memory(changed, device).total
        assert total == change.total <= gib * GIB
        assert change.saving == before - total > 0
        assert str(change).endswith("GiB)")


def test_a_batch_is_lowered_no_further_than_it_has_to_be_and_the_step_stays_the_same() -> None:
    config = TrainConfig(config="medium", batch_size=32, grad_accum_steps=2, precision="bf16", device="cuda")
    [change] = [c for c in what_would_fit(config, "cuda", 16 * GIB) if "batch_size" in c.settings]
    smaller = replace(config, **change.settings)
    assert smaller.sequences_per_step == config.sequences_per_step
    larger = next(b for b in range(smaller.batch_size + 1, 33) if config.sequences_per_step % b == 0)
    accumulation = config.sequences_per_step // larger
    assert estimate_memory(replace(config, batch_size=larger, grad_accum_steps=accumulation), "cuda").total > 16 * GIB


def test_where_no_single_change_fits_one_combination_does() -> None:
    config = replace(LARGE, config="nano", batch_size=32, context_length=2048)  # there is no smaller preset
    changes = what_would_fit(config, "cuda", 2 * GIB)
    assert len(changes) == 1 and len(changes[0].settings) > 2
    assert changes[0].total <= 2 * GIB


def test_what_cannot_fit_at_all_gets_no_promise() -> None:
    assert what_would_fit(LARGE, "cuda", GIB // 4) == []


def test_nothing_that_has_no_effect_is_offered() -> None:
    names = [set(c.settings) for c in what_would_fit(TrainConfig(batch_size=64, precision="fp32"), "cpu", 3 * GIB)]
    assert {"precision"} not in names and {"attention_impl"} not in names


def test_it_needs_no_torch() -> None:
    code = "import sys; import engine.fit; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr
