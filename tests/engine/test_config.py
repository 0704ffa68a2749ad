"""engine.config: every problem told, at once and in words; counts that are true."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.config import (
    PRESETS,
    SETTINGS,
    ModelConfig,
    TrainConfig,
    check,
    differences,
    from_dict,
    label,
    to_dict,
)
from engine.errors import ConfigError
from engine.model import GPT

NUMBERS = [name for name, f in SETTINGS.items() if f.metadata["minimum"] is not None]
CHOICES = [name for name, f in SETTINGS.items() if f.metadata["choices"]]


def problems(values: dict[str, Any]) -> dict[str, str]:
    """Setting -> what is wrong with it."""
    with pytest.raises(ConfigError) as caught:
        from_dict(values)
    return {p.field: p.message for p in caught.value.problems}


def test_all_problems_are_told_together() -> None:
    found = problems(
        {"config": "huge", "epochs": -1, "batch_size": "many", "dropuot": 0.1, "device": "gpu", "precision": "fp9"}
    )
    assert found.keys() == {"config", "epochs", "batch_size", "dropuot", "device", "precision"}
    assert "nano, small, medium, large, xlarge" in found["config"]
    assert "from 0.001 to" in found["epochs"]


def test_the_context_bound_is_told_together_with_other_problems() -> None:
    assert problems({"context_length": 8192, "batch_size": 0}).keys() == {"context_length", "batch_size"}


def test_the_message_has_a_line_for_each_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict({"epochs": -1, "batch_size": 0})
    assert len(str(caught.value).splitlines()) == 2
    assert str(caught.value).startswith("epochs: ")


@pytest.mark.parametrize("name", NUMBERS)
def test_bounds_belong_to_the_range_and_the_next_number_does_not(name: str) -> None:
    meta, kind = SETTINGS[name].metadata, type(SETTINGS[name].default)
    for bound, direction in ((meta["minimum"], -1), (meta["maximum"], 1)):
        value = kind(bound)
        if name != "context_length":  # nano takes no more than 2,048 of the 8,192
            assert getattr(from_dict({name: value}), name) == value
        beyond = value + direction if kind is int else math.nextafter(value, direction * math.inf)
        assert problems({name: beyond}).keys() == {name}


@pytest.mark.parametrize("name", [name for name in NUMBERS if isinstance(SETTINGS[name].default, float)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_must_be_finite(name: str, value: float) -> None:
    assert problems({name: value}).keys() == {name}


@pytest.mark.parametrize("name", CHOICES)
def test_a_word_outside_the_choices_is_refused_with_the_choices(name: str) -> None:
    message = problems({name: "no such word"})[name]
    assert all(choice in message for choice in SETTINGS[name].metadata["choices"])


WRONG = [None, [1], {}, "x", True, 2.5]


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, f in SETTINGS.items() for v in WRONG if type(v) is not type(f.default)]
)
def test_a_value_of_the_wrong_type_is_refused(name: str, value: Any) -> None:
    assert problems({name: value}).keys() == {name}


@pytest.mark.parametrize("name", ["sample_prompt", "corpus", "val_corpus"])
def test_half_a_character_is_refused(name: str) -> None:
    message = problems({name: "a\udcff"})[name]
    assert message.isascii() and "half a character" in message


def test_an_out_of_range_whole_number_is_shown_in_full() -> None:
    message = problems({"max_steps": 100_000_001})["max_steps"].replace(",", "")
    assert "100000001" in message and "100000000" in message


@pytest.mark.parametrize("name", ["epochs", "seed", "context_length"])
def test_a_number_of_400_digits_is_a_problem_and_not_a_crash(name: str) -> None:
    assert problems({name: 10**400}).keys() == {name}


@pytest.mark.parametrize(("name", "value"), [("epochs", "3"), ("device", 3), ("corpus", None), ("batch_size", 2.5)])
def test_check_finds_wrong_types_in_a_config_built_by_hand(name: str, value: Any) -> None:
    assert [p.field for p in check(TrainConfig(**{name: value}))] == [name]


def test_whole_numbers_are_taken_for_fractional_settings_and_the_other_way_round() -> None:
    config = from_dict({"epochs": 3, "batch_size": 4.0})
    assert (config.epochs, config.batch_size) == (3.0, 4)
    assert (type(config.epochs), type(config.batch_size)) == (float, int)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
def test_devices(device: str) -> None:
    assert from_dict({"device": device}).device == device


@pytest.mark.parametrize("device", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", "cpu\n"])
def test_what_is_no_device(device: str) -> None:
    assert problems({"device": device}).keys() == {"device"}


def test_a_context_of_up_to_eight_times_the_presets_own() -> None:
    assert from_dict({"context_length": 2048}).model.context_length == 2048
    assert "nano takes at most 2" in problems({"context_length": 2049})["context_length"]


def values_of(name: str) -> st.SearchStrategy[Any]:
    meta, default = SETTINGS[name].metadata, SETTINGS[name].default
    if name == "context_length":
        return st.integers(0, 2048)
    if meta["choices"]:
        return st.sampled_from(meta["choices"])
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, int):
        return st.integers(meta["minimum"], meta["maximum"])
    if isinstance(default, float):
        return st.floats(meta["minimum"], meta["maximum"])
    return st.just("cpu") if name == "device" else st.text()


@given(st.fixed_dictionaries({}, optional={name: values_of(name) for name in SETTINGS}))
def test_a_config_survives_json(values: dict[str, Any]) -> None:
    config = from_dict(values)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert all(getattr(config, name) == value for name, value in values.items())


def test_differences_name_what_differs_and_nothing_else() -> None:
    assert differences(TrainConfig(), TrainConfig(epochs=6.0, seed=1)) == {"epochs": (3.0, 6.0), "seed": (1337, 1)}
    assert differences(TrainConfig(), TrainConfig()) == {}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_explains_itself(name: str) -> None:
    field = SETTINGS[name]
    assert field.metadata["help"].endswith(".") and len(field.metadata["help"]) > 20
    assert label(name)[0].isupper()
    assert field.metadata["choices"] == () or field.default in field.metadata["choices"]
    assert type(field.default) in (int, float, bool, str)
    if type(field.default) in (int, float):
        assert field.metadata["minimum"] <= field.default <= field.metadata["maximum"]


def test_the_defaults_are_sound() -> None:
    assert check(TrainConfig()) == []


@pytest.mark.parametrize(
    ("preset", "millions"), [("nano", 9.9), ("small", 51), ("medium", 124), ("large", 204), ("xlarge", 355)]
)
def test_parameter_counts_are_those_of_the_guide(preset: str, millions: float) -> None:
    counted = TrainConfig(config=preset).model.parameters / 1e6
    assert round(counted, 1 if millions < 10 else 0) == millions


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_count_is_that_of_the_built_model(preset: str, tied: bool) -> None:
    config = TrainConfig(config=preset, tie_embeddings=tied).model
    with torch.device("meta"):  # shapes without memory
        model = GPT(config)
    assert config.parameters == sum(p.numel() for p in model.parameters())


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 8), st.integers(1, 64), st.integers(2, 500), st.booleans())
def test_the_count_is_true_for_any_shape(
    layers: int, heads: int, head: int, context: int, words: int, tied: bool
) -> None:
    config = ModelConfig(layers, heads, heads * head, context, words, tied)
    with torch.device("meta"):
        model = GPT(config)
    assert config.parameters == sum(p.numel() for p in model.parameters())


def test_effective_batch() -> None:
    config = TrainConfig(batch_size=3, grad_accum_steps=5, context_length=32)
    assert (config.sequences_per_step, config.tokens_per_step) == (15, 480)
