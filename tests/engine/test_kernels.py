"""engine.kernels: which kernels a model trains with. What the GPU's compute, tests/gpu/repeat.py holds to float64."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import engine
from engine import cublaslt, linear_cuda, loss_cuda, native, perceptron_cuda
from engine.attention import fused_attention
from engine.config import ModelConfig, TrainConfig
from engine.kernels import Kernels, Native, choose_kernels, forget_trials
from engine.loss import plain_rows
from engine.loss_cuda import plain_scale
from engine.model import GPT, Block
from engine.norm import PLAIN, NormKernels

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)
TINY = ModelConfig(layers=2, heads=2, width=32, context_length=16, vocabulary_size=64)
NANO = TrainConfig(precision="bf16", device="cuda:0")
CUBLASLT = {"products": "cuBLASLt", "perceptron": "cuBLASLt"}
ALL_OURS = {"attention": "Triton", **CUBLASLT, "norm": "Triton", "embedding": "Triton", "loss": "Triton"}


def other(*_: Any) -> Any:
    """A kernel."""


def same(*_: Any) -> list[tuple[Tensor, Tensor]]:
    """What a kernel that works gives, beside PyTorch's."""
    return [(torch.ones(2), torch.ones(2))]


def wrong(*_: Any) -> list[tuple[Tensor, Tensor]]:
    return [(torch.zeros(2), torch.ones(2))]


