"""Which tensors a checkpoint must hold, and of which shapes: from the settings alone, without torch.

A compiled optimizer trusts the sizes of its state, so a foreign one is held to them before anything uses it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from engine.config import ModelConfig

Shape = tuple[int, ...]
RANDOM = "rng."  # names of random states, which are bytes, begin so
MOST_RANDOM = 2**20  # bytes of one
_BLOCK = 256  # weights that share a scale in bitsandbytes' 8-bit states
_MOMENTS = ("exp_avg", "exp_avg_sq", "state1", "state2")


def weight_shapes(model: ModelConfig) -> dict[str, Shape]:
    """Names and shapes of the weights in `model.safetensors`, in the model's order; a tied output layer is left out."""
    d = model.width
    shapes: dict[str, Shape] = {
        "token_embedding.weight": (model.vocabulary_size, d),
        "position_embedding.weight": (model.context_length, d),
    }
    block: dict[str, Shape] = _norm("norm1", d) | _linear("attention.qkv", 3 * d, d)
    block |= _linear("attention.projection", d, d) | _norm("norm2", d)
    block |= _linear("expand", 4 * d, d) | _linear("contract", d, 4 * d)
    for number in range(model.layers):
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in block.items()}
    shapes |= _norm("norm", d)
    return shapes if model.tie_embeddings else shapes | {"head.weight": (model.vocabulary_size, d)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, rows: int, columns: int) -> dict[str, Shape]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def weights_problem(found: Mapping[str, Shape], model: ModelConfig) -> str:
    """What is wrong with the weights of a checkpoint, for the middle of a sentence; "" when they are the model's."""
    wanted = weight_shapes(model)
    if missing := [name for name in wanted if name not in found]:
        return f"{missing[0]} is missing"
    for name, shape in found.items():
        if name not in wanted:
            return f"its model has no {name[:60]!a}"
        if shape != wanted[name]:
            return f"{name} is {_words(shape)} instead of {_words(wanted[name])}"
    return ""


def optimizer_problem(found: Mapping[str, Shape], model: ModelConfig, optimizer: str) -> str:
    """What is wrong with the optimizer's state, likewise. Names are those of `engine.optimizer.pack_state`."""
    weights = _weights_of_optimizer(model, optimizer)
    for name, shape in found.items():
        if name.startswith(RANDOM):
            if math.prod(shape) > MOST_RANDOM:
                return f"{name[:60]!a} is larger than a random state"
            continue
        part, _, rest = name.partition("/")
        index, _, path = rest.partition("/")
        wanted = _state_shape(path.rpartition("/")[2], weights.get((part, index)))
        if wanted is None:
            return f"its optimizer has no {name[:60]!a}"
        if shape != wanted:
            return f"{name[:60]!a} of its optimizer is {_words(shape)} instead of {_words(wanted)}"
    return ""


def _weights_of_optimizer(model: ModelConfig, optimizer: str) -> dict[tuple[str, str], Shape]:
    """The shape of each weight by its place in the optimizer: part and index, as texts."""
    named = weight_shapes(model)
    is_vocabulary = {name: "embedding" in name or name.startswith("head") for name in named}
    parts = [[*named]]
    if optimizer != "adamw":
        parts = [[name for name in named if is_vocabulary[name] is first] for first in (True, False)]
    places: dict[tuple[str, str], Shape] = {}
    for number, names in enumerate(parts):
        ordered = sorted(names, key=lambda name: len(named[name]) < 2)  # those that decay come first
        places |= {(str(number), str(index)): named[name] for index, name in enumerate(ordered)}
    return places


def _state_shape(entry: str, weight: Shape | None) -> Shape | None:
    """Of one entry of a weight's state; None when there is no such entry."""
    if weight is None:
        return None
    if entry == "step":
        return ()
    if entry in _MOMENTS:
        return weight
    if entry in ("qmap1", "qmap2"):
        return (_BLOCK,)
    return (math.ceil(math.prod(weight) / _BLOCK),) if entry in ("absmax1", "absmax2") else None


def _words(shape: Shape) -> str:
    return " × ".join(map(str, shape)) if shape else "a single number"
