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
    offers = {tenths: what_would_fit(config, "cuda", tenths / 10 * GIB) for tenths in range(60, 10, -1)}
    together = {tenths: offer[0] for tenths, offer in offers.items() if len(offer) == 1 and len(offer[0].settings) > 2}
    assert together
    assert all(change.total <= tenths / 10 * GIB for tenths, change in together.items())


def test_a_combination_takes_no_more_than_it_has_to_and_a_smaller_preset_last() -> None:
    config = replace(LARGE, config="medium", attention_impl="sdpa", batch_size=1)
    [change] = what_would_fit(config, "cuda", 3 * GIB)  # 5 GiB in its weights and moments alone
    assert change.settings["config"] == "small" and change.total <= 3 * GIB
    for name in change.settings:
        less = {key: value for key, value in change.settings.items() if key != name}
        assert name == "optimizer" or estimate_memory(replace(config, **less), "cuda").total > 3 * GIB, name


def test_what_cannot_fit_at_all_gets_no_promise() -> None:
    assert what_would_fit(LARGE, "cuda", GIB // 4) == []


def test_nothing_that_has_no_effect_is_offered() -> None:
    names = [set(c.settings) for c in what_would_fit(TrainConfig(batch_size=64, precision="fp32"), "cpu", 3 * GIB)]
    assert {"attention_impl"} not in names and {"optimizer"} not in names


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_bf16_is_offered_where_the_device_has_it(device: str) -> None:
    config = TrainConfig(config="small", batch_size=16, precision="fp32")
    limit = estimate_memory(replace(config, precision="bf16"), device).total
    for has_bf16 in (True, False):
        offered = [c.settings for c in what_would_fit(config, device, limit, has_bf16=has_bf16)]
        assert ({"precision": "bf16"} in offered) is has_bf16, offered


def test_it_needs_no_torch() -> None:
    code = "import sys; import engine.fit; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr
