"""The corpora that the lab knows: one entry each, with the facts that make a download reproducible."""

from __future__ import annotations

from typing import Any

from engine.corpora.registry import Corpus
from engine.corpora.sources import Books, HubFile, Normalized, WebFile, WikipediaIntros

TINYSTORIES = "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"  # revision of roneneldan/TinyStories
WIKITEXT = "b08601e04326c79dfdd32d625aee71d232d685c3"  # revision of Salesforce/wikitext
PG19 = "4d28bd77e66947ad3835cf78ed7aaeb4dd87ad8b"  # revision of deepmind/pg19, which holds the lists of books

BUILT_IN = (
    Corpus(
        name="verdict",
        title="The Verdict",
        description="A complete short story by Edith Wharton, 1908.",
        good_for="A first run: real prose, small enough to watch a model learn it by heart.",
        licence="Public domain",
        source="Scribner's Magazine, June 1908",
        prompt="I had always thought",
        built_in=True,
    ),
    Corpus(
        name="tiny",
        title="Tiny",
        description="A few paragraphs about a lighthouse keeper and a machine that learns to guess the next word.",
        good_for="Smoke tests: an epoch takes seconds.",
        licence="Written for this project",
        source="This project",
        prompt="Every evening",
        built_in=True,
    ),
)

_STORIES: dict[str, Any] = dict(
    licence="CDLA-Sharing-1.0",
    source="roneneldan/TinyStories on the Hugging Face hub (arXiv:2305.07759)",
    marked=True,
    family="TinyStories",
)
_WIKI: dict[str, Any] = dict(
    licence="CC BY-SA 3.0 and GFDL",
    source="Salesforce/wikitext on the Hugging Face hub (arXiv:1609.07843)",
    prompt="The history of",
    family="WikiText-2",
)


def _wikitext(split: str, size: int, sha256: str) -> HubFile:
    path = f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet"
    return HubFile("Salesforce/wikitext", WIKITEXT, path, size, sha256, column="text")


def _tinystories(split: str, size: int, sha256: str) -> HubFile:
    return HubFile("roneneldan/TinyStories", TINYSTORIES, f"TinyStories-{split}.txt", size, sha256)


DOWNLOADABLE = (
    Corpus(
        name="tinystories",
        title="TinyStories",
        description="Two million short stories in the words of a four-year-old, written by GPT-3.5 and GPT-4.",
        good_for="The first meaningful run: small models learn to write whole sentences from it.",
        origin=_tinystories("train", 1_924_281_556, "c5cf5e22ff13614e830afbe61a99fbcbe8bcb7dd72252b989fa1117a368d401f"),
        size=1_924_281_556,
        validation="tinystories_validation",
        **_STORIES,
    ),
    Corpus(
        name="tinystories_validation",
        title="TinyStories, validation",
        description="The official validation stories.",
        good_for="Pairs with tinystories; 19 MB are also enough for a quick training run.",
        origin=_tinystories("valid", 19_447_282, "94e431816c4cce81ff71e4408ff8d3bda9a42e8d2663986697c3954288cb38b4"),
        size=19_447_282,
        **_STORIES,
    ),
    Corpus(
        name="wikitext2",
        title="WikiText-2",
        description="Good and Featured Wikipedia articles, raw: two million words of careful prose.",
        good_for="Comparing with published work: a compact benchmark with official splits.",
        origin=_wikitext("train", 6_357_543, "e83889baabc497075506f91975be5fac0d45c5290b6b20582c8cd1e853d0c9f7"),
        size=10_900_000,
        validation="wikitext2_validation",
        **_WIKI,
    ),
    Corpus(
        name="wikitext2_validation",
        title="WikiText-2, validation",
        description="The official validation articles.",
        good_for="Pairs with wikitext2.",
        origin=_wikitext("validation", 657_209, "204929b7ff9d6184953f867dedb860e40aa69c078fc1e54b3baaa8fb28511c4c"),
        size=1_140_000,
        **_WIKI,
    ),
    Corpus(
        name="wikitext2_test",
        title="WikiText-2, test",
        description="The official test articles.",
        good_for="A last measurement, once all decisions are made.",
        origin=_wikitext("test", 732_610, "5f1bea067869d04849c0f975a2b29c4ff47d867f484f5010ea5e861eab246d91"),
        size=1_290_000,
        **_WIKI,
    ),
    Corpus(
        name="shakespeare",
        title="Tiny Shakespeare",
        description="Forty thousand lines from Shakespeare's plays.",
        good_for="Hearing style: samples show names, verse and stage manners early.",
        licence="Public domain",
        source="karpathy/char-rnn on GitHub",
        prompt="ROMEO:\n",
        origin=WebFile(
            url="https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
            variable="LAB_SHAKESPEARE_URL",
            size=1_115_394,
            sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        ),
        size=1_115_394,
    ),
    Corpus(
        name="wikipedia_ga_intros",
        title="Wikipedia, good introductions",
        description="The introductions of Good and Featured Articles, one a document.",
        good_for="Clean encyclopedic prose of short documents.",
        licence="CC BY-SA 4.0",
        source="English Wikipedia, through its public API, prepared by this project",
        prompt="The",
        origin=WikipediaIntros(),
        suffix=".jsonl",
    ),
)