def module(name: str, monkeypatch: pytest.MonkeyPatch, **contents: Any) -> None:
    """A stand-in for a module that needs Triton."""
    stand_in = ModuleType(name)
    stand_in.__dict__.update(contents)
    monkeypatch.setitem(sys.modules, name, stand_in)
    package, _, last = name.rpartition(".")
    monkeypatch.setattr(sys.modules[package], last, stand_in, raising=False)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card on which all kernels work, as far as one can tell without one."""
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    module("engine.attention_cuda", monkeypatch, own_attention=other, beside_pytorch=same)
    module("engine.norm_triton", monkeypatch, KERNELS=NormKernels(other, other), beside_pytorch=same)
    module("engine.embedding_triton", monkeypatch, embed=other, beside_pytorch=same)
    module("engine.loss_triton", monkeypatch, compiled_rows=other)
    for cublas in (linear_cuda, perceptron_cuda):
        monkeypatch.setattr(cublas, "beside_pytorch", same)
    monkeypatch.setattr(loss_cuda, "_beside_pytorch", same)


@pytest.fixture(autouse=True)
def not_tried_yet() -> Iterator[None]:
    """Some are remembered from one call to the next."""
    forget_trials()
    yield
    forget_trials()


def chosen(**changes: Any) -> Kernels:
    config = replace(NANO, **changes)
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8": torch.bfloat16}
    return choose_kernels(config, dtypes[config.precision], CARD)


def of_blocks(model: GPT) -> list[tuple[Any, ...]]:
    return [
        (block.attention.kernel, block.fused_perceptron, block.attention.qkv.kernel, block.attention.projection.kernel)  # type: ignore[union-attr]
        for block in model.blocks
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_trains_with_pytorchs_own(dtype: torch.dtype) -> None:
    assert choose_kernels(TrainConfig(), dtype, CPU) == Kernels()


@pytest.mark.parametrize(
    ("changes", "attention"), [({}, "C"), ({"dropout": 0.1}, "PyTorch"), ({"attention_impl": "manual"}, "PyTorch")]
)
def test_a_cpu_has_kernels_in_c(changes: dict[str, Any], attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "why_not", lambda device: "")
    kernels = choose_kernels(TrainConfig(**changes), torch.float32, CPU, builds_native=True)
    assert kernels.names == {"attention": attention, "products": "C", "perceptron": "C", "loss": "C"}
    assert kernels.native is not None and (kernels.native.attend is None) == (attention == "PyTorch")
    settings = {name: changes.get(name, value) for name, value in (("dropout", 0.0), ("attention_impl", "sdpa"))}
    model = GPT(TINY, **settings)
    model.use_kernels(kernels)
    for block in cast(list[Block], [*model.blocks]):
        assert (block.attention.attend is native.attend) == (attention == "C")
        assert block.attention.qkv.native is block.attention.projection.native is native.linear
        assert block.native_perceptron is native.perceptron
    assert model.loss_piece is native.piece


def test_kernels_can_be_taken_back() -> None:
    model = GPT(TINY)
    before = {**vars(model), **vars(model.blocks[0]), **vars(model.blocks[0].attention)}  # type: ignore[arg-type]
    model.use_kernels(Kernels(other, other, other, native=Native(other, other, other, other)))
    model.use_kernels(Kernels())
    after = {**vars(model), **vars(model.blocks[0]), **vars(model.blocks[0].attention)}  # type: ignore[arg-type]
    assert after == before


def test_kernels_in_c_that_cannot_be_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "why_not", lambda device: "RuntimeError: no gcc.")
    told = "The lab's own kernels for a CPU cannot be compiled here, so a step takes longer: RuntimeError: no gcc."
    assert choose_kernels(TrainConfig(), torch.float32, CPU, builds_native=True) == Kernels(lacking=(told,))


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(
    ("changes", "pytorchs"),
    [
        ({}, []),
        ({"precision": "fp16"}, []),
        ({"precision": "fp32"}, ["attention", "products", "perceptron", "norm"]),
        ({"precision": "fp8"}, ["perceptron"]),
        ({"dropout": 0.1}, ["attention", "embedding"]),
        ({"context_length": 1}, ["attention"]),
        ({"attention_impl": "manual"}, ["attention"]),
    ],
)
def test_ours_do_what_they_can(changes: dict[str, Any], pytorchs: list[str]) -> None:
    found = chosen(**changes)
    assert dict(found.names) == ALL_OURS | dict.fromkeys(pytorchs, "PyTorch")
    assert found.lacking == ()
    assert (found.attention is None) == ("attention" in pytorchs)
    assert (found.perceptron is None) == ("perceptron" in pytorchs)
    assert (found.linear is None) == ("products" in pytorchs)
    assert (found.embedding is None) == ("embedding" in pytorchs)
    assert (found.norm is None) == ("norm" in pytorchs) and found.norm is not PLAIN


@pytest.mark.usefixtures("hopper")
def test_other_cards_have_layers_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    found = chosen()
    assert (found.perceptron, found.linear) == (None, None) and found.lacking == ()
    assert dict(found.names) == ALL_OURS | dict.fromkeys(CUBLASLT, "PyTorch")


@pytest.mark.usefixtures("hopper")
def test_what_computes_something_else_is_left_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("attention_cuda", "norm_triton", "embedding_triton"):
        monkeypatch.setattr(sys.modules[f"engine.{name}"], "beside_pytorch", wrong)
    for cublas in (linear_cuda, perceptron_cuda):
        monkeypatch.setattr(cublas, "beside_pytorch", wrong)
    monkeypatch.setattr(loss_cuda, "_beside_pytorch", wrong)
    found = chosen()
    assert (found.attention, found.perceptron, found.linear, found.norm) == (None, None, None, PLAIN)
    assert found.embedding is None
    assert set(dict(found.names).values()) == {"PyTorch"}
    assert found.lacking == tuple(
        f"The lab's own kernel for the {what} cannot be used here, so a step takes longer: it computes something else."
        for what in ALL_OURS
    )
    assert loss_cuda.row_kernel(torch.bfloat16, CARD)[0] is plain_rows
    assert loss_cuda.product_kernel(torch.bfloat16, 4096, 768, 50304, CARD) is loss_cuda.plain_multiply


@pytest.mark.usefixtures("hopper")
def test_the_losss_products_are_ours_where_they_work(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, pytorchs = cublaslt.multiply, loss_cuda.plain_multiply
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    kinds = ((bf16, 4096, 768), (fp16, 4096, 768), (bf16, 4096, 764), (fp32, 4096, 768), (bf16, 16, 768))
    found = [loss_cuda.product_kernel(*kind, 50304, CARD) for kind in kinds]
    assert found == [ours, ours, pytorchs, pytorchs, pytorchs]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (10, 0))
    assert loss_cuda.product_kernel(torch.bfloat16, 4096, 768, 50304, CARD) is pytorchs


def test_a_card_without_triton_trains_with_pytorchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    monkeypatch.setitem(sys.modules, "triton", None)  # importing it fails
    for name in ("attention_cuda", "norm_triton", "embedding_triton", "loss_triton"):
        monkeypatch.delitem(sys.modules, f"engine.{name}", raising=False)
        monkeypatch.delattr(engine, name, raising=False)
    found = chosen()
    assert (found.attention, set(dict(found.names).values())) == (None, {"PyTorch"})
    assert found.norm is PLAIN
    assert [sentence.split(": ")[0].split()[6] for sentence in found.lacking] == [
        "attention",
        "norm",
        "embedding",
        "loss",
    ]
    assert not [sentence for sentence in found.lacking if "triton" not in sentence]


@pytest.mark.usefixtures("hopper")
def test_a_kernel_that_failed_is_tried_again_by_the_next_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk or the GPU may have been full."""
    for trial in (wrong, same):
        for name in ("attention_cuda", "norm_triton", "embedding_triton"):
            monkeypatch.setattr(sys.modules[f"engine.{name}"], "beside_pytorch", trial)
        for cublas in (linear_cuda, perceptron_cuda):
            monkeypatch.setattr(cublas, "beside_pytorch", trial)
        monkeypatch.setattr(loss_cuda, "_beside_pytorch", trial)
        assert len(chosen().lacking) == (6 if trial is wrong else 0)
    assert dict(chosen().names) == ALL_OURS


Rows = Callable[[Tensor, Tensor, Tensor, int, bool], None]


