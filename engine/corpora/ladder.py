"""The loss ladder: what validation loss is reached without a network, by guessing and by counting.

Each rung is an exact probability distribution over the vocabulary, counted on the training part and measured on the
validation part in nats per token, on the same targets for all rungs. A network that has a lower loss than a rung knows
more than that rung does. The separator between documents is a token like any other here, as it is for the network.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.config import VOCABULARY_SIZE
from engine.corpora import kept
from engine.corpora.progress import Progress
from engine.corpora.tokens import TokenizedCorpus
from engine.data import split

FORMAT = 1  # of what is kept; another number means: measure anew
MOST_COUNTED = 10_000_000  # training tokens
MOST_MEASURED = 1_000_000  # validation tokens
BLOCK = 10_000  # tokens of a sample's blocks, at least
HISTORY = 2  # tokens that the highest rung looks back: a block's first tokens are no targets, for any rung

Tokens = NDArray[np.uint16]
Keys = NDArray[np.int64]  # n-grams as numbers in base `vocabulary`, the last token last; three tokens fit in 48 bits
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rung:
    """One way to predict: its name, its validation loss in nats per token, and a sentence that says how it works."""

    name: str
    loss: float
    explanation: str


@dataclass(frozen=True)
class Ladder:
    """The rungs, from guessing to trigrams.

    Attributes:
        counted: training tokens that were counted, of `train_tokens`.
        measured: targets of the validation part that the losses are means over.
        train_tokens, val_tokens: sizes of the two parts.
        sampled: whether parts of the text were left out because it is large.
    """

    rungs: tuple[Rung, ...]
    counted: int
    measured: int
    train_tokens: int
    val_tokens: int
    sampled: bool

    @property
    def explanation(self) -> str:
        """How it was measured, for people."""
        text = (
            f"Counted on {self.counted:,} tokens of the training part, measured on {self.measured:,} tokens of the "
            "validation part, the same ones for every rung; tokens without two tokens before them are left out."
        )
        if self.sampled:
            text += (
                f" This is a sample of blocks spread evenly over the {self.train_tokens:,} and {self.val_tokens:,} "
                "tokens of the two parts; counts of the whole text would most likely reach lower losses."
            )
        return text

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Ladder:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        return cls(
            rungs=tuple(Rung(str(r["name"]), float(r["loss"]), str(r["explanation"])) for r in value["rungs"]),
            **{name: int(value[name]) for name in ("counted", "measured", "train_tokens", "val_tokens")},
            sampled=bool(value["sampled"]),
        )


# ------------------------------------------------------------------------------------------------- counting


class Counts:
    """How often each n-gram was observed, and how often anything followed its context.

    Attributes:
        keys: distinct n-grams, rising.
        ends: of n-gram i, the observations up to and with i are ends[i + 1]; one longer than `keys`.
        discount: what absolute discounting takes off every count.
    """

    def __init__(self, observed: Keys, vocabulary: int) -> None:
        """Count `observed`, which is sorted in place."""
        observed.sort()
        is_last = np.empty(len(observed), dtype=bool)
        is_last[-1:] = True
        np.not_equal(observed[1:], observed[:-1], out=is_last[:-1])
        self.keys = observed[is_last]
        self.ends = np.zeros(len(self.keys) + 1, dtype=np.int64)
        self.ends[1:] = np.flatnonzero(is_last)
        self.ends[1:] += 1
        self.discount = self._discount()
        self._vocabulary = vocabulary

    def _discount(self) -> float:
        """D = n1 / (n1 + 2 n2), with n1 and n2 the n-grams seen once and twice (Ney, Essen and Kneser 1994).

        A text in which nothing occurs once says nothing about it; then one half.
        """
        counts = np.diff(self.ends)
        once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
        return once / (once + 2 * twice) if once else 0.5

    def interpolate(self, keys: Keys, lower: Floats) -> Floats:
        """P(w | context) = (max(c(context w) - D, 0) + D · t(context) · lower(w)) / c(context).

        t(context) is the number of different tokens that followed the context. After a context that was never observed
        it is `lower`.

        Args:
            keys: n-grams, context and w.
            lower: probabilities of the same tokens w after shorter contexts.
        """
        context = keys // self._vocabulary * self._vocabulary  # its n-grams are one stretch of the sorted keys
        first, last = self._place(context), self._place(context + self._vocabulary)
        total = self.ends[last] - self.ends[first]
        count = self.ends[self._place(keys + 1)] - self.ends[self._place(keys)]
        kept_back = self.discount * (last - first) * lower
        return np.where(total > 0, (np.maximum(count - self.discount, 0) + kept_back) / np.maximum(total, 1), lower)

    def _place(self, keys: Keys) -> NDArray[np.intp]:
        """How many distinct n-grams are smaller than each of `keys`."""
        return np.searchsorted(self.keys, keys)


class KneserNey:
    """Interpolated Kneser–Ney smoothing (Kneser and Ney 1995; Chen and Goodman 1998).

    Absolute discounting at every order. The highest order counts n-grams as they occur; a lower one counts in how many
    different n-grams of the order above its n-gram is the end ("continuation counts"): what matters there is after how
    many contexts a token can stand. The lowest order is interpolated with the uniform distribution.

    Args:
        observed: n-grams of the training part; sorted in place.
        order: n.
        vocabulary: tokens there are.
    """

    def __init__(self, observed: Keys, order: int, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.orders = [Counts(observed, vocabulary)]
        for lower in range(order - 1, 0, -1):
            self.orders.insert(0, Counts(self.orders[0].keys % vocabulary**lower, vocabulary))

    @property
    def discount(self) -> float:
        """What is taken off the counts of the highest order."""
        return self.orders[-1].discount

    def probabilities(self, keys: Keys) -> Floats:
        """P(last token | those before it) of each n-gram."""
        p = np.full(len(keys), 1 / self.vocabulary)
        for order, counts in enumerate(self.orders, start=1):
            p = counts.interpolate(keys % self.vocabulary**order, p)
        return p


# ------------------------------------------------------------------------------------------------- measuring


def spread(tokens: Tokens, most: int) -> list[Tokens]:
    """The text whole if it has at most `most` tokens, else contiguous blocks, evenly spread from its start to its end.

    The same ones every time; together at most `most` tokens, and they do not overlap.
    """
    if len(tokens) <= most:
        return [tokens]
    blocks = max(1, most // BLOCK)
    size = most // blocks
    return [tokens[i * (len(tokens) - size) // max(1, blocks - 1) :][:size] for i in range(blocks)]


def ngrams(blocks: Sequence[Tokens], order: int, vocabulary: int) -> Keys:
    """The n-grams inside each block, packed; none reaches from one block into the next."""
    sizes = [max(0, len(block) - order + 1) for block in blocks]
    keys = np.zeros(sum(sizes), dtype=np.int64)
    done = 0
    for block, size in zip(blocks, sizes, strict=True):
        part = keys[done : done + size]
        for i in range(order):
            part *= vocabulary
            part += block[i : i + size]
        done += size
    return keys


def measure_ladder(
    train: Tokens,
    validation: Tokens,
    *,
    vocabulary: int = VOCABULARY_SIZE,
    most_counted: int = MOST_COUNTED,
    most_measured: int = MOST_MEASURED,
    progress: Progress | None = None,
) -> Ladder | None:
    """Count on one part, measure on the other.

    Args:
        train, validation: ids below `vocabulary`, one dimension; may be mapped from disk.
        most_counted, most_measured: of larger parts, so many tokens are sampled: see `spread`.
        progress: told of every rung.

    Returns:
        None when the validation part has no token with two tokens before it.

    Raises:
        CancelledError: through `progress`.
    """
    counted, measured = spread(train, most_counted), spread(validation, most_measured)
    targets, times = np.unique(ngrams(measured, HISTORY + 1, vocabulary), return_counts=True)
    if len(targets) == 0:
        return None
    progress = progress or Progress()
    progress.begin("Measuring the loss ladder", 4, unit="rungs")

    def loss(p: Floats) -> float:
        return float(-np.dot(np.log(p), times) / times.sum())

    def rungs() -> Iterator[Rung]:
        yield Rung("uniform", math.log(vocabulary), _UNIFORM.format(v=vocabulary))
        for order, (name, text) in enumerate(_NGRAMS.items(), start=1):
            model = KneserNey(ngrams(counted, order, vocabulary), order, vocabulary)
            progress.check()
            p = model.probabilities(targets % vocabulary**order)
            explanation = text + _SMOOTHING.format(discount=model.discount)
            del model  # as large as the text; the next one is larger
            yield Rung(name, loss(p), explanation)

    found = []
    for rung in rungs():
        found.append(rung)
        progress.advance(1)
    sizes = [sum(map(len, blocks)) for blocks in (counted, measured)]
    sampled = sizes != [len(train), len(validation)]
    return Ladder(tuple(found), sizes[0], int(times.sum()), len(train), len(validation), sampled)


_UNIFORM = "Every one of the {v:,} tokens is held equally likely: the loss is ln {v:,}, before anything is learned."
_NGRAMS = {
    "unigram": "Each token is as likely as it is frequent in the training part, whatever stands before it.",
    "bigram": "Each token is as likely as it was after the token before it in the training part.",
    "trigram": "Each token is as likely as it was after the two tokens before it in the training part.",
}
_SMOOTHING = (
    " So that the unseen is not impossible, {discount:.2f} is taken off every count and given to the next shorter "
    "context, where a token counts by how many different contexts it follows, down to the uniform guess (interpolated "
    "Kneser–Ney smoothing, Chen and Goodman 1998)."
)


# ------------------------------------------------------------------------------------------------- keeping


def ladder_of(
    corpus: TokenizedCorpus,
    val_corpus: TokenizedCorpus | None,
    val_fraction: float,
    progress: Progress | None = None,
) -> Ladder | None:
    """The ladder of a corpus, measured once and kept beside its tokens.

    Args:
        corpus: what is counted.
        val_corpus: what is measured on; None for the corpus' own end.
        val_fraction: of the corpus that is its end; of no effect when there is a `val_corpus`.

    Returns:
        None when there is nothing to measure on.

    Raises:
        CancelledError: through `progress`; nothing is kept.
    """
    if val_corpus is None:
        train, validation = split(corpus.tokens, val_fraction)
    else:
        train, validation = corpus.tokens, val_corpus.tokens
    val_sha256 = val_corpus.source_sha256 if val_corpus else None
    known = cached_ladder(corpus.source_sha256, val_sha256, val_fraction)
    # The same file may be read as marked or as plain text: other tokens under the same hash.
    if known is not None and (known.train_tokens, known.val_tokens) == (len(train), len(validation)):
        return known
    ladder = measure_ladder(train, validation, progress=progress)
    name = _name(corpus.source_sha256, val_sha256, val_fraction)
    if ladder is not None and name:
        kept.write(name, FORMAT, ladder.to_json())
    return ladder


def cached_ladder(corpus_sha256: str, val_corpus_sha256: str | None, val_fraction: float) -> Ladder | None:
    """The ladder of these texts if it was measured before; never computes."""
    name = _name(corpus_sha256, val_corpus_sha256, val_fraction)
    return kept.read(name, FORMAT, Ladder.from_json) if name else None


def _name(corpus_sha256: str, val_corpus_sha256: str | None, val_fraction: float) -> str | None:
    train = kept.short(corpus_sha256)
    validation = kept.short(val_corpus_sha256) if val_corpus_sha256 else f"{float(val_fraction)!r}"
    return f"ladder-{train}-{validation}" if train and validation else None
