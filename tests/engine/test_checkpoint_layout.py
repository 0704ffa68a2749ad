"""engine.checkpoint_layout: what it tells without torch is what the built model and its optimizers hold."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch

from engine.checkpoint_layout import optimizer_problem, weight_shapes, weights_problem
from engine.config import PRESETS, ModelConfig, TrainConfig
from engine.model import GPT
from engine.optimizer import build_optimizer, pack_state

# Vectors of both sides of bitsandbytes' 4,096 numbers, below which a state is not cut to 8 bits.
TINY = ModelConfig(layers=2, heads=2, width=64, context_length=16, vocabulary_size=300)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_weights_are_those_of_the_model(preset: str, tied: bool) -> None:
    model = TrainConfig(config=preset, tie_embeddings=tied).model
    with torch.device("meta"):
        built = GPT(model)
    names = {name: tuple(weight.shape) for name, weight in built.named_parameters()}
    assert list(weight_shapes(model).items()) == list(names.items())  # in this order an optimizer counts them


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_the_state_is_that_of_the_optimizer(name: str, tied: bool) -> None:
    config = dataclasses.replace(TINY, tie_embeddings=tied)
    model = GPT(config)
    model.initialize(1)
    optimizer = build_optimizer(model, name, learning_rate=1e-3, weight_decay=0.1)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.step()
    shapes = {entry: tuple(tensor.shape) for entry, tensor in pack_state(optimizer)[0].items()}
    shapes["rng.cpu"] = tuple(torch.get_rng_state().shape)
    assert optimizer_problem(shapes, config, name) == ""
    for entry, shape in shapes.items():
        if not entry.startswith("rng."):
            assert entry in optimizer_problem({entry: (*shape, 2)}, config, name)
    other = "adamw" if name != "adamw" else "adamw_8bit"
    assert optimizer_problem(shapes, config, other) != ""


def test_a_wrong_weight_is_named() -> None:
    found = weight_shapes(TINY)
    assert weights_problem(found, TINY) == ""
    assert weights_problem(found | {"norm.bias": (65,)}, TINY) == "norm.bias is 65 instead of 64"
    assert weights_problem({k: v for k, v in found.items() if k != "norm.bias"}, TINY) == "norm.bias is missing"
    assert weights_problem(found | {"head.weight": (300, 64)}, TINY) == "its model has no 'head.weight'"
