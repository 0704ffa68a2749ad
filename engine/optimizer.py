"""Optimizers by name, and their state as plain tensors and scalars.

`adamw` is PyTorch's, fused into one kernel where the device has it. `adamw_8bit` and `paged_adamw_8bit` are
bitsandbytes': the two moments of each weight in 8 bits, by blocks (Dettmers et al. 2022, arXiv:2110.02861).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import ConfigError, Problem

BETAS = (0.9, 0.95)  # GPT-3's (arXiv:2005.14165, appendix B)


def build_optimizer(model: nn.Module, name: str, *, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """The optimizer called `name` over all weights; only matrices decay, biases and norms don't.

    Args:
        model: on its device already.
        name: adamw, adamw_8bit or paged_adamw_8bit.

    Raises:
        ConfigError: bitsandbytes cannot be loaded on this machine.
    """
    weights = list(model.parameters())
    groups = [
        {"params": [p for p in weights if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in weights if p.dim() < 2], "weight_decay": 0.0},
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, fused=True)
    try:
        import bitsandbytes
    except Exception as error:  # while it is imported it probes drivers and libraries, any of which may fail
        message = f"{name} needs bitsandbytes, which cannot be loaded here ({error}). Use adamw."
        raise ConfigError([Problem("optimizer", message)]) from error
    kind = bitsandbytes.optim.AdamW8bit if name == "adamw_8bit" else bitsandbytes.optim.PagedAdamW8bit
    optimizer: torch.optim.Optimizer = kind(groups, lr=learning_rate, betas=BETAS)
    return optimizer


def fallback_note(name: str, device: str) -> str:
    """A sentence when an optimizer does less on a device than its name says; "" when it does all."""
    if name == "paged_adamw_8bit" and device == "cpu":
        return "paged_adamw_8bit has no GPU memory to page from on a CPU; it works as adamw_8bit here."
    return ""


def apply_update(optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.step()`, without the warning about paging that `fallback_note` has told already."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
        optimizer.step()


def pack_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state as named tensors, and as plain values what is no tensor.

    Names are paths such as `3/exp_avg`; bitsandbytes nests its quantised state one level deeper.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    seen: set[int] = set()
    for name, value in _flatten("", optimizer.state_dict()["state"]):
        if isinstance(value, Tensor):
            tensors[name] = value.clone() if value.data_ptr() in seen else value  # quantisation tables are shared
            seen.add(value.data_ptr())
        else:
            scalars[name] = value
    return tensors, scalars


def _flatten(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(f"{path}/{key}" if path else str(key), inner)
    else:
        yield path, value


def unpack_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
    """Put back what `pack_state` took out. Learning rate and decay stay as the optimizer was built with."""
    state: dict[Any, Any] = {}
    for name, value in [*tensors.items(), *scalars.items()]:
        index, *inner, key = name.split("/")
        entries = state.setdefault(int(index), {})
        for step in inner:
            entries = entries.setdefault(step, {})
        entries[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if getattr(optimizer, "is_paged", False):
        _page_again(optimizer)


def _page_again(optimizer: Any) -> None:
    """Move loaded moments back into pages: loading puts them into plain GPU memory."""
    for weight, entries in optimizer.state.items():
        if weight.device.type == "cuda":
            for name in ("state1", "state2"):
                loaded = entries[name]
                entries[name] = optimizer.get_state_buffer(weight, dtype=loaded.dtype)
                entries[name].copy_(loaded)
