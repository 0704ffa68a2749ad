"""What the scripts that measure in parts share."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

Part = Callable[[argparse.Namespace], Iterator[dict[str, Any]]]


def print_found(parts: Mapping[str, Part], options: argparse.Namespace) -> None:
    """Measure the parts that `options` ask for, print each finding as it comes, and leave no runs behind."""
    try:
        for part in options.parts:
            for found in parts[part](options):
                print(json.dumps({"torch": torch.__version__, "part": part, "found": found}), flush=True)
    finally:
        shutil.rmtree(os.environ["LAB_RUNS"], ignore_errors=True)
