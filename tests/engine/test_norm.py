"""engine.norm: PyTorch's layer norm, and less kept; and the kernels of engine.norm_triton by Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.config import ModelConfig
from engine.kernels import Kernels
from engine.model import GPT
from engine.norm import PLAIN, NormKernels, norm_beside
from engine.trial import why_not
from tests.triton_interpreter import printed_numbers

SHAPES = [(5, 48), (1, 64), (33, 100), (200, 160)]  # rows, width
CPU = torch.device("cpu")
TINY = ModelConfig(layers=2, heads=2, width=32, context_length=16, vocabulary_size=64)


def leaves(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    width = shape[-1]
    x, weight, bias = 1 + 3 * torch.randn(shape), torch.randn(width), torch.randn(width)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def test_it_is_a_norm_with_the_stream_beside_it() -> None:
    x, weight, bias = given = leaves(2, 7, 24)
    stream, normed = norm_beside(x, weight, bias, torch.float32)
    wanted = F.layer_norm(x, (24,), weight, bias)
    assert torch.equal(stream, x) and torch.equal(normed, wanted)
    towards = torch.randn_like(x), torch.randn_like(x)
    for ours, theirs in zip(
        torch.autograd.grad((stream, normed), given, towards), torch.autograd.grad((x * 1, wanted), given, towards),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("stream", "dtype"), [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.float16)])
def test_it_keeps_the_stream_as_it_is(stream: torch.dtype, dtype: torch.dtype) -> None:
    x, weight, bias = leaves(6, 24)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        on, normed = norm_beside(x.to(stream), weight, bias, dtype)
    assert (on.dtype, normed.dtype) == (stream, dtype)
    assert [(tensor.dtype, tensor.numel()) for tensor in kept] == [
        (stream, 6 * 24),
        (torch.float32, 24),
        (torch.float32, 6),
        (torch.float32, 6),
    ]
    d_x, *_ = torch.autograd.grad((on.float().sum() + normed.float().sum()), (x, weight, bias))
    assert d_x.dtype == torch.float32 and d_x.isfinite().all()


def test_a_model_has_it_in_training_under_autocast_unless_a_compiler_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def forward(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        called.append(dtype)
        return PLAIN.forward(x, weight, bias, torch.float32)

    def gradients(model: GPT) -> list[Tensor]:
        model.zero_grad()
        model.loss(tokens, tokens.roll(1)).backward()
        return [weight.grad for weight in model.parameters() if weight.grad is not None]

    tokens = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))
    plain, ours = GPT(TINY), GPT(TINY)
    ours.use_kernels(Kernels(norm=NormKernels(forward, PLAIN.backward)))
    for model in (plain, ours):
        model.initialize(0)
    gradients(ours)
    assert not called
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
    torch.testing.assert_close(gradients(ours), gradients(plain))
    assert called == [torch.bfloat16] * 4
    monkeypatch.setattr("engine.model.is_compiling", lambda: True)
    gradients(ours)
    monkeypatch.setattr("engine.model.is_compiling", lambda: False)
    ours.eval()
    gradients(ours)
    assert len(called) == 4


DTYPES = [
    (torch.float32, torch.float32, 1e-6),
    (torch.bfloat16, torch.bfloat16, 4e-3),
    (torch.float32, torch.float16, 5e-4),
]


def errors() -> None:
    """Print |found - exact| / |exact| of the norm and its gradients, for each dtype of the stream and the norm and each
    shape."""
    from engine.norm_triton import KERNELS

    for stream, dtype, _ in DTYPES:
        for shape in SHAPES:
            x, *weights = leaves(*shape)
            given = [x.detach().to(stream).requires_grad_(), *weights]
            towards = torch.randn(shape).to(stream), torch.randn(shape).to(dtype)
            ours = norm_beside(*given, dtype, KERNELS)  # type: ignore[call-arg,arg-type]
            exact = [leaf.detach().double().requires_grad_() for leaf in given]
            theirs = exact[0] * 1, F.layer_norm(exact[0], shape[1:], *exact[1:])
            found = ours[1], *torch.autograd.grad(ours, given, towards)
            wanted = theirs[1], *torch.autograd.grad(theirs, exact, [g.double() for g in towards])
            for one, other in zip(found, wanted, strict=True):
                print(float((one - other).norm() / other.norm()))


def test_the_kernels_are_the_formulas() -> None:
    found = printed_numbers(errors)
    each = 4 * len(SHAPES)
    assert len(found) == each * len(DTYPES)
    for i, (_, _, rounding) in enumerate(DTYPES):
        assert max(found[i * each : (i + 1) * each]) < rounding


@pytest.mark.parametrize("mistake", ["", "forward", "stream", "weight", "bias"])
def test_they_are_tried_beside_pytorchs(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from engine import norm_triton

    def forward(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        normed, means, rates = PLAIN.forward(x, weight, bias, dtype)
        return normed * (1.1 if mistake == "forward" else 1), means, rates

    def backward(*given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        *others, d_stream = given
        d_x, d_weight, d_bias = PLAIN.backward(*others, d_stream * (mistake != "stream"))  # type: ignore[call-arg]
        return d_x, d_weight * (mistake != "weight"), d_bias * (mistake != "bias")

    monkeypatch.setattr(norm_triton, "KERNELS", NormKernels(forward, backward))
    reason = why_not(lambda: norm_triton.beside_pytorch(64, torch.bfloat16, torch.bfloat16, CPU), CPU)
    assert reason == ("it computes something else." if mistake else "")


def test_a_layer_norms_epsilon_is_its() -> None:
    from engine.norm import EPSILON

    assert nn.LayerNorm(4).eps == EPSILON
