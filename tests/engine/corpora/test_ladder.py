"""engine.corpora.ladder: exact distributions, equal to a slow and plain implementation, honest about samples."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.corpora import ladder as ladder_module
from engine.corpora import open_tokens
from engine.corpora.ladder import (
    KneserNey,
    Ladder,
    cached_ladder,
    ladder_of,
    measure_ladder,
    ngrams,
    spread,
)
from engine.corpora.progress import CancelledError, Progress
from engine.corpora.tokens import TokenizedCorpus

V = 5
IDS = st.integers(0, V - 1)
TEXTS = st.lists(IDS, max_size=80) | st.text("ab", max_size=40).map(lambda s: [ord(c) - ord("a") for c in s])


def array(ids: list[int]) -> NDArray[np.uint16]:
    return np.array(ids, dtype=np.uint16)


def losses(ladder: Ladder | None) -> dict[str, float]:
    assert ladder is not None
    return {rung.name: rung.loss for rung in ladder.rungs}


# ------------------------------------------------------------------------------------- the slow implementation


def observe(ids: list[int], order: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(ids[i : i + order]) for i in range(len(ids) - order + 1))


def lower_counts(counts: Counter[tuple[int, ...]]) -> Counter[tuple[int, ...]]:
    """In how many different n-grams each shorter one is the end."""
    return Counter(ngram[1:] for ngram in counts)


def slow_kneser_ney(counts: Counter[tuple[int, ...]], context: tuple[int, ...], token: int, vocabulary: int) -> float:
    """As the formulas are written: one probability, by recursion over the orders."""
    lower = (
        slow_kneser_ney(lower_counts(counts), context[1:], token, vocabulary)
        if context
        else 1 / vocabulary  # below the unigrams is the uniform distribution
    )
    followers = {ngram[-1]: count for ngram, count in counts.items() if ngram[:-1] == context}
    if not followers:
        return lower
    n1 = sum(count == 1 for count in counts.values())
    n2 = sum(count == 2 for count in counts.values())
    discount = n1 / (n1 + 2 * n2) if n1 else 0.5
    total = sum(followers.values())
    discounted = max(followers.get(token, 0) - discount, 0) / total
    return discounted + discount * len(followers) / total * lower


@given(train=TEXTS, validation=TEXTS.filter(lambda ids: len(ids) > 2))
def test_losses_are_those_of_the_slow_implementation(train: list[int], validation: list[int]) -> None:
    found = losses(measure_ladder(array(train), array(validation), vocabulary=V))
    triples = [tuple(validation[i - 2 : i + 1]) for i in range(2, len(validation))]

    def mean(probability) -> float:
        return -sum(math.log(probability(*triple)) for triple in triples) / len(triples)

    assert found["uniform"] == pytest.approx(math.log(V))
    ones, pairs, threes = (observe(train, order) for order in (1, 2, 3))
    assert found["unigram"] == pytest.approx(mean(lambda a, b, c: slow_kneser_ney(ones, (), c, V)))
    assert found["bigram"] == pytest.approx(mean(lambda a, b, c: slow_kneser_ney(pairs, (b,), c, V)))
    assert found["trigram"] == pytest.approx(mean(lambda a, b, c: slow_kneser_ney(threes, (a, b), c, V)))


@given(blocks=st.lists(TEXTS, min_size=1, max_size=3), order=st.integers(1, 3))
def test_probabilities_sum_to_one_after_every_context_seen_or_not(blocks: list[list[int]], order: int) -> None:
    model = KneserNey(ngrams([array(b) for b in blocks], order, V), order, V)
    p = model.probabilities(np.arange(V**order)).reshape(-1, V)  # a row for each context
    assert p.min() > 0
    assert p.sum(axis=1) == pytest.approx(np.ones(len(p)))


def test_the_largest_ids_do_not_overflow() -> None:
    """Three tokens of the real vocabulary fit in one integer; the same text with other names has the same losses."""
    small = np.random.default_rng(0).integers(0, 4, 300)
    names = np.array([50256, 50255, 0, 50254])
    one = losses(measure_ladder(array((small + 50253).tolist()), array((small[:50] + 50253).tolist())))
    other = losses(measure_ladder(array(names[small].tolist()), array(names[small[:50]].tolist())))
    assert one == pytest.approx(other)
    assert one["uniform"] == pytest.approx(10.8249, abs=5e-5)


# ------------------------------------------------------------------------------------------------ what it says


def test_a_markov_source_is_learned_to_its_entropy() -> None:
    random = np.random.default_rng(1)
    states = 20
    rows = random.dirichlet(np.full(states, 0.3), size=states)
    thresholds, draws = rows.cumsum(axis=1), random.random(320_000)
    ids = [0]
    for draw in draws:
        ids.append(min(int(np.searchsorted(thresholds[ids[-1]], draw)), states - 1))
    tokens = array(ids)
    train, validation = tokens[:300_000], tokens[300_000:]
    # The mean of the source's own -log p on the very tokens that are measured: nothing can be expected to do better.
    entropy = -np.log(rows[validation[1:-1], validation[2:]]).mean()
    found = losses(measure_ladder(train, validation, vocabulary=states))
    assert entropy < found["bigram"] < entropy + 0.005
    assert found["bigram"] < found["trigram"] < entropy + 0.03  # pays for contexts that tell nothing more
    assert found["unigram"] > entropy + 0.3


def test_the_verdicts_ladder_descends() -> None:
    tokens = open_tokens("verdict").tokens
    cut = len(tokens) * 9 // 10
    ladder = measure_ladder(tokens[:cut], tokens[cut:])
    found = losses(ladder)
    assert list(found) == ["uniform", "unigram", "bigram", "trigram"]
    assert found["uniform"] == pytest.approx(10.8249, abs=5e-5)
    assert found["uniform"] > found["unigram"] > found["bigram"] > 5
    assert found["trigram"] == pytest.approx(found["bigram"], abs=0.3)  # so short a text has few trigrams twice
    assert ladder is not None and not ladder.sampled and "sample" not in ladder.explanation
    assert (ladder.counted, ladder.measured) == (cut, len(tokens) - cut - 2)


def test_every_rung_says_how_it_works() -> None:
    ladder = measure_ladder(array([0, 1, 2, 0, 1, 3, 0, 1, 2]), array([0, 1, 2]), vocabulary=V)
    assert ladder is not None
    uniform, unigram, bigram, trigram = (rung.explanation for rung in ladder.rungs)
    assert "ln 5" in uniform
    assert all("Kneser–Ney" in text for text in (unigram, bigram, trigram))
    assert "0.60 is taken off" in bigram  # once: 1 3, 2 0, 3 0; twice: 1 2; so 3 / (3 + 2)
    assert all("{" not in text and text.endswith(".") for text in (uniform, unigram, bigram, trigram))


@pytest.mark.parametrize("length", [0, 1, 2])
def test_nothing_to_measure_on_gives_no_ladder(length: int) -> None:
    assert measure_ladder(array([0, 1, 2, 3]), array([1] * length), vocabulary=V) is None


# ------------------------------------------------------------------------------------------------ samples


@given(length=st.integers(0, 60_000), most=st.integers(1, 50_000))
def test_blocks_are_spread_over_the_whole_text(length: int, most: int) -> None:
    text = np.arange(length, dtype=np.uint16)  # a token is its own position
    blocks = spread(text, most)
    joined = np.concatenate(blocks).astype(int)
    assert len(joined) <= most or length <= most
    assert (np.diff(joined) > 0).all()  # nothing twice
    if length <= most:
        assert len(joined) == length
    else:
        assert len(joined) > most - len(blocks) and joined[0] == 0
    if len(blocks) > 1:
        assert joined[-1] == length - 1
        starts = np.diff([block[0] for block in blocks])
        assert starts.max() - starts.min() <= 1  # evenly


def test_ngrams_do_not_reach_over_a_border() -> None:
    blocks = [array([1, 2, 3]), array([4]), array([]), array([2, 1])]
    assert ngrams(blocks, 2, 10).tolist() == [12, 23, 21]
    assert ngrams(blocks, 3, 10).tolist() == [123]


def test_a_sample_is_measured_as_such() -> None:
    """A text whose parts are alike: a sample of it says nearly the same, and says that it is one."""
    tokens = np.random.default_rng(0).zipf(1.5, 200_000).clip(0, 99).astype(np.uint16)
    train, validation = tokens[:150_000], tokens[150_000:]
    whole = measure_ladder(train, validation, vocabulary=100)
    sample = measure_ladder(train, validation, vocabulary=100, most_counted=60_000, most_measured=20_000)
    assert whole is not None and sample is not None
    assert (whole.sampled, sample.sampled) == (False, True)
    assert (sample.counted, sample.measured) == (60_000, 20_000 - 2 * 2)  # two tokens of each block are no targets
    assert "sample" in sample.explanation and "150,000" in sample.explanation
    assert losses(sample) == pytest.approx(losses(whole), abs=0.05)
    assert sample == measure_ladder(train, validation, vocabulary=100, most_counted=60_000, most_measured=20_000)


def test_work_can_be_cancelled_and_tells_how_far_it_is() -> None:
    text = array([0, 1, 2, 3] * 10)
    seen = []
    measure_ladder(text, text, vocabulary=V, progress=Progress(tell=lambda stage: seen.append(stage.done)))
    assert seen == [0, 1, 2, 3, 4]
    with pytest.raises(CancelledError):
        measure_ladder(text, text, vocabulary=V, progress=Progress(cancelled=lambda: True))


# ------------------------------------------------------------------------------------------------ keeping


@pytest.fixture
def verdict() -> TokenizedCorpus:
    return open_tokens("verdict")


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("computed again")


def test_a_ladder_is_computed_once(verdict: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cached_ladder(verdict.source_sha256, None, 0.1) is None
    ladder = ladder_of(verdict, None, 0.1)
    monkeypatch.setattr(ladder_module, "measure_ladder", refuse)
    assert ladder_of(verdict, None, 0.1) == cached_ladder(verdict.source_sha256, None, 0.1) == ladder
    assert cached_ladder(verdict.source_sha256, None, 0.2) is None


def test_a_validation_corpus_takes_the_place_of_the_fraction(verdict: TokenizedCorpus) -> None:
    tiny = open_tokens("tiny")
    ladder = ladder_of(verdict, tiny, 0.1)
    assert ladder == measure_ladder(verdict.tokens, tiny.tokens)
    assert ladder == cached_ladder(verdict.source_sha256, tiny.source_sha256, 0.5)
    assert cached_ladder(verdict.source_sha256, None, 0.1) is None
    assert cached_ladder(tiny.source_sha256, verdict.source_sha256, 0.1) is None


def test_without_validation_there_is_no_ladder(verdict: TokenizedCorpus) -> None:
    assert ladder_of(verdict, None, 0.0) is None
    assert cached_ladder(verdict.source_sha256, None, 0.0) is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 1}', '{"format": 1, "rungs": [7]}', "old", "torn"])
def test_damaged_and_old_files_are_made_anew(damage: str, verdict: TokenizedCorpus, corpora_folder: Path) -> None:
    ladder = ladder_of(verdict, None, 0.1)
    (path,) = (corpora_folder / ".tokens").glob("ladder-*.json")
    text = path.read_text()
    old = json.dumps(json.loads(text) | {"format": 0})
    path.write_text({"old": old, "torn": text[:200]}.get(damage, damage))
    assert cached_ladder(verdict.source_sha256, None, 0.1) is None
    assert ladder_of(verdict, None, 0.1) == ladder
    assert cached_ladder(verdict.source_sha256, None, 0.1) == ladder


def test_the_same_file_in_other_tokens_is_measured_anew(verdict: TokenizedCorpus) -> None:
    """A text is read with its marks as separators, and later without."""
    ladder_of(verdict, None, 0.1)
    other = replace(verdict, tokens=verdict.tokens[:4000])
    assert ladder_of(other, None, 0.1) == measure_ladder(verdict.tokens[:3600], verdict.tokens[3600:4000])


@pytest.mark.parametrize("sha256", ["", "../../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_what_is_no_hash_names_no_file(sha256: str, verdict: TokenizedCorpus, corpora_folder: Path) -> None:
    assert cached_ladder(sha256, None, 0.1) is None
    before = sorted((corpora_folder / ".tokens").iterdir())
    assert ladder_of(replace(verdict, source_sha256=sha256), None, 0.1) is not None
    assert sorted((corpora_folder / ".tokens").iterdir()) == before


def test_a_ladder_survives_json(verdict: TokenizedCorpus) -> None:
    ladder = measure_ladder(verdict.tokens[:4000], verdict.tokens[4000:])
    assert ladder is not None
    assert Ladder.from_json(json.loads(json.dumps(ladder.to_json()))) == ladder
