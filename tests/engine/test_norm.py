"""engine.norm: PyTorch's layer norm, and less kept; and the kernels of engine.norm_triton by Triton's interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.config import ModelConfig
from engine.kernels import Kernels
from engine.model import GPT
from engine.norm import PLAIN, Added, NormKernels, add_and_norm
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


def test_it_is_a_norm_of_the_sum_with_the_stream_beside_it() -> None:
    x, weight, bias = leaves(2, 7, 24)
    values, layer = torch.randn(2, 7, 24, requires_grad=True), torch.randn(24, requires_grad=True)
    towards = torch.randn_like(x), torch.randn_like(x)
    for added, others in ((None, ()), (Added(values), (values,)), (Added(values, layer), (values, layer))):
        both = add_and_norm(x, added, weight, bias, torch.float32)
        inside = values + layer - layer.detach() if added and added.bias is not None else values
        on = x + inside if added else x * 1
        wanted = on, F.layer_norm(on, (24,), weight, bias)
        torch.testing.assert_close(both, wanted)
        _, last = add_and_norm(x, added, weight, bias, torch.float32, goes_on=False)
        torch.testing.assert_close(last, wanted[1])
        for found, exact, g in ((both, wanted, towards), ((last,), wanted[1:], towards[1:])):
            of = (x, *others, weight, bias)
            ours = torch.autograd.grad(found, of, g, retain_graph=True)
            torch.testing.assert_close(ours, torch.autograd.grad(exact, of, g, retain_graph=True))


@pytest.mark.parametrize(("stream", "dtype"), [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.float16)])
@pytest.mark.parametrize("adds", [False, True])
def test_it_keeps_the_stream_as_it_is(adds: bool, stream: torch.dtype, dtype: torch.dtype) -> None:
    x, weight, bias = leaves(6, 24)
    values = torch.randn(6, 24).to(dtype).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        on, normed = add_and_norm(x.to(stream), Added(values) if adds else None, weight, bias, dtype)
    assert (on.dtype, normed.dtype) == (stream, dtype)
    assert [(tensor.dtype, tensor.numel()) for tensor in kept] == [
        (stream, 6 * 24),
        (torch.float32, 24),
        (torch.float32, 6),
        (torch.float32, 6),
    ]
    d_x, d_values = torch.autograd.grad((on.float().sum() + normed.float().sum()), (x, values), allow_unused=True)
    assert d_x.dtype == torch.float32 and d_x.isfinite().all()
    assert (d_values is not None and d_values.dtype == dtype) if adds else d_values is None


def gradients(model: GPT) -> list[Tensor]:
    model.zero_grad()
    tokens = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)  # dropout
    model.loss(tokens, tokens.roll(1)).backward()
    return [weight.grad for weight in model.parameters() if weight.grad is not None]


def biased(model: GPT) -> GPT:
    """With weights none of which is 0 or 1, as the first ones of biases and norms are."""
    model.initialize(0)
    generator = torch.Generator().manual_seed(2)
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_model_trains_with_it_under_autocast(
    dropout: float, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes the gradients of the biases of what is added, but where dropout comes between, or the last of a block
    that is computed once more."""
    called: list[tuple[bool, bool]] = []

    def forward(x: Tensor, added: Tensor | None, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert others[-1] == torch.bfloat16
        called.append((added is not None, False))
        return PLAIN.forward(x, added, *others[:-1], torch.float32)

    def backward(*given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        called.append((False, True))
        return PLAIN.backward(*given)

    settings: dict[str, Any] = {"dropout": dropout, "gradient_checkpointing": checkpointing}
    plain, ours = biased(GPT(TINY, **settings)), biased(GPT(TINY, **settings))
    ours.use_kernels(Kernels(norm=NormKernels(forward, backward)))
    gradients(ours)
    assert not called
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
    torch.testing.assert_close(gradients(ours), gradients(plain))
    norms = 2 * TINY.layers + 1
    first_of_each = TINY.layers + 1 if checkpointing else 1  # have nothing to add
    again = norms - 1 if checkpointing else 0
    assert len([call for call in called if not call[1]]) == norms + again
    assert called.count((False, True)) == norms
    assert called[: norms + 1].count((True, False)) == norms - first_of_each
    ours.eval()
    gradients(ours)
    assert len(called) == 2 * norms + again


def test_a_compiler_is_left_pytorchs_operations_and_the_first_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[bool] = []

    def forward(x: Tensor, values: Tensor | None, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        added.append(values is not None)
        return PLAIN.forward(x, values, *others)

    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.float32)
    monkeypatch.setattr("engine.model.is_compiling", lambda: True)
    plain, ours = biased(GPT(TINY)), biased(GPT(TINY))
    ours.use_kernels(Kernels(norm=NormKernels(forward, PLAIN.backward)))
    torch.testing.assert_close(gradients(ours), gradients(plain))
    assert added == [True] * 4
    ours.use_kernels(Kernels(norm=PLAIN))
    assert not ours.norm.by_kernels()
    torch.testing.assert_close(gradients(ours), gradients(plain), rtol=0, atol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("compiling", [False, True])
def test_the_last_norm_is_in_the_streams_dtype(
    compiling: bool, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = F.layer_norm
    monkeypatch.setattr(F, "layer_norm", lambda *given: plain(*given).float())  # as under autocast on a GPU
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: True)
    monkeypatch.setattr("engine.model.is_compiling", lambda: compiling)
    model = biased(GPT(TINY, gradient_checkpointing=checkpointing))
    model.use_kernels(Kernels(norm=NormKernels(PLAIN.forward, PLAIN.backward)))
    with torch.autocast("cpu", torch.bfloat16):
        monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
        assert model.hidden(torch.zeros(2, 16, dtype=torch.int64)).dtype == torch.bfloat16


DTYPES = [
    (torch.float32, torch.float32, 1e-6),
    (torch.bfloat16, torch.bfloat16, 4e-3),
    (torch.float32, torch.float16, 5e-4),
]


def errors() -> None:
    """Print |found - exact| / |exact| of the stream, the norm and all gradients, for each dtype of the stream and the
    norm and each shape: of a sum, and of a stream to which nothing is added and which goes no further."""
    from engine.norm_triton import KERNELS

    for stream, dtype, _ in DTYPES:
        for shape in SHAPES:
            x, *weights = leaves(*shape)
            values, layer = torch.randn(shape), torch.randn(shape[1]).requires_grad_()
            given = [x.detach().to(stream).requires_grad_(), values.to(dtype).requires_grad_(), layer, *weights]
            towards = torch.randn(shape).to(stream), torch.randn(shape).to(dtype)
            both = add_and_norm(given[0], Added(given[1], layer), *weights, dtype, KERNELS)
            on = both[0].detach().double().requires_grad_()  # rounded, as the norm reads it
            exact = [leaf.detach().double().requires_grad_() for leaf in weights]
            normed = F.layer_norm(on, shape[1:], *exact)
            d_x, *others = torch.autograd.grad((on * 1, normed), (on, *exact), [g.double() for g in towards])
            found = *both, *torch.autograd.grad(both, given, towards)
            total = given[0].detach().double() + given[1].detach().double()
            _print(found, (total, normed, d_x, d_x, d_x.sum(0), *others))
            given = [given[0], *weights]
            exact = [leaf.detach().double().requires_grad_() for leaf in given]
            _, last = add_and_norm(given[0], None, *weights, dtype, KERNELS, goes_on=False)
            normed = F.layer_norm(exact[0], shape[1:], *exact[1:])
            _print(
                (last, *torch.autograd.grad(last, given, towards[1])),
                (normed, *torch.autograd.grad(normed, exact, towards[1].double())),
            )


def _print(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        print(float((one.detach() - other.detach()).norm() / other.detach().norm()))


def test_the_kernels_are_the_formulas() -> None:
    found = printed_numbers(errors)
    each = 11 * len(SHAPES)
    assert len(found) == each * len(DTYPES)
    for i, (_, _, rounding) in enumerate(DTYPES):
        assert max(found[i * each : (i + 1) * each]) < rounding


MISTAKES = ["", "sum", "forward", "stream", "weight", "bias", "total"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_they_are_tried_beside_pytorchs(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from engine import norm_triton

    def forward(x: Tensor, added: Tensor | None, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        added = None if mistake == "sum" else added
        stream, normed, means, rates = PLAIN.forward(x, added, *others)
        return stream, normed * (1.1 if mistake == "forward" else 1), means, rates

    def backward(*given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        *others, d_stream = given
        d_stream = None if mistake == "stream" else d_stream
        d_x, d_weight, d_bias, total = PLAIN.backward(*others, d_stream)
        wrong = {"weight": d_weight, "bias": d_bias, "total": total}.get(mistake)
        return d_x, *(one * 0 if one is wrong else one for one in (d_weight, d_bias, total))  # type: ignore[return-value]

    monkeypatch.setattr(norm_triton, "KERNELS", NormKernels(forward, backward))
    reason = why_not(lambda: norm_triton.beside_pytorch(64, torch.bfloat16, torch.bfloat16, CPU), CPU)
    assert reason == ("it computes something else." if mistake else "")


def test_a_layer_norms_epsilon_is_its() -> None:
    from engine.norm import EPSILON

    assert nn.LayerNorm(4).eps == EPSILON
