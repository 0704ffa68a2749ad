"""Whether this machine can compile `engine.native`: tests that need it are skipped where it cannot, and say why."""

import pytest
import torch

from engine import native

_reason = native.why_not(torch.device("cpu"))
needs_native = pytest.mark.skipif(bool(_reason), reason=f"the CPU's kernels cannot be compiled here: {_reason}")
