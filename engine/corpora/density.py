"""How many bytes of text a token stands for, which turns a loss a token into bits a byte.

A loss per byte can be held against that of a model with other tokens; a loss per token cannot.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine import tokenizer
from engine.config import VOCABULARY_SIZE
from engine.corpora.ladder import spread
from engine.corpora.registry import find_corpus
from engine.corpora.tokens import cached_facts, tokens_dir
from engine.data import split
from engine.errors import LabError

MOST_COUNTED = 1_000_000  # tokens; of a larger text, blocks that are spread over it


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """The loss in bits for each byte of the text."""
    return nats_per_token / bytes_per_token / math.log(2)


def bytes_per_token(name: str, sha256: str, last_share: float = 1.0) -> float | None:
    """Bytes of UTF-8 for each token of a corpus; a separator of documents is a token that stands for none.

    Args:
        name: of the corpus.
        sha256: of the text that is meant.
        last_share: how much of its tokens, at its end, to look at.

    Returns:
        None when the tokens of this very text are not here.
    """
    try:
        facts = cached_facts(find_corpus(name))
        if facts is None or facts["source_sha256"] != sha256 or not 0 < last_share <= 1:
            return None
        return _measure(tokens_dir() / facts["tokens_file"], last_share)
    except (LabError, OSError, ValueError):
        return None


@lru_cache(maxsize=64)  # the file's name has the text's hash in it
def _measure(path: Path, last_share: float) -> float | None:
    tokens = np.memmap(path, dtype=np.uint16, mode="r")
    part = split(tokens, last_share)[1]
    blocks = spread(part, MOST_COUNTED)
    size = sum(int(_sizes()[block].sum()) for block in blocks)
    return size / sum(map(len, blocks)) if size else None


@cache
def _sizes() -> NDArray[np.int64]:
    """Bytes of every token, (vocabulary,)."""
    encoding = tokenizer.encoding()
    sizes = [len(encoding.decode_single_token_bytes(token)) for token in range(VOCABULARY_SIZE)]
    sizes[tokenizer.END_OF_TEXT] = 0
    return np.array(sizes, dtype=np.int64)
