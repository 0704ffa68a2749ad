"""GPT-2's byte pairs, from the vocabulary that ships with the lab: no network, ever.

The ids are those of tiktoken's `gpt2` encoding. Any text goes in and comes back unchanged; text that happens to spell
`<|endoftext|>` is encoded as those characters, never as the special token.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import re

import numpy as np
import tiktoken
from numpy.typing import NDArray

from engine.config import VOCABULARY_SIZE
from engine.errors import LabError
from engine.paths import ASSETS

NAME = "gpt2"
END_OF_TEXT = 50256
MARK = "<|endoftext|>"

VOCABULARY_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"

# How text is cut before byte pairs are merged: contractions, words with their leading blank, numbers, other signs,
# white space. Published with GPT-2 (openai/gpt-2, src/encoder.py); possessive quantifiers as in
# tiktoken only make it faster.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


@functools.cache
def encoding() -> tiktoken.Encoding:
    """The encoding; loaded once.

    Raises:
        LabError: the shipped vocabulary is missing or was changed.
    """
    path = ASSETS / "gpt2.tiktoken"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LabError(f"The vocabulary {path} cannot be read; restore it from the project.") from error
    if hashlib.sha256(content).hexdigest() != VOCABULARY_SHA256:
        raise LabError(f"The vocabulary {path} was changed or damaged; restore it from the project.")
    # Read here and not by tiktoken's loader, which would go through a download cache outside of the project.
    pairs = (line.split() for line in content.splitlines())
    ranks = {base64.b64decode(piece): int(rank) for piece, rank in pairs}
    return tiktoken.Encoding(
        NAME,
        pat_str=PATTERN,
        mergeable_ranks=ranks,
        special_tokens={MARK: END_OF_TEXT},
        explicit_n_vocab=VOCABULARY_SIZE,
    )


def encode(text: str) -> list[int]:
    """The ids of a text; special tokens are not recognised in it."""
    return encoding().encode_ordinary(text)


# tiktoken gives up on a million white-space characters in a row. They are one match of the pattern, but for the last of
# them when something follows. These are the characters that the pattern's \\s stands for.
_LONG_SPACE = re.compile(r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]{500000,}")


def encode_array(text: str) -> NDArray[np.uint16]:
    """The ids of a text of any length as an array, without the detour of a list.

    Args:
        text: without halves of surrogate pairs.
    """
    if len(text) > 500_000 and (run := _LONG_SPACE.search(text)):
        end = run.end() - (run.end() < len(text))
        middle = np.array(encoding()._encode_single_piece(text[run.start() : end].encode()), dtype=np.uint16)
        return np.concatenate([encode_array(text[: run.start()]), middle, encode_array(text[end:])])
    return encoding().encode_to_numpy(text, disallowed_special=()).astype(np.uint16)


def decode(ids: list[int]) -> str:
    """The text of ids; a character cut in two at either end becomes U+FFFD."""
    return encoding().decode(ids)


_VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"})


def show(token: int) -> str:
    """A token for people: "␣the" with its blank made visible.

    Bytes that are no whole character of UTF-8, and characters that cannot be seen, are shown in hex: "<E2 80>".
    """
    # Invalid bytes become lone surrogates, which are not printable either.
    text = encoding().decode_single_token_bytes(token).decode("utf-8", "surrogateescape").translate(_VISIBLE)
    parts = []
    for printable, characters in itertools.groupby(text, str.isprintable):
        part = "".join(characters)
        parts.append(part if printable else f"<{part.encode('utf-8', 'surrogateescape').hex(' ').upper()}>")
    return "".join(parts)
