"""The lab's own kernels for a CPU in fp32, in C, compiled by the machine's GCC when a run begins.

PyTorch's products on a CPU are MKL's, which on an AMD are AVX2's, whatever the processor has; of shapes as narrow as
small models' they reach less, and what lies between them passes over memory by itself. `tiles.h` has the one inner
loop of all products here, `loss.c`, `products.c` and `attention.c` what they are part of. They compute in fp32 as
PyTorch's do, and their bits do not depend on the number of threads.
"""

from __future__ import annotations

from itertools import chain

import torch

from engine import trial
from engine.errors import first_line
from engine.native import attention, layers, loss
from engine.native.attention import attend
from engine.native.layers import linear, multiply, perceptron
from engine.native.library import compiler, loaded, suits
from engine.native.loss import piece

__all__ = ["VERSION", "attend", "compiler", "linear", "multiply", "perceptron", "piece", "suits", "why_not"]

TOLERANCE = 1e-5  # of a result's norm: some times what fp32 rounds
VERSION = 1  # of what they round: one more whenever a change of theirs changes a last bit


def why_not(device: torch.device) -> str:
    """Compile and try them, as `engine.trial.why_not`; "" when they can be used."""
    if not suits():
        return "they are made for Linux on x86-64 with AVX2."
    try:
        loaded()
    except RuntimeError as error:  # no GCC, or one that fails, be it for want of memory: this process has its own
        return str(error)[:200]
    except Exception as error:
        return first_line(error)

    def beside_pytorch() -> trial.Pairs:
        return chain(attention.beside_pytorch(), layers.beside_pytorch(), loss.beside_pytorch())

    return trial.why_not(beside_pytorch, device, TOLERANCE)
