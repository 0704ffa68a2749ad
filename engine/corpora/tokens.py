"""The token cache: a corpus as one array of ids on disk, and a manifest that says from what it was made.

The array is replaced when the text changed, never rewritten in place: a training run that has the old one mapped goes
on reading the old one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine import tokenizer
from engine.corpora.registry import find_corpus
from engine.errors import CorpusError, storage_sentence
from engine.files import FolderLock, read_json, write_atomic, write_json
from engine.paths import corpora_dir

_FIELDS = {"source_sha256", "source_bytes", "source_mtime_ns", "characters", "tokens", "tokens_file"}
FORMAT = 1  # of the manifest; another number means: make it anew


@dataclass(frozen=True)
class TokenizedCorpus:
    """A corpus, ready for training.

    Attributes:
        name: of the corpus.
        tokens: ids, uint16, one dimension, mapped from disk.
        source_sha256: of the text file; a run remembers it, so that a resume notices another text.
        characters, source_bytes: size of the text.
    """

    name: str
    tokens: NDArray[np.uint16]
    source_sha256: str
    characters: int
    source_bytes: int

    @property
    def prompt(self) -> str:
        """What samples begin with, unless the settings say otherwise."""
        return find_corpus(self.name).prompt


def open_tokens(name: str) -> TokenizedCorpus:
    """The tokens of a corpus, from the cache when the text is still the one it was made from.

    Raises:
        CorpusError: there is no such corpus, or it cannot be read, or it is not UTF-8 text, or it is empty.
    """
    source = find_corpus(name).path
    cache = corpora_dir() / ".tokens"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        cached = _open_cache(cache, name, source)
        if cached is not None:
            return cached
        lock = FolderLock(cache / f"{name}.lock")
        lock.acquire(patience_s=600)  # whoever comes second finds the cache made
        try:
            return _open_cache(cache, name, source) or _build(cache, name, source)
        finally:
            lock.release()
    except OSError as error:
        path = Path(error.filename) if error.filename else source
        raise CorpusError(f"Corpus {name}: {storage_sentence(error, path)}") from error


def _open_cache(cache: Path, name: str, source: Path) -> TokenizedCorpus | None:
    """The cached corpus, or None when it is missing, damaged, or was made from another text."""
    manifest = read_json(cache / f"{name}.json")
    stat = source.stat()
    if manifest is None or not manifest.keys() >= _FIELDS or not _is_current(manifest, source, stat):
        return None
    path = cache / str(manifest["tokens_file"])
    if path.parent != cache or not path.is_file() or path.stat().st_size != 2 * manifest["tokens"]:
        return None
    try:
        tokens = np.memmap(path, dtype=np.uint16, mode="r")
    except FileNotFoundError:  # replaced since by another process
        return None
    _remember_time(cache / f"{name}.json", manifest, stat.st_mtime_ns)
    return TokenizedCorpus(name, tokens, manifest["source_sha256"], manifest["characters"], manifest["source_bytes"])


def _is_current(manifest: dict[str, Any], source: Path, stat: os.stat_result) -> bool:
    if (manifest.get("format"), manifest.get("tokenizer")) != (FORMAT, tokenizer.NAME):
        return False
    if manifest.get("source_bytes") != stat.st_size:
        return False
    # The time stamp spares reading the file; a touched but unchanged file is recognised by its hash.
    return manifest.get("source_mtime_ns") == stat.st_mtime_ns or manifest.get("source_sha256") == _sha256(source)


def _remember_time(path: Path, manifest: dict[str, Any], mtime_ns: int) -> None:
    """Note a touched text's new time stamp, so that it is not hashed at every opening."""
    if manifest["source_mtime_ns"] != mtime_ns:
        with contextlib.suppress(OSError):
            write_json(path, manifest | {"source_mtime_ns": mtime_ns})


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)  # numpy's own tofile hides why a disk refuses


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _build(cache: Path, name: str, source: Path) -> TokenizedCorpus:
    mtime_ns = source.stat().st_mtime_ns  # read before the text: a change meanwhile makes the cache stale, not wrong
    raw = source.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{source} is not UTF-8 text (byte {error.start:,}). Save it as UTF-8.") from error
    if not text.strip():
        raise CorpusError(f"{source} is empty. Put some text into it.")
    ids = np.array(tokenizer.encode(text), dtype=np.uint16)
    digest = hashlib.sha256(raw).hexdigest()
    tokens_file = f"{name}-{digest[:16]}.uint16"
    write_atomic(cache / tokens_file, lambda temporary: _write_bytes(temporary, ids.tobytes()))
    write_json(
        cache / f"{name}.json",
        {
            "format": FORMAT,
            "corpus": name,
            "tokenizer": tokenizer.NAME,
            "source_bytes": len(raw),
            "source_mtime_ns": mtime_ns,
            "source_sha256": digest,
            "characters": len(text),
            "tokens": len(ids),
            "tokens_file": tokens_file,
        },
    )
    for old in cache.glob("*.uint16"):
        if old.name != tokens_file and re.fullmatch(re.escape(name) + r"-[0-9a-f]{16}\.uint16", old.name):
            old.unlink(missing_ok=True)  # whoever has it mapped keeps reading it
    return TokenizedCorpus(name, np.memmap(cache / tokens_file, dtype=np.uint16, mode="r"), digest, len(text), len(raw))
