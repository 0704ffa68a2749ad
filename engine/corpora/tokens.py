"""The token cache: a corpus as one array of ids on disk, and a manifest that says from what it was made.

A text is read, tokenized and written piece by piece, on all cores and in bounded memory, whatever its size. The array
is replaced when the text changed, never rewritten in place: a training run that has the old one mapped goes on reading
the old one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine import tokenizer
from engine.corpora.encode import Encoder
from engine.corpora.progress import Progress
from engine.corpora.registry import Corpus, find_corpus
from engine.errors import CorpusError, storage_sentence
from engine.files import FolderLock, fsync_folder, read_json, remove_parts, require_space, write_json
from engine.paths import corpora_dir

FORMAT = 2  # of the manifest; another number means: make it anew
_FIELDS = {
    "source_sha256": str,
    "source_bytes": int,
    "source_mtime_ns": int,
    "characters": int,
    "tokens": int,
    "documents": int,
    "tokens_file": str,
    "tokens_sha256": str,
    "tokens_mtime_ns": int,
}


@dataclass(frozen=True)
class TokenizedCorpus:
    """A corpus, ready for training.

    Attributes:
        name: of the corpus.
        tokens: ids, uint16, one dimension, mapped from disk; `tokenizer.END_OF_TEXT` stands between documents.
        source_sha256: of the text file; a run remembers it, so that a resume notices another text.
        characters, source_bytes: size of the text.
        documents: how many the text consists of.
    """

    name: str
    tokens: NDArray[np.uint16]
    source_sha256: str
    characters: int
    source_bytes: int
    documents: int

    @property
    def prompt(self) -> str:
        """What samples begin with, unless the settings say otherwise."""
        return find_corpus(self.name).prompt


def open_tokens(name: str, progress: Progress | None = None) -> TokenizedCorpus:
    """The tokens of a corpus, from the cache when the text is still the one it was made from.

    Another process that is tokenizing the same corpus is waited for.

    Raises:
        CorpusError: there is no such corpus, or it is not here, cannot be read, is not UTF-8 text, or is empty.
        CancelledError: through `progress`; nothing is left behind.
    """
    corpus, progress = find_corpus(name), progress or Progress()
    if not corpus.is_here:
        raise CorpusError(not_here(corpus))
    cache = tokens_dir()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        cached = _open_cache(cache, corpus)
        if cached is not None:
            return cached
        lock = FolderLock(cache / f"{corpus.name}.lock")
        if not lock.acquire(patience_s=0.1):
            progress.begin(f"Waiting for another process that tokenizes {corpus.title}")
            while not lock.acquire(patience_s=0.5):
                progress.check()
        try:
            return _open_cache(cache, corpus) or _build(cache, corpus, progress)
        finally:
            lock.release()
    except OSError as error:
        path = Path(error.filename) if error.filename else corpus.path
        raise CorpusError(f"Corpus {corpus.name}: {storage_sentence(error, path)}") from error


def tokens_dir() -> Path:
    """Where the caches are."""
    return corpora_dir() / ".tokens"


def not_here(corpus: Corpus) -> str:
    """What to say of a corpus whose file is missing."""
    if corpus.origin is None:
        return f"Corpus {corpus.name}: {corpus.path} is missing. Put it back."
    return (
        f"Corpus {corpus.name} is not downloaded yet. Download it on the Corpora page, or with "
        f"`python -m engine.download_corpora {corpus.name}`."
    )


def cached_facts(corpus: Corpus) -> dict[str, Any] | None:
    """The manifest of a cache that looks current, at the price of two looks at files; None when there is none.

    Its keys are `tokens`, `documents`, `characters`, `source_bytes`, `source_sha256` and more.
    """
    manifest = _read_manifest(tokens_dir(), corpus)
    if manifest is None:
        return None
    try:
        stat, size = corpus.path.stat(), (tokens_dir() / manifest["tokens_file"]).stat().st_size
    except OSError:
        return None
    if (manifest["source_bytes"], manifest["source_mtime_ns"]) != (stat.st_size, stat.st_mtime_ns):
        return None
    return manifest if size == 2 * manifest["tokens"] else None


def _read_manifest(cache: Path, corpus: Corpus) -> dict[str, Any] | None:
    """The manifest, when it is whole and of this format, tokenizer and mode."""
    manifest = read_json(cache / f"{corpus.name}.json") or {}
    if (manifest.get("format"), manifest.get("tokenizer")) != (FORMAT, tokenizer.NAME):
        return None
    if manifest.get("mode") != corpus.mode or any(type(manifest.get(f)) is not kind for f, kind in _FIELDS.items()):
        return None
    return manifest if manifest["tokens"] > 0 and is_tokens_file(corpus, manifest["tokens_file"]) else None


def is_tokens_file(corpus: Corpus, name: str) -> bool:
    """Whether it is the name of a file with this corpus's tokens."""
    return re.fullmatch(re.escape(corpus.name) + r"-[0-9a-f]{16}\.uint16", name) is not None


