"""engine.model: GPT-2's architecture does what it says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from engine.config import PRESETS, ModelConfig
from engine.model import GPT

TINY = ModelConfig(layers=2, heads=2, width=32, context_length=16, vocabulary_size=101)
UNTIED = ModelConfig(layers=2, heads=2, width=32, context_length=16, vocabulary_size=101, tie_embeddings=False)


def build(config: ModelConfig = TINY, seed: int = 1, **options: object) -> GPT:
    model = GPT(config, **options)  # type: ignore[arg-type]
    model.initialize(seed)
    with torch.no_grad():  # as after some training: initial weights are so small that attention hardly matters
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)), alpha=0.1)
    return model


def tokens(config: ModelConfig = TINY, batch: int = 3, time: int | None = None, seed: int = 0) -> Tensor:
    size = (batch, time or config.context_length)
    return torch.randint(config.vocabulary_size, size, generator=torch.Generator().manual_seed(seed))


def loss_and_gradients(model: GPT, seed: int = 5) -> tuple[float, dict[str, Tensor]]:
    """In training mode; dropout draws from a global generator that starts at `seed`."""
    model.train()
    torch.manual_seed(seed)
    window = tokens(time=model.config.context_length, seed=9)
    loss = model.loss(window[:, :-1], window[:, 1:])
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("time", [1, 7, 16])
def test_manual_and_sdpa_give_the_same_logits(time: int) -> None:
    with torch.no_grad():
        manual = build(attention_impl="manual")(tokens(time=time))
        sdpa = build(attention_impl="sdpa")(tokens(time=time))
    assert manual.shape == (3, time, 101)
    assert (manual - sdpa).abs().max() < 1e-5
    assert manual.std() > 0.3  # they say something


def test_manual_and_sdpa_give_the_same_gradients() -> None:
    manual_loss, manual = loss_and_gradients(build(attention_impl="manual"))
    sdpa_loss, sdpa = loss_and_gradients(build(attention_impl="sdpa"))
    assert manual_loss == pytest.approx(sdpa_loss, abs=1e-5)
    assert manual.keys() == sdpa.keys() == dict(build().named_parameters()).keys()
    for name, gradient in manual.items():
        torch.testing.assert_close(gradient, sdpa[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("implementation", ["manual", "sdpa"])
def test_attention_is_the_formula(implementation: str) -> None:
    """One head, one sequence, in float64, written anew from the paper."""
    config = ModelConfig(layers=1, heads=1, width=8, context_length=5, vocabulary_size=11)
    attention = build(config, attention_impl=implementation).blocks[0].attention.double()
    x = torch.randn(1, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        q, k, v = attention.qkv(x)[0].split(8, dim=1)
        expected = torch.zeros(5, 8, dtype=torch.float64)
        for i in range(5):
            weights = torch.softmax(torch.stack([q[i] @ k[j] / math.sqrt(8) for j in range(i + 1)]), dim=0)
            expected[i] = sum(w * v[j] for j, w in enumerate(weights))
        torch.testing.assert_close(attention(x)[0], attention.projection(expected))


@pytest.mark.parametrize("implementation", ["manual", "sdpa"])
def test_no_position_sees_the_future(implementation: str) -> None:
    model = build(attention_impl=implementation).eval()
    before = tokens(batch=1)
    for changed in range(16):
        after = before.clone()
        after[0, changed] = (after[0, changed] + 1) % 101
        with torch.no_grad():
            difference = (model(after) - model(before)).abs().amax(dim=2)[0]
        assert (difference[:changed] < 1e-6).all()
        assert (difference[changed:] > 1e-4).all()  # every later one does see it


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_starts_at_that_of_guessing(preset: str, tied: bool) -> None:
    """Within 1% of ln(50,257), at the preset's true width, heads and vocabulary; two layers, to be quick."""
    size = PRESETS[preset]
    config = ModelConfig(2, size.heads, size.width, 16, tie_embeddings=tied)
    model = GPT(config)
    model.initialize(1337)
    window = tokens(config, batch=4)
    with torch.no_grad():
        loss = model.loss(window[:, :-1], window[:, 1:]).item()
    assert loss == pytest.approx(math.log(50257), rel=0.01)


