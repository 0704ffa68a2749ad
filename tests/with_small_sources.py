"""Run a command of the project against `tests.web`, with the registry's sizes and hashes set to what that serves.

python -m tests.web --port 8400 &
python tests/with_small_sources.py http://127.0.0.1:8400 -m engine.download_corpora tinystories
python tests/with_small_sources.py http://127.0.0.1:8400 -m streamlit run app/Home.py
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import requests

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.corpora import known
from engine.corpora.registry import Corpus
from engine.corpora.sources import Books, HubFile, Normalized, WebFile


def smaller(corpus: Corpus, facts: Mapping[str, Mapping[str, Any]]) -> Corpus:
    """A registry's entry with the facts of `web.fill`; others are as they were."""
    origin = corpus.origin
    if isinstance(origin, HubFile) and corpus.name in facts:
        origin = replace(origin, **facts[corpus.name])
        return replace(corpus, origin=origin, size=0 if origin.column else origin.size)
    if isinstance(origin, WebFile) and corpus.name in facts:
        return replace(corpus, origin=replace(origin, **facts[corpus.name]), size=facts[corpus.name]["size"])
    if isinstance(origin, Books | Normalized):
        split = corpus.name.split("_")[1]
        return replace(corpus, size=facts[f"pg19_{split}"]["size"])
    return corpus


def shrink(facts: Mapping[str, Mapping[str, Any]], set_attribute: Callable[[object, str, object], None]) -> None:
    """Replace the registry; `set_attribute` is `setattr`, or a test's `monkeypatch.setattr`."""
    set_attribute(known, "KNOWN", tuple(smaller(corpus, facts) for corpus in known.KNOWN))


def main() -> None:
    """`URL -m MODULE [ARGUMENT ...]`"""
    if len(sys.argv) < 4 or sys.argv[2] != "-m":
        sys.exit("usage: python tests/with_small_sources.py URL -m MODULE [ARGUMENT ...]")
    served = requests.get(f"{sys.argv[1].rstrip('/')}/small-sources.json", timeout=10).json()
    os.environ.update(served["environment"])
    shrink(served["facts"], setattr)
    sys.argv = sys.argv[3:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