# PG-19: books of a split, and the bytes they hold together (the data set's card).
_SPLITS = {"train": (28_602, 11_453_688_452), "validation": (50, 17_402_295), "test": (100, 40_482_852)}
_SMALL = 100  # books of a split


def _pg19_name(split: str, small: bool, documents: bool, normalized: bool) -> str:
    parts = ["pg19", split, "small" * small, "docs" * documents, "normalized" * normalized]
    return "_".join(part for part in parts if part)


def _pg19(split: str, small: bool, documents: bool, normalized: bool) -> Corpus:
    books, size = _SPLITS[split]
    limit = _SMALL if small and books > _SMALL else 0
    count = limit or books
    words = [f"{count:,} books", "one a document" if documents else "as one flat text"]
    words += ["hard-wrapped prose unwrapped"] if normalized else []
    titles = [split, "small" * small, "documents" * documents, "normalized" * normalized]
    origin = Normalized(_pg19_name(split, small, documents, False)) if normalized else Books(split, limit, documents)
    return Corpus(
        name=_pg19_name(split, small, documents, normalized),
        title="PG-19, " + ", ".join(title for title in titles if title),
        description=f"Books published before 1919, from Project Gutenberg: {', '.join(words)}.",
        good_for="Long-range prose; documents keep a window from running out of one book into the next unmarked."
        if documents
        else "Long-range prose in one stream.",
        licence="Public domain in the USA (Project Gutenberg); the collection: Apache 2.0",
        source="deepmind/pg19 (arXiv:1911.05507)",
        prompt="It was",
        origin=origin,
        validation=_pg19_name("validation", small, documents, normalized) if split == "train" else "",
        size=size * count // books,
        suffix=".jsonl" if documents else ".txt",
        family="PG-19",
    )


_PG19 = tuple(
    _pg19(split, small, documents, normalized)
    for small in (True, False)
    for documents in (False, True)
    for normalized in (False, True)
    for split in _SPLITS
)

KNOWN = (*BUILT_IN, *DOWNLOADABLE, *_PG19)


def canonical_name(name: str) -> str:
    """The registry's name for any way of writing it: `pg19_docs_small` is `pg19_train_small_docs`.

    Names of other corpora come back as they are.
    """
    parts = name.split("_")
    words = set(parts[1:])
    split = words & _SPLITS.keys()
    others = words - split
    if parts[0] != "pg19" or len(parts) > 1 + len(words) or len(split) > 1 or others - {"small", "docs", "normalized"}:
        return name
    return _pg19_name((split or {"train"}).pop(), "small" in others, "docs" in others, "normalized" in others)


def expand(name: str) -> list[str]:
    """What `name` brings along: a corpus with its official splits.

    `tinystories` is the training and the validation text, `wikitext2` all three splits, and a PG-19 family without a
    split, such as `pg19_small`, its three.
    """
    wanted = canonical_name(name)
    if name.startswith("pg19") and wanted != name and not set(name.split("_")) & _SPLITS.keys():
        return [wanted.replace("_train", f"_{split}", 1) for split in _SPLITS]
    corpus = next((corpus for corpus in KNOWN if corpus.name == wanted), None)
    if corpus is None or corpus.family == "PG-19":
        return [wanted]
    return [c.name for c in KNOWN if c.name == wanted or c.name in (f"{wanted}_validation", f"{wanted}_test")]