def test_the_full_depth_of_nano_starts_there_too() -> None:
    size = PRESETS["nano"]
    config = ModelConfig(size.layers, size.heads, size.width, 64)
    model = GPT(config)
    model.initialize(1337)
    window = tokens(config, batch=4)
    with torch.no_grad():
        assert model.loss(window[:, :-1], window[:, 1:]).item() == pytest.approx(math.log(50257), rel=0.01)


def test_initial_weights_are_decided_by_the_seed_alone() -> None:
    one, same, other = GPT(TINY), GPT(TINY), GPT(TINY)
    torch.manual_seed(1)
    one.initialize(7)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    same.initialize(7)
    assert torch.equal(torch.get_rng_state(), state)
    other.initialize(8)
    for (name, a), b, c in zip(one.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert torch.equal(a, c) == (a.dim() == 1), name  # matrices differ; biases are 0 and norms 1


def test_tied_embeddings_are_one_matrix() -> None:
    tied, untied = build(TINY), build(UNTIED)
    assert tied.head.weight is tied.token_embedding.weight
    assert untied.head.weight is not untied.token_embedding.weight
    assert not torch.equal(untied.head.weight, untied.token_embedding.weight)
    count = [sum(p.numel() for p in model.parameters()) for model in (tied, untied)]
    assert count[1] - count[0] == 101 * 32


def test_the_loss_is_the_cross_entropy_of_the_logits() -> None:
    for config in (TINY, UNTIED):
        model = build(config).eval()
        window = tokens(config)
        inputs, targets = window[:, :-1], window[:, 1:]
        with torch.no_grad():
            expected = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1).double(), targets.flatten())
            assert model.loss(inputs, targets).item() == pytest.approx(expected.item(), rel=1e-5)
            total = model.loss(inputs, targets, reduction="sum").item()
        assert total == pytest.approx(expected.item() * targets.numel(), rel=1e-5)


@pytest.mark.parametrize("implementation", ["manual", "sdpa"])
def test_dropout_acts_in_training_only(implementation: str) -> None:
    model, plain = build(dropout=0.3, attention_impl=implementation), build(attention_impl=implementation)
    window = tokens()
    with torch.no_grad():
        model.train()
        assert not torch.equal(model(window), model(window))
        model.eval()
        state = torch.get_rng_state()
        assert torch.equal(model(window), plain.eval()(window))
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("implementation", ["manual", "sdpa"])
def test_gradient_checkpointing_changes_no_bit(dropout: float, implementation: str) -> None:
    plain_loss, plain = loss_and_gradients(build(dropout=dropout, attention_impl=implementation))
    model = build(dropout=dropout, attention_impl=implementation, gradient_checkpointing=True)
    loss, gradients = loss_and_gradients(model)
    assert loss == plain_loss
    assert gradients.keys() == plain.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, plain[name]), name


def test_gradient_checkpointing_keeps_less() -> None:
    def kept_bytes(checkpointing: bool) -> int:
        model, held = build(gradient_checkpointing=checkpointing), 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal held
            held += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.train().hidden(tokens())
        return held

    assert kept_bytes(True) < kept_bytes(False) / 3


def test_bf16_on_the_cpu_follows_fp32() -> None:
    model = build()
    window = tokens()
    with torch.no_grad():
        exact = model.loss(window[:, :-1], window[:, 1:]).item()
        with torch.autocast("cpu", torch.bfloat16):
            rough = model.loss(window[:, :-1], window[:, 1:]).item()
    assert rough != exact and rough == pytest.approx(exact, rel=0.02)
