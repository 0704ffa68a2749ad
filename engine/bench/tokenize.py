"""How fast a corpus becomes tokens: the product's own way, beside tiktoken alone."""

from __future__ import annotations

import time
from dataclasses import dataclass

from engine.corpora.encode import Encoder
from engine.corpora.progress import Progress
from engine.corpora.registry import find_corpus
from engine.corpora.tokens import not_here
from engine.environment import default_threads
from engine.errors import CorpusError
from engine.tokenizer import encoding

PART = 4 * 2**20  # bytes of the corpus that tiktoken alone is measured on


@dataclass(frozen=True)
class TokenizingSpeed:
    """What was measured.

    Attributes:
        tokens: that were made, again and again if the corpus is small.
        tokens_per_s: with reading, checking and hashing the file, on all cores.
        tiktoken_tokens_per_s: of tiktoken on one core, with a text from the same file that is in memory already.
        cores: that were used.
    """

    tokens: int
    tokens_per_s: float
    tiktoken_tokens_per_s: float
    cores: int

    @property
    def utilization(self) -> float:
        """Share of what tiktoken alone would do on all cores."""
        return self.tokens_per_s / (self.tiktoken_tokens_per_s * self.cores)


def measure_tokenizing(name: str, seconds: float = 10.0) -> TokenizingSpeed:
    """Tokenize a corpus for about so many seconds; nothing is written.

    Raises:
        CorpusError: there is no such corpus, or it is not here.
    """
    corpus = find_corpus(name)
    if not corpus.is_here:
        raise CorpusError(not_here(corpus))
    encoding()  # loaded once, not part of the measure
    tokens, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for ids in Encoder(corpus, Progress()).run():
            tokens += len(ids)
            if time.perf_counter() - began >= seconds:
                break
    took = time.perf_counter() - began
    with corpus.path.open("rb") as file:
        text = file.read(PART).decode("utf-8", "ignore")
    return TokenizingSpeed(tokens, tokens / took, _tiktoken_rate(text, seconds / 4), default_threads())


def _tiktoken_rate(text: str, seconds: float) -> float:
    tokens, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        tokens += len(encoding().encode_to_numpy(text, disallowed_special=()))
    return tokens / (time.perf_counter() - began)
