"""Corpora: texts with names, and their tokens.

`registry` says which there are, `tokens` turns one into a cached array of token ids.
"""

from engine.corpora.registry import Corpus, find_corpus, list_corpora
from engine.corpora.tokens import TokenizedCorpus, open_tokens

__all__ = ["Corpus", "TokenizedCorpus", "find_corpus", "list_corpora", "open_tokens"]
