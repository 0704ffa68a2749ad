"""The validation loss: measured on the same windows every time, without touching anything a step depends on."""

from __future__ import annotations

import torch

from engine.data import validation_batches
from engine.repeatable import repeatable
from engine.step import TrainState


@torch.no_grad()
def evaluate(state: TrainState) -> float | None:
    """Mean loss over the validation windows, in nats per token; None when there is no validation text.

    Runs in the training precision, dropout off. Every token counts the same, however the windows are batched.
    """
    config = state.config
    total, count = torch.zeros((), dtype=torch.float64, device=state.device), 0
    state.model.eval()
    batches = validation_batches(
        state.validation, config.model.context_length, config.batch_size, limit=config.eval_batches
    )
    for batch in batches:
        windows = torch.from_numpy(batch).to(state.device)  # (B, T + 1)
        with repeatable(state.device), state.autocast():
            total += state.model.loss(windows[:, :-1], windows[:, 1:], reduction="sum")
        count += windows.numel() - len(windows)
    state.model.train()
    return float(total) / count if count else None