def with_mistake(mistake: str) -> Rows:
    """The loss's kernels as `plain_rows` and `plain_scale` compute, with a mistake that a kernel could have."""

    def rows(logits: Tensor, targets: Tensor, losses: Tensor, vocabulary: int, gradient: bool) -> None:
        before = logits.clone()
        targets = (targets + 1) % vocabulary if mistake == "another target" else targets
        plain_rows(logits, targets, losses, vocabulary, gradient)
        stretches = before[:, :vocabulary].float().split(loss_cuda.STRETCH, dim=1)
        tops = torch.stack([stretch.amax(1) for stretch in stretches]).cummax(0).values
        if mistake == "sums are not scaled to a new maximum":
            sums = [(s - top[:, None]).exp().sum(1) for s, top in zip(stretches, tops, strict=True)]
            losses.copy_(tops[-1] + sum(sums).log() - before.gather(1, targets[:, None])[:, 0])  # type: ignore[union-attr]
        if mistake == "only the first stretch has a gradient" and gradient:
            logits[:, loss_cuda.STRETCH :] = 0
        if mistake == "no loss alone" and not gradient:
            losses.zero_()

    return rows


@pytest.mark.parametrize(
    "mistake",
    [
        "",
        "another target",
        "sums are not scaled to a new maximum",
        "only the first stretch has a gradient",
        "no loss alone",
        "nothing is scaled",
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_losss_trial_finds_mistakes(mistake: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = with_mistake(mistake)
    scale = other if mistake == "nothing is scaled" else plain_scale
    module("engine.loss_triton", monkeypatch, compiled_rows=kernel, compiled_scale=scale)
    rows, reason = loss_cuda.row_kernel(dtype, CPU)
    assert (rows, reason) == ((plain_rows, "it computes something else.") if mistake else (kernel, ""))


def test_what_was_asked_for_stays() -> None:
    """`manual` attention is not replaced, nor are layers that multiply in 8 bits."""
    models = [GPT(TINY), GPT(TINY, attention_impl="manual"), GPT(TINY, float8=True)]
    for model in models:
        model.use_kernels(Kernels(other, other, other))
    assert [of_blocks(model) for model in models] == [
        [(other, other, other, other)] * 2,
        [(None, other, other, other)] * 2,
        [(other, None, None, None)] * 2,
    ]


def with_gradient(qkv: Tensor, bias: Tensor, heads: int) -> Tensor:
    """As `own_attention`: what it attends over has the bias in it, whose gradient comes from here alone."""
    return fused_attention(qkv + (bias - bias.detach()).to(qkv.dtype), heads)


@pytest.mark.parametrize("float8", [False, True])
def test_the_attentions_kernel_makes_its_biass_gradient(float8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training, under autocast: a team's first pass is in fp32."""
    called = 0

    def kernel(qkv: Tensor, bias: Tensor, heads: int) -> Tensor:
        nonlocal called
        called += 1
        return with_gradient(qkv, bias, heads)

    def gradients(model: GPT) -> dict[str, Tensor]:
        model.zero_grad()
        model.loss(tokens, tokens.roll(1)).backward()
        return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}

    tokens = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))
    plain, ours = GPT(TINY, float8=float8), GPT(TINY, float8=float8)
    ours.use_kernels(Kernels(kernel))
    for model in (plain, ours):
        model.initialize(0)
    torch.testing.assert_close(gradients(ours), gradients(plain), rtol=0, atol=0)
    assert not called
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    found, wanted = gradients(ours), gradients(plain)
    assert called == 2 and found.keys() == wanted.keys()
    for name, theirs in wanted.items():
        if float8 and name.endswith("qkv.bias"):  # of rounded numbers where the layer makes it
            assert 0 < (found[name] - theirs).norm() < 0.2 * theirs.norm()
        else:
            torch.testing.assert_close(found[name], theirs)
    ours.eval()
    gradients(ours)
    assert called == 2


def test_linear_layers_multiply_with_their_kernel_in_training_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []

    def kernel(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        seen.append((x.dtype, weight.dtype, bias.dtype, tuple(weight.shape)))
        return F.linear(x, weight, bias)

    tokens = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))
    plain, ours = GPT(TINY), GPT(TINY)
    ours.use_kernels(Kernels(linear=kernel))
    for model in (plain, ours):
        model.initialize(0)
    torch.testing.assert_close(ours.loss(tokens, tokens), plain.loss(tokens, tokens), rtol=0, atol=0)
    assert not seen
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.float32)
    torch.testing.assert_close(ours.loss(tokens, tokens), plain.loss(tokens, tokens), rtol=0, atol=0)
    assert seen == [(torch.float32,) * 3 + (shape,) for _ in range(2) for shape in ((96, 32), (32, 32))]
    ours.eval()
    ours.loss(tokens, tokens)
    assert len(seen) == 4


def test_a_models_weights_do_not_depend_on_its_kernels() -> None:
    plain, replaced = GPT(TINY), GPT(TINY)
    replaced.use_kernels(Kernels(other, other, other))
    assert list(plain.state_dict()) == list(replaced.state_dict())
