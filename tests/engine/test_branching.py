"""engine.branching: every changed setting is named, with what the change will do."""

from __future__ import annotations

from dataclasses import replace

from engine.branching import differences_that_matter
from engine.config import SETTINGS, TrainConfig

OLD = TrainConfig(context_length=64, learning_rate=0.001)


def test_nothing_changed_nothing_told() -> None:
    assert differences_that_matter(OLD, OLD) == []


def test_four_changes_are_four_sentences_those_that_matter_first() -> None:
    new = replace(OLD, sample_every=7, corpus="tiny", batch_size=8, optimizer="adamw_8bit", learning_rate=0.0005)
    found = differences_that_matter(OLD, new)
    assert {d.name for d in found} == {"sample_every", "corpus", "batch_size", "optimizer", "learning_rate"}
    assert found[-1].name == "sample_every" and not found[-1].matters and all(d.matters for d in found[:-1])
    said = {d.name: d.effect for d in found}
    assert "fresh state" in said["optimizer"] and "from its beginning" in said["corpus"]
    assert "512 tokens instead of 256" in said["batch_size"] and "finer" in said["learning_rate"]
    assert str(found[0]).startswith(("Corpus: verdict → tiny.", "Batch size: 4 → 8."))


def test_accumulation_in_place_of_batch_changes_nothing_learned() -> None:
    new = replace(OLD, batch_size=2, grad_accum_steps=2)
    assert all("same sequences" in d.effect for d in differences_that_matter(OLD, new))


def test_every_setting_that_a_branch_may_change_has_an_effect_in_a_sentence() -> None:
    for name, field in SETTINGS.items():
        if field.metadata["architecture"]:
            continue
        kind = type(field.default)
        value = {bool: True, int: 5, float: 0.25, str: "other"}[kind]
        value = (not field.default) if kind is bool else value
        [difference] = differences_that_matter(OLD, replace(OLD, **{name: value}))
        assert difference.name == name and difference.effect.endswith(".")
