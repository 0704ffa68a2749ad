"""engine.data: which tokens a step trains on."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import tokenizer
from engine.corpora import open_tokens
from engine.data import TrainingWindows, count_windows, order, split, validation_batches

SEEDS = st.integers(0, 2**31 - 1)


def numbered(count: int) -> np.ndarray:
    """A text whose tokens are their own positions."""
    return np.arange(count, dtype=np.uint16)


@pytest.mark.parametrize(
    ("seed", "epoch", "expected"),
    [
        (1337, 0, [4, 11, 3, 5, 0, 8, 6, 10, 9, 2, 1, 7]),
        (1337, 1, [3, 1, 11, 6, 4, 9, 10, 0, 2, 5, 7, 8]),
        (0, 0, [0, 11, 9, 1, 6, 3, 5, 4, 10, 2, 8, 7]),
        (2**31 - 1, 7, [6, 2, 9, 4, 3, 8, 10, 11, 0, 1, 7, 5]),
    ],
)
def test_the_order_never_changes(seed: int, epoch: int, expected: list[int]) -> None:
    """Fixed numbers: another order would make every stored run impossible to resume exactly."""
    assert order(seed, epoch, 12).tolist() == expected


def test_the_windows_never_change() -> None:
    windows = TrainingWindows(numbered(50), 8, 1337)
    assert windows.batch(4, 4)[:, 0].tolist() == [17, 9, 25, 9]  # the last two are of the second epoch


@given(SEEDS, st.integers(0, 1000), st.integers(0, 300))
def test_each_epoch_is_a_permutation(seed: int, epoch: int, windows: int) -> None:
    assert sorted(order(seed, epoch, windows).tolist()) == list(range(windows))


@given(SEEDS, st.integers(0, 1000))
def test_epochs_and_seeds_differ(seed: int, epoch: int) -> None:
    here = order(seed, epoch, 100).tolist()
    assert here != order(seed, epoch + 1, 100).tolist()
    assert here != order(seed ^ 1, epoch, 100).tolist()


def test_an_order_is_not_nearly_sorted() -> None:
    """Neighbours in the text must not stay neighbours in training: a rank correlation of about zero."""
    places = order(1337, 0, 2000)
    correlation = np.corrcoef(places, np.arange(2000))[0, 1]
    assert abs(correlation) < 0.1


@given(
    tokens=st.integers(10, 300),
    context=st.integers(1, 9),
    seed=SEEDS,
    start=st.integers(0, 200),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=8),
)
def test_any_split_into_batches_gives_the_same_windows(
    tokens: int, context: int, seed: int, start: int, sizes: list[int]
) -> None:
    text = numbered(tokens)
    whole = TrainingWindows(text, context, seed).batch(start, sum(sizes))
    windows, position, parts = TrainingWindows(text, context, seed), start, []
    for size in sizes:
        parts.append(windows.batch(position, size))
        position += size
    assert np.array_equal(np.concatenate(parts), whole)
    backwards = windows.batch(start, 1)  # nothing is remembered that matters
    assert np.array_equal(backwards, whole[:1])


@given(tokens=st.integers(2, 400), context=st.integers(1, 20), seed=SEEDS, epoch=st.integers(0, 5))
def test_an_epoch_visits_every_window_once_and_overlaps_nowhere(
    tokens: int, context: int, seed: int, epoch: int
) -> None:
    per_epoch = count_windows(tokens, context)
    if per_epoch == 0:
        return
    batch = TrainingWindows(numbered(tokens), context, seed).batch(epoch * per_epoch, per_epoch)
    assert batch.shape == (per_epoch, context + 1) and batch.dtype == np.int64
    assert (np.diff(batch, axis=1) == 1).all()  # consecutive tokens: the target of each is the one after it
    inputs = np.sort(batch[:, :-1].ravel())
    assert (np.diff(inputs) == 1).all()  # no token is an input twice, none between the first and the last is left out


def test_every_token_is_trained_on_sooner_or_later() -> None:
    windows = TrainingWindows(numbered(48), 8, 3)  # 5 windows of 8: 7 tokens are left out in an epoch
    assert set(windows.batch(0, 5 * 40)[:, 1:].ravel().tolist()) == set(range(1, 48))


@given(st.integers(0, 1000), st.integers(1, 50))
def test_windows_need_a_target_for_their_last_token(tokens: int, context: int) -> None:
    windows = count_windows(tokens, context)
    assert windows * context + 1 <= max(tokens, 1) < (windows + 1) * context + 1


@given(st.integers(0, 1000), st.floats(0, 0.5))
def test_the_split_keeps_everything_and_takes_the_end(tokens: int, fraction: float) -> None:
    train, validation = split(numbered(tokens), fraction)
    assert np.concatenate([train, validation]).tolist() == list(range(tokens))
    assert abs(len(validation) - tokens * fraction) <= 0.5


@given(tokens=st.integers(0, 400), context=st.integers(1, 20), batch_size=st.integers(1, 9), limit=st.integers(1, 30))
def test_validation_batches(tokens: int, context: int, batch_size: int, limit: int) -> None:
    batches = list(validation_batches(numbered(tokens), context, batch_size, limit))
    windows = count_windows(tokens, context)
    if windows == 0:
        assert [b.tolist() for b in batches] == ([[list(range(tokens))]] if tokens > 1 else [])
        return
    assert len(batches) <= limit
    assert all(b.shape[0] <= batch_size and b.shape[1] == context + 1 for b in batches)
    rows = np.concatenate(batches)
    assert len(rows) == min(windows, limit * batch_size)
    assert (np.diff(rows, axis=1) == 1).all()
    first = rows[:, 0]
    assert (first % context == 0).all() and len(set(first.tolist())) == len(first)
    assert first[0] == 0
    if len(rows) > 1:
        assert first[-1] == (windows - 1) * context  # spread over the text to its end


def test_validation_is_spread_evenly() -> None:
    rows = np.concatenate(list(validation_batches(numbered(1001), 10, 5, limit=2)))
    gaps = np.diff(rows[:, 0] // 10)
    assert gaps.min() == 11 and gaps.max() == 11


# ------------------------------------------------------------------------------------------------ books

WORDS = ["lamp", "river", "stone", "garden", "window", "letter", "bread", "horse", "silver", "winter", "music", "table"]


def shelf(corpora: Path, seed: int) -> tuple[np.ndarray, dict[int, int]]:
    """A corpus of books, each of one word alone: its tokens, and which book each id belongs to."""
    rng = random.Random(seed)
    books = [(word + " ") * rng.choice([1, 2, 7, rng.randrange(1, 400)]) for word in WORDS]
    lines = [json.dumps({"text": book.strip()}) for book in books]
    lines.insert(rng.randrange(len(lines)), json.dumps({"text": ""}))  # a book without any text is none
    (corpora / f"books{seed}.jsonl").write_text("\n".join(lines))
    corpus = open_tokens(f"books{seed}")
    assert corpus.documents == len(books)
    owner = {token: i for i, book in enumerate(books) for token in tokenizer.encode(book.strip())}
    assert len({token for book in books for token in set(tokenizer.encode(book.strip()))}) == len(owner)
    assert sum(len(set(tokenizer.encode(book.strip()))) for book in books) == len(owner), "the books share a token"
    return np.asarray(corpus.tokens), owner


def crossings(rows: np.ndarray, owner: dict[int, int]) -> int:
    """How many targets are of another book than the token right before them."""
    books = np.vectorize(lambda token: owner.get(int(token), -1))(rows)
    assert ((books >= 0) | (rows == tokenizer.END_OF_TEXT)).all()
    before, target = books[:, :-1], books[:, 1:]
    return int(((before != target) & (before >= 0) & (target >= 0)).sum())


@pytest.mark.parametrize("seed", range(5))
def test_no_window_runs_from_one_book_into_the_next_unmarked(seed: int, corpora_folder: Path) -> None:
    """Whatever the seed, the epoch, and the length of the context; in validation too."""
    tokens, owner = shelf(corpora_folder, seed)
    assert (tokens == tokenizer.END_OF_TEXT).sum() == len(WORDS) - 1
    train, validation = split(tokens, 0.3)
    for context in (1, 2, 3, 8, 31, 64, 200):
        windows = TrainingWindows(train, context, seed * 7919 + context)
        marks = 0
        for epoch in range(4 if windows.per_epoch else 0):
            rows = windows.batch(epoch * windows.per_epoch, windows.per_epoch)
            assert crossings(rows, owner) == 0
            marks += (rows[:, :-1] == tokenizer.END_OF_TEXT).sum()
        assert marks or not windows.per_epoch, "windows do span books, with the mark between"
        for rows in validation_batches(validation, context, 4, limit=50):
            assert crossings(rows, owner) == 0


def test_crossings_are_found_where_they_are(corpora_folder: Path) -> None:
    """The check itself: the same books without the marks cross, once between each two."""
    tokens, owner = shelf(corpora_folder, 0)
    unmarked = tokens[tokens != tokenizer.END_OF_TEXT]
    assert crossings(unmarked[None, :].astype(np.int64), owner) == len(WORDS) - 1
