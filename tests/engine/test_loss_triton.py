"""engine.loss_triton: its kernels by Triton's interpreter, where Triton is; on a card, tests/gpu/repeat.py."""

from __future__ import annotations

from tests.triton_interpreter import printed_numbers

SHAPES = [(3, 64, 57), (2, 4160, 4097), (1, 8256, 8200), (2, 12_352, 12_345)]  # rows, columns, vocabulary


def errors() -> None:
    """Print the largest error of losses and of gradients for each shape."""
    import torch
    from torch.nn import functional as F

    from engine.loss_triton import compiled_rows

    for rows, width, vocabulary in SHAPES:
        logits = 5 * torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
        targets = torch.tensor([vocabulary - 1, 0, 3][:rows])
        exact = logits[:, :vocabulary].double().requires_grad_()
        wanted = F.cross_entropy(exact, targets, reduction="none")
        (gradient,) = torch.autograd.grad(wanted.sum(), exact)
        alone, losses = torch.empty(rows), torch.empty(rows)
        compiled_rows(logits.clone(), targets, alone, vocabulary, False)
        compiled_rows(logits, targets, losses, vocabulary, True)
        assert torch.equal(alone, losses) and not logits[:, vocabulary:].any()
        print(float((losses - wanted).abs().max()), float((logits[:, :vocabulary] - gradient).abs().max()))


def test_its_losses_and_gradients_are_the_formulas() -> None:
    found = printed_numbers(errors)
    assert len(found) == 2 * len(SHAPES) and max(found) < 5e-6


def scaled() -> None:
    """Print the largest error of scaled values, relative to them; more values than a program has, and no multiple."""
    import torch

    from engine.loss_triton import SCALED, compiled_scale

    values = torch.randn(2, SCALED + 5, generator=torch.Generator().manual_seed(0))
    found = values.clone()
    compiled_scale(found, torch.full((), 1 / 12288))
    print(float((found.double() * 12288 / values - 1).abs().max()))


def test_it_scales_all_values() -> None:
    [error] = printed_numbers(scaled)
    assert error < 1e-6
