"""What was measured on a corpus, kept as JSON beside its tokens so that it is computed once."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from engine.corpora.tokens import tokens_dir
from engine.files import read_json, write_json

T = TypeVar("T")

_SHA256 = re.compile(r"[0-9a-f]{64}")


def short(sha256: str) -> str | None:
    """The part of a hash that names files; None when it is no hash, as a foreign file may hold anything."""
    return sha256[:16] if isinstance(sha256, str) and _SHA256.fullmatch(sha256) else None


def read(name: str, number: int, parse: Callable[[dict[str, Any]], T]) -> T | None:
    """What was kept under `name`; None when there is nothing, or it is damaged or of another format.

    Args:
        name: of the file, without its suffix.
        number: of the format.
        parse: makes the value from its JSON object; may raise KeyError, TypeError or ValueError.
    """
    content = read_json(_path(name))
    if content is None or content.get("format") != number:
        return None
    try:
        return parse(content)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def write(name: str, number: int, value: dict[str, Any]) -> None:
    """Keep `value`. When the disk refuses, nothing is lost but the time to compute it once more."""
    with contextlib.suppress(OSError):
        tokens_dir().mkdir(parents=True, exist_ok=True)
        write_json(_path(name), {"format": number} | value)


def _path(name: str) -> Path:
    return tokens_dir() / f"{name}.json"
