"""Corpora: texts with names, and their tokens.

`registry` and `known` say which there are and where they come from, `download`, `prepare` and `add` get them, `tokens`
turns one into a cached array of token ids, `statistics` and `ladder` measure it, and `jobs` does it in the background.
"""

from engine.corpora.registry import Corpus, find_corpus, list_corpora
from engine.corpora.tokens import TokenizedCorpus, open_tokens

__all__ = ["Corpus", "TokenizedCorpus", "find_corpus", "list_corpora", "open_tokens"]
