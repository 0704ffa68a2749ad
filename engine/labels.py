"""What people say about a run: its name, notes and tags, and whether it has a star.

They are in `labels.json` beside `run.json`, which the process that trains the run rewrites every few seconds: neither
loses what the other wrote. What is there wins over what the run was started with.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.errors import ConfigError, Problem, RunError, storage_sentence
from engine.files import one_at_a_time, read_json, write_json

LABELS_FILE = "labels.json"
MAX_NAME = 120  # characters
MAX_NOTES = 4000
MAX_TAGS = 20
MAX_TAG = 40
_MISREAD = {"Cc", "Cs", "Zl", "Zp"}  # control characters, halves of characters, separators of lines and paragraphs
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # letters and signs by their category, but without ink
_REORDER = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}  # make a text look like another one


def read_labels(folder: Path) -> dict[str, Any]:
    """The labels that are set, of `name`, `notes`, `tags` and `starred`; whatever is damaged is left out."""
    found: dict[str, Any] = {}
    for label, value in (read_json(folder / LABELS_FILE) or {}).items():
        if label in _CLEAN:
            try:
                found[label] = _CLEAN[label](value)
            except ValueError:
                continue
    return found


def write_labels(folder: Path, changes: Mapping[str, Any]) -> None:
    """Change some labels of the run in `folder` and keep the others, also those that somebody else changes meanwhile.

    Args:
        folder: of the run.
        changes: label -> new value; `name` and `notes` are texts, `tags` a list of texts, `starred` is a bool.

    Raises:
        ConfigError: values that are too long, or hold characters that no one can see; all of them together.
        RunError: the folder cannot be written.
    """
    change_labels(folder, lambda: changes)


def change_labels(folder: Path, change: Callable[[], Mapping[str, Any]]) -> None:
    """Like `write_labels`, for changes that are made from what the labels are.

    Args:
        folder: of the run.
        change: returns the changes; nobody else changes the labels before they are written.
    """
    try:
        with one_at_a_time(folder):
            write_json(folder / LABELS_FILE, read_labels(folder) | _cleaned(change()))
    except OSError as error:
        raise RunError(storage_sentence(error, folder)) from error


def _cleaned(changes: Mapping[str, Any]) -> dict[str, Any]:
    cleaned: dict[str, Any] = {}
    problems = []
    for label, value in changes.items():
        try:
            cleaned[label] = _CLEAN[label](value)
        except ValueError as error:
            problems.append(Problem(label, str(error)))
    if problems:
        raise ConfigError(problems)
    return cleaned


def showable(text: str) -> str:
    """A text of a foreign file without what no encoding can carry, such as half characters."""
    return text.encode("utf-8", "replace").decode()


def _text(value: Any, longest: int, *, lines: bool = False) -> str:
    """The text without blanks around it.

    Raises:
        ValueError: it is none, is too long, or holds what must not be in it.
    """
    if not isinstance(value, str):
        raise ValueError("must be a text.")
    text = "\n".join(value.splitlines()).strip() if lines else value.strip()
    if len(text) > longest:
        raise ValueError(f"has {len(text):,} characters; at most {longest:,} are possible.")
    for sign in text:
        if (unicodedata.category(sign) in _MISREAD and not (lines and sign in "\n\t")) or ord(sign) in _REORDER:
            raise ValueError(f"holds a character that cannot be shown (U+{ord(sign):04X}). Type it anew without it.")
    return text


def _name(value: Any) -> str:
    text = _text(value, MAX_NAME)
    if not text:
        raise ValueError("must not be empty.")
    if not _is_seen(text):
        raise ValueError("has nothing in it that can be seen.")
    return text


def _is_seen(text: str) -> bool:
    """Whether something of it leaves ink: no name may be only blanks, joiners and marks of direction."""
    return any(unicodedata.category(sign)[0] not in "CMZ" and sign not in _BLANK for sign in text)


def _notes(value: Any) -> str:
    return _text(value, MAX_NOTES, lines=True)


def _tags(value: Any) -> list[str]:
    if not isinstance(value, list | tuple):
        raise ValueError("must be a list of texts.")
    tags: dict[str, str] = {}
    for entry in value:
        try:
            tag = _text(entry, MAX_TAG)
        except ValueError as error:
            raise ValueError(f"has a tag that cannot be used: it {error}") from error
        if _is_seen(tag):
            tags.setdefault(tag.casefold(), tag)  # "Best" and "best" are one tag
    if len(tags) > MAX_TAGS:
        raise ValueError(f"has {len(tags)} tags; at most {MAX_TAGS} are possible.")
    return list(tags.values())


def _starred(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false.")
    return value


_CLEAN: dict[str, Callable[[Any], Any]] = {"name": _name, "notes": _notes, "tags": _tags, "starred": _starred}
