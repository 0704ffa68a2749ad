"""engine.recipes: each does what it says, and leaves the rest alone."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace

import pytest

from engine.cli.common import add_setting_flags, given_settings
from engine.config import PRESETS, TrainConfig, command, from_dict, to_dict
from engine.memory import estimate_memory
from engine.recipes import RECIPES, SHARE, SMALL_GPU, Machine

CPU, GPU = Machine("cpu", 16e9), Machine("cuda", 80e9)
BY_TITLE = {recipe.title: recipe for recipe in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.title)
@pytest.mark.parametrize("machine", [CPU, GPU], ids=lambda machine: machine.device)
def test_every_recipe_gives_settings_that_can_be_used(recipe, machine: Machine) -> None:
    assert from_dict(recipe.apply(to_dict(TrainConfig()), machine))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_small_gpu_is_enough_and_the_effective_batch_stays(preset: str) -> None:
    asked = TrainConfig(config=preset, batch_size=16, corpus="tiny", learning_rate=1e-4, attention_impl="manual")
    made = from_dict(BY_TITLE["Fits a small GPU"].apply(to_dict(asked), GPU))
    assert estimate_memory(made, "cuda").total <= SHARE * SMALL_GPU
    assert made.sequences_per_step == asked.sequences_per_step
    assert (made.config, made.corpus, made.learning_rate, made.attention_impl) == (preset, "tiny", 1e-4, "sdpa")


def test_nothing_is_saved_where_nothing_has_to_be() -> None:
    made = from_dict(BY_TITLE["Fits a small GPU"].apply(to_dict(TrainConfig()), GPU))
    assert made == TrainConfig()


def test_fastest_takes_larger_batches_on_a_gpu_that_has_room() -> None:
    asked = TrainConfig(config="medium", batch_size=2, grad_accum_steps=16, gradient_checkpointing=True)
    made = from_dict(BY_TITLE["Fastest on this machine"].apply(to_dict(asked), GPU))
    assert (made.batch_size, made.grad_accum_steps, made.gradient_checkpointing) == (32, 1, False)
    assert estimate_memory(made, "cuda").total <= SHARE * GPU.memory
    here = from_dict(BY_TITLE["Fastest on this machine"].apply(to_dict(asked), CPU))
    assert (here.batch_size, here.grad_accum_steps) == (2, 16)


def test_the_command_line_says_the_settings() -> None:
    config = TrainConfig(config="small", gradient_checkpointing=True, tie_embeddings=False, sample_prompt="It's me")
    config = replace(config, learning_rate=0.000123456789)  # exactly: the same settings give the same run
    words = command(config)
    assert words.startswith("python -m engine.train --config small")
    assert "--learning-rate 0.000123456789" in words
    assert "--gradient-checkpointing" in words and "--no-tie-embeddings" in words
    assert command(TrainConfig()) == "python -m engine.train"


@pytest.mark.parametrize("prompt", ["-e", "--json", "- he said", "-1", 'it\'s\n"so"', "$HOME `id`"])
def test_the_command_line_is_read_as_the_settings_it_was_made_of(prompt: str) -> None:
    config = TrainConfig(sample_prompt=prompt, eval_every=-1, epochs=0.1, gradient_checkpointing=True)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_setting_flags(parser)
    words = shlex.split(command(config))
    assert words[:3] == ["python", "-m", "engine.train"]
    assert from_dict(given_settings(parser.parse_args(words[3:]))) == config
