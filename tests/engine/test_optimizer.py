"""engine.optimizer: what decays, what is kept in 8 bits, and a state that comes back bit for bit."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.config import SETTINGS, ModelConfig
from engine.model import GPT
from engine.optimizer import (
    BETAS,
    EightBitOptimizer,
    apply_update,
    build_optimizer,
    fallback_note,
    pack_state,
    unpack_state,
)
from engine.paths import PROJECT

NAMES = SETTINGS["optimizer"].metadata["choices"]
CONFIG = ModelConfig(layers=2, heads=2, width=32, context_length=16, vocabulary_size=256)


def build(name: str, *, decay: float = 0.1, rate: float = 0.01) -> tuple[GPT, torch.optim.Optimizer]:
    model = GPT(CONFIG)
    model.initialize(1)
    return model, build_optimizer(model, name, learning_rate=rate, weight_decay=decay)


def step(model: GPT, optimizer: torch.optim.Optimizer, seed: int) -> float:
    window = torch.randint(256, (4, 17), generator=torch.Generator().manual_seed(seed))
    loss = model.loss(window[:, :-1], window[:, 1:])
    loss.backward()
    apply_update(optimizer)
    optimizer.zero_grad()
    return loss.item()


def test_adamw_is_pytorchs_bit_for_bit() -> None:
    (ours, optimizer), (theirs, _) = build("adamw"), build("adamw")
    matrices = [w for w in theirs.parameters() if w.dim() >= 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": [w for w in theirs.parameters() if w.dim() < 2]}]
    plain = torch.optim.AdamW(groups, lr=0.01, betas=BETAS, weight_decay=0.0, fused=True)
    for seed in range(5):
        assert step(ours, optimizer, seed) == step(theirs, plain, seed)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(optimizer.state_dict()["state"].values(), plain.state_dict()["state"].values(), strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_step_does_not_load_the_compiler() -> None:
    """It would take up to two seconds of the first one."""
    code = (
        "import sys; from engine import TrainConfig; from engine.bench.train import random_state, run_steps\n"
        "config = TrainConfig(config='nano', context_length=8, device='cpu', precision='fp32', threads=1)\n"
        "state = random_state(config); run_steps(state, 2)\n"
        "state.optimizer.load_state_dict(state.optimizer.state_dict()); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False"], done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_matrices_decay_and_nothing_else_does(name: str) -> None:
    """With gradients of zero, decay is all that moves a weight: by learning rate × decay of itself."""
    model, optimizer = build(name, decay=0.5, rate=0.1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3)
            p.grad = torch.zeros_like(p)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    apply_update(optimizer)
    for n, p in model.named_parameters():
        factor = 0.95 if p.dim() >= 2 else 1.0
        torch.testing.assert_close(p.detach(), before[n] * factor, msg=n)


def test_a_training_is_not_warned_of_what_it_does_not_use() -> None:
    build("adamw_8bit")
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_is_optimized_once(name: str) -> None:
    model, optimizer = build(name)
    groups = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, groups)) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_it_learns(name: str) -> None:
    model, optimizer = build(name)
    losses = [step(model, optimizer, seed=0) for _ in range(30)]
    assert losses[0] == pytest.approx(5.545, rel=0.02)  # ln 256
    assert losses[-1] < losses[0] / 2


def test_blocks_keep_8_bits_and_embeddings_32() -> None:
    model, optimizer = build("adamw_8bit")
    step(model, optimizer, seed=0)
    assert isinstance(optimizer, EightBitOptimizer)
    states = {id(weight): state for part in optimizer.parts for weight, state in part.state.items()}
    block = model.blocks[0].expand.weight  # 4096 weights or more; smaller ones bitsandbytes leaves in 32 bits
    assert block.numel() >= 4096
    assert states[id(block)]["state1"].dtype == states[id(block)]["state2"].dtype == torch.uint8
    assert states[id(model.token_embedding.weight)]["exp_avg"].dtype == torch.float32
    assert set(states) == {id(weight) for weight in model.parameters()}


def packed_through_files(optimizer: torch.optim.Optimizer, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state as a checkpoint brings it back: tensors through safetensors, the rest through JSON."""
    tensors, scalars = pack_state(optimizer)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "state.safetensors")
    return load_file(folder / "state.safetensors"), json.loads(json.dumps(scalars))


@pytest.mark.parametrize("name", NAMES)
def test_a_packed_state_continues_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, optimizer = build(name)
    for i in range(3):
        step(model, optimizer, seed=i)
    tensors, scalars = packed_through_files(optimizer, tmp_path)

    other_model, other = build(name)
    other_model.load_state_dict(model.state_dict())
    unpack_state(other, tensors, scalars)
    again = pack_state(other)
    assert again[1] == scalars
    assert again[0].keys() == tensors.keys() and len(tensors) > 0
    for key, tensor in tensors.items():
        assert again[0][key].dtype == tensor.dtype and torch.equal(again[0][key], tensor), key

    for i in range(3, 6):
        assert step(model, optimizer, seed=i) == step(other_model, other, seed=i)
    for (key, a), b in zip(model.named_parameters(), other_model.parameters(), strict=True):
        assert torch.equal(a, b), key
    for key, tensor in pack_state(optimizer)[0].items():
        assert torch.equal(tensor, pack_state(other)[0][key]), key


@pytest.mark.parametrize("name", NAMES)
def test_unpacking_keeps_the_rate_and_the_decay_it_was_built_with(name: str) -> None:
    """A branch changes them; the state of the parent must not bring the old ones back."""
    model, optimizer = build(name, decay=0.1, rate=0.01)
    step(model, optimizer, seed=0)
    _, other = build(name, decay=0.2, rate=0.02)
    unpack_state(other, *pack_state(optimizer))
    parts = other.parts if isinstance(other, EightBitOptimizer) else [other]
    assert [id(group) for part in parts for group in part.param_groups] == [id(group) for group in other.param_groups]
    for group in other.param_groups:
        assert group["lr"] == 0.02
        assert group["weight_decay"] == (0.2 if group["params"][0].dim() >= 2 else 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_that_never_stepped_is_empty_and_can_be_put_back(name: str) -> None:
    model, optimizer = build(name)
    assert pack_state(optimizer) == ({}, {})
    unpack_state(optimizer, {}, {})
    assert step(model, optimizer, seed=0) > 0


def test_what_paging_cannot_do_on_a_cpu_is_said_once_and_in_our_words() -> None:
    assert "works as adamw_8bit" in fallback_note("paged_adamw_8bit", "cpu")
    assert fallback_note("paged_adamw_8bit", "cuda") == fallback_note("adamw_8bit", "cpu") == ""
    model, optimizer = build("paged_adamw_8bit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(model, optimizer, seed=0)


def test_paged_is_adamw_8bit_on_a_cpu() -> None:
    (one, first), (two, second) = build("adamw_8bit"), build("paged_adamw_8bit")
    for i in range(3):
        assert step(one, first, seed=i) == step(two, second, seed=i)
