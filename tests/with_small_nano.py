"""Run a module with nano cut down to one narrow layer; all else is as it is.

python tests/with_small_nano.py -m engine.train --corpus tiny --max-steps 8
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import engine.config


def shrink_nano(set_attribute: Callable[[Any, str, Any], None]) -> None:
    """Replace the preset in this process: what is tested with it is the same, and ten times quicker.

    Args:
        set_attribute: `setattr`, or a test's `monkeypatch.setattr`.
    """
    small = engine.config.Preset(1, 2, 16, 256, 2e-3, "tests")
    set_attribute(engine.config, "PRESETS", {**engine.config.PRESETS, "nano": small})


def main() -> None:
    """`-m MODULE [ARGUMENT ...]`"""
    if len(sys.argv) < 3 or sys.argv[1] != "-m":
        sys.exit("usage: python tests/with_small_nano.py -m MODULE [ARGUMENT ...]")
    shrink_nano(setattr)
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
