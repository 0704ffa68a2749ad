"""Every corpus of the registry: fetched from local servers, verified, prepared, tokenized, and trained on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine import environment, step
from engine.config import TrainConfig
from engine.corpora import find_corpus, known, open_tokens
from engine.corpora.download import download
from engine.corpora.progress import Progress
from engine.run import ActiveRun
from engine.start import new_run
from engine.tokenizer import END_OF_TEXT
from tests.mediawiki import MediaWiki, serving
from tests.web import Web, fill
from tests.with_small_sources import shrink

TITLES = [f"Lighthouse {number}" for number in range(30)]
INTRODUCTION = (
    "{0} is a lighthouse on the northern coast. It was built of granite by the harbour board and first lit in 1871. "
    "Its keepers recorded the weather every three hours for more than a century, and their books are still read."
)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A corpora folder of this module, and servers for all that may be fetched into it."""
    folder = tmp_path_factory.mktemp("every") / "corpora"
    folder.mkdir()
    wiki = MediaWiki(
        {"Category:Good articles": TITLES[:20], "Category:Featured articles": TITLES[15:]},
        {title: INTRODUCTION.format(title) for title in TITLES},
    )
    with Web() as web, serving(wiki), pytest.MonkeyPatch.context() as patch:
        facts = fill(web, 200_000)
        shrink(facts, patch.setattr)
        for name, value in (web.environment | {"LAB_WIKIPEDIA_API": wiki.address}).items():
            patch.setenv(name, value)
        yield folder


def take_a_step(run: ActiveRun) -> dict[str, float]:
    """One optimizer step, without what a whole run writes."""
    state = step.prepare(run)
    rows = [row for _ in range(2) for row in step.train_step(state, wait=True)]
    run.close()
    return rows[-1]


@pytest.mark.usefixtures("small_nano")
@pytest.mark.parametrize("name", [corpus.name for corpus in known.KNOWN])
def test_it_can_be_had_and_trained_on(name: str, corpora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_CORPORA", str(corpora))
    for wanted in filter(None, (find_corpus(name).validation, name)):
        corpus = find_corpus(wanted)
        if corpus.origin is not None:
            download(corpus, Progress())
        assert corpus.is_here
    tokenized = open_tokens(name)
    ends = np.count_nonzero(tokenized.tokens == END_OF_TEXT)
    if corpus.mode == "text":
        assert (ends, tokenized.documents) == (0, 1)
    else:
        assert tokenized.documents > 4 and ends in (tokenized.documents - 1, tokenized.documents)
    config = TrainConfig(
        corpus=name, context_length=32, batch_size=1, max_steps=2, threads=environment.default_threads()
    )
    run = new_run(config)
    assert run.config.val_corpus == corpus.validation
    row = take_a_step(run)
    assert row["step"] == 2 and 5 < row["train_loss"] < math.log(50257) + 1