def _open_cache(cache: Path, corpus: Corpus) -> TokenizedCorpus | None:
    """The cached corpus, or None when it is missing, damaged, or was made from another text.

    Time stamps spare reading: a touched but unchanged file, be it the text or the tokens, is recognised by its hash.
    """
    manifest = _read_manifest(cache, corpus)
    if manifest is None:
        return None
    source, tokens = corpus.path, cache / manifest["tokens_file"]
    try:
        now, made = source.stat(), tokens.stat()
        if (now.st_size, made.st_size) != (manifest["source_bytes"], 2 * manifest["tokens"]):
            return None
        touched = {}
        for key, stat, path in (("source", now, source), ("tokens", made, tokens)):
            if stat.st_mtime_ns != manifest[f"{key}_mtime_ns"]:
                if _sha256(path) != manifest[f"{key}_sha256"]:
                    return None
                touched[f"{key}_mtime_ns"] = stat.st_mtime_ns
        mapped = np.memmap(tokens, dtype=np.uint16, mode="r")
    except FileNotFoundError:  # replaced since by another process
        return None
    if touched:
        with contextlib.suppress(OSError):
            write_json(cache / f"{corpus.name}.json", manifest | touched)
    return _tokenized(corpus, mapped, manifest)


def _tokenized(corpus: Corpus, mapped: NDArray[np.uint16], facts: dict[str, Any]) -> TokenizedCorpus:
    sizes = facts["characters"], facts["source_bytes"], facts["documents"]
    return TokenizedCorpus(corpus.name, mapped, facts["source_sha256"], *sizes)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _build(cache: Path, corpus: Corpus, progress: Progress) -> TokenizedCorpus:
    stat = corpus.path.stat()  # before the text is read: a change meanwhile makes the cache stale, not wrong
    require_space(cache, round(0.6 * stat.st_size), f"the tokens of {corpus.title}")
    remove_parts(cache / f"{corpus.name}.uint16")
    progress.begin(f"Tokenizing {corpus.title}", stat.st_size)
    encoder = Encoder(corpus, progress)
    part = cache / f".{corpus.name}.uint16.{secrets.token_hex(4)}.part"
    tokens_hash = hashlib.sha256()
    count = 0
    try:
        with part.open("wb", buffering=0) as file:
            for ids in encoder.run():
                content = memoryview(ids.tobytes())
                tokens_hash.update(content)
                count += len(ids)
                while content:  # an unbuffered write may take a part only
                    content = content[file.write(content) :]
            os.fsync(file.fileno())
        if encoder.blank:
            raise CorpusError(f"{corpus.path} is empty. Put some text into it.")
        digest = encoder.source_sha256
        tokens = cache / f"{corpus.name}-{digest[:16]}.uint16"
        part.replace(tokens)
        fsync_folder(cache)
    finally:
        part.unlink(missing_ok=True)
    facts = {
        "format": FORMAT,
        "corpus": corpus.name,
        "tokenizer": tokenizer.NAME,
        "mode": corpus.mode,
        "source_bytes": encoder.source_bytes,
        "source_mtime_ns": stat.st_mtime_ns,
        "source_sha256": digest,
        "characters": encoder.characters,
        "tokens": count,
        "documents": encoder.documents,
        "tokens_file": tokens.name,
        "tokens_sha256": tokens_hash.hexdigest(),
        "tokens_mtime_ns": tokens.stat().st_mtime_ns,
    }
    try:
        write_json(cache / f"{corpus.name}.json", facts)
    except BaseException:
        tokens.unlink(missing_ok=True)  # nobody would find them, and a full disk needs the room
        raise
    for old in cache.glob("*.uint16"):
        if old != tokens and is_tokens_file(corpus, old.name):
            old.unlink(missing_ok=True)  # whoever has it mapped keeps reading it
    return _tokenized(corpus, np.memmap(tokens, dtype=np.uint16, mode="r"), facts)
