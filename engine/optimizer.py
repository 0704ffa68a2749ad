"""Optimizers by name, and their state as plain tensors and scalars.

`adamw` is PyTorch's, fused into one kernel where the device has it. `adamw_8bit` and `paged_adamw_8bit` are
bitsandbytes': the two moments of each weight in 8 bits, by blocks (Dettmers et al. 2022, arXiv:2110.02861).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from inspect import unwrap
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
    named = list(model.named_parameters())
    if name == "adamw":
        return _adamw([weight for _, weight in named], learning_rate, weight_decay)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that it lacks for 4 bits
    try:
        import bitsandbytes
    except Exception as error:  # while it is imported it probes drivers and libraries, any of which may fail
        message = f"{name} needs bitsandbytes, which cannot be loaded here ({error}). Use adamw."
        raise ConfigError([Problem("optimizer", message)]) from error
    kind = bitsandbytes.optim.AdamW8bit if name == "adamw_8bit" else bitsandbytes.optim.PagedAdamW8bit
    vocabulary = [weight for path, weight in named if "embedding" in path or path.startswith("head")]
    others = [weight for path, weight in named if not ("embedding" in path or path.startswith("head"))]
    eight_bit = kind(_groups(others, weight_decay), lr=learning_rate, betas=BETAS)
    return EightBitOptimizer(_adamw(vocabulary, learning_rate, weight_decay), eight_bit)


class EightBitOptimizer(torch.optim.Optimizer):
    """bitsandbytes for the blocks, PyTorch's AdamW for embeddings and output layer; to its users, one optimizer.

    Moments of an embedding don't bear 8 bits: rare tokens share a block with frequent ones, and `nano` was seen to jump
    from 9 to 70 nats. bitsandbytes' documentation advises 32 bits for embeddings for the same reason.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([{"params": group["params"]} for part in parts for group in part.param_groups], {})
        self.share_groups()

    def share_groups(self) -> None:
        """Make its groups those of the parts, so that a new rate reaches them; loading a state makes new ones."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Apply the gradients; `closure` is not supported."""
        for part in self.parts:
            part.step()


_STEP = unwrap(torch.optim.AdamW.step)


class AdamW(torch.optim.AdamW):
    """PyTorch's own, bit for bit, but that it does not load PyTorch's compiler, which takes up to two seconds.

    PyTorch wraps an optimizer's methods so that they are told apart inside of a compiled function. Ours never are.
    Gradient checkpointing and bitsandbytes load the compiler all the same.
    """

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Apply the gradients."""
        _STEP(self)


def _adamw(weights: list[nn.Parameter], learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    on_gpu = weights[0].is_cuda
    rate = torch.tensor(learning_rate, device=weights[0].device) if on_gpu else learning_rate
    groups = _groups(weights, weight_decay)
    return AdamW(groups, lr=rate, betas=BETAS, fused=True, capturable=on_gpu)  # a graph reads it there


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all weights, without waiting for a GPU."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _groups(weights: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    groups = [
        {"params": [w for w in weights if w.dim() >= 2], "weight_decay": weight_decay},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


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

    Names are paths such as `0/3/exp_avg`: part, weight, entry; bitsandbytes nests its quantised state one level deeper.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    seen: set[int] = set()
    parts = {str(i): part.state_dict()["state"] for i, part in enumerate(_parts(optimizer))}
    for name, value in _flatten("", parts):
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
    states: list[dict[Any, Any]] = [{} for _ in _parts(optimizer)]
    for name, value in [*tensors.items(), *scalars.items()]:
        number, index, *inner, key = name.split("/")
        entries = states[int(number)].setdefault(int(index), {})
        for step in inner:
            entries = entries.setdefault(step, {})
        entries[key] = value
    for part, state in zip(_parts(optimizer), states, strict=True):
        part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})
        if getattr(part, "is_paged", False):
            _page_again(part)
    if isinstance(optimizer, EightBitOptimizer):
        optimizer.share_groups()


def _parts(optimizer: torch.optim.Optimizer) -> tuple[torch.optim.Optimizer, ...]:
    return optimizer.parts if isinstance(optimizer, EightBitOptimizer) else (optimizer,)


def _page_again(optimizer: Any) -> None:
    """Move loaded moments back into pages: loading puts them into plain GPU memory."""
    for weight, entries in optimizer.state.items():
        if weight.device.type == "cuda":
            for name in ("state1", "state2"):
                loaded = entries[name]
                entries[name] = optimizer.get_state_buffer(weight, dtype=loaded.dtype)
                entries[name].copy_(loaded)
