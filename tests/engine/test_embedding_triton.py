"""engine.embedding_triton, by Triton's interpreter, and what a model does with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.config import ModelConfig
from engine.kernels import Kernels
from engine.model import GPT
from engine.trial import why_not
from tests.triton_interpreter import printed_numbers

CPU = torch.device("cpu")
TINY = ModelConfig(layers=1, heads=2, width=32, context_length=16, vocabulary_size=64)
COUNTS = [1, 31, 32, 33, 64, 97, 200, 640]  # of places: programs have 32 each
VOCABULARIES = [1, 2, 3, 40]  # few tokens run through many programs


def errors() -> None:
    """Print |found - exact| / |exact| of a table's gradient for tokens in any order, sorted, and of a text's kind."""
    from engine.embedding_triton import token_gradient

    generator = torch.Generator().manual_seed(0)
    for count in COUNTS:
        for vocabulary in VOCABULARIES:
            drawn = torch.randint(0, vocabulary, (count,), generator=generator)
            as_text = (vocabulary ** torch.rand(count, generator=generator)).long().clamp(max=vocabulary) - 1
            for tokens in (drawn, drawn.sort().values, as_text):
                d_out = torch.randn(count, 40, generator=generator)
                exact = torch.zeros(vocabulary, 40, dtype=torch.float64).index_add_(0, tokens, d_out.double())
                print(float((token_gradient(d_out, tokens, vocabulary) - exact).norm() / exact.norm()))


def test_a_tables_gradient_is_the_sum_over_its_tokens_places() -> None:
    found = printed_numbers(errors)
    assert len(found) == 3 * len(COUNTS) * len(VOCABULARIES) and max(found) < 1e-6


def trials() -> None:
    """Print the reason why it cannot be used, as 0 if there is none, for both dtypes and two widths."""
    from engine import embedding_triton

    for dtype in (torch.bfloat16, torch.float32):
        for width in (48, 300):
            reason = why_not(lambda d=dtype, w=width: embedding_triton.beside_pytorch(w, d, CPU), CPU)  # type: ignore[misc]
            print(0 if reason == "" else 1)


def test_it_is_pytorchs_embedding() -> None:
    assert printed_numbers(trials) == [0, 0, 0, 0]


def mistakes() -> None:
    """Print how many results the trial finds wrong where tokens that run on lose a part, or positions a sequence."""
    from engine import embedding_triton as it

    whole, mean = it.token_gradient, Tensor.sum
    for mistake in ("parts", "positions"):
        if mistake == "parts":
            it.token_gradient = lambda d_out, tokens, size: whole(d_out[: it.PLACES], tokens[: it.PLACES], size)
        else:
            it.token_gradient = whole
            Tensor.sum = lambda x, *a, **k: mean(x[:1] if a == (0,) else x, *a, **k)  # type: ignore[method-assign]
        print(sum(not torch.allclose(a, b, atol=1e-2) for a, b in it.beside_pytorch(48, torch.float32, CPU)))


def test_its_trial_finds_mistakes() -> None:
    found = printed_numbers(mistakes)
    assert len(found) == 2 and min(found) >= 1


def embedded(tokens: Tensor, rows: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
    seen.append(dtype)
    return (F.embedding(tokens, rows) + positions[: tokens.size(1)]).to(dtype)


seen: list[torch.dtype] = []


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_model_trains_with_it_but_for_dropout(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    seen.clear()
    tokens = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))
    plain, ours = GPT(TINY, dropout=dropout), GPT(TINY, dropout=dropout)
    ours.use_kernels(Kernels(embedding=embedded))

    def hidden(model: GPT) -> Tensor:
        model.initialize(0)
        torch.manual_seed(1)
        return model.hidden(tokens)

    wanted = [] if dropout else [torch.float32]
    assert torch.equal(hidden(ours), hidden(plain)) and seen == wanted
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(hidden(ours), hidden(plain)) and hidden(ours).dtype == torch.bfloat16
    assert seen == wanted + ([] if dropout else [torch.bfloat16] * 2)
    with torch.autocast("cpu", torch.float16):
        ours.hidden(tokens)
    assert seen[-1:] == ([] if dropout else [torch.float32])  # fp16's range is too small for the stream
    before: Any = [*seen]
    ours.eval()
    hidden(ours)
    assert seen == before
