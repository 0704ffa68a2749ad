"""Where corpora come from: pinned facts, and no code that fetches.

Every address can be pointed elsewhere by an environment variable, for a mirror or a test: `HF_ENDPOINT` for hub files
(`HF_HUB_OFFLINE` is honoured too), `LAB_SHAKESPEARE_URL`, `LAB_PG19_URL`, `LAB_WIKIPEDIA_API`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HubFile:
    """A file of a data set on the Hugging Face hub, at one revision.

    Attributes:
        repository, revision, path: where it is.
        size: bytes.
        sha256: of its content; "" where none is pinned: then the hash that the hub publishes decides.
        column: of a Parquet file whose rows are the lines of the text; "" for a file that is the text itself.
    """

    repository: str
    revision: str
    path: str
    size: int
    sha256: str = ""
    column: str = ""


@dataclass(frozen=True)
class WebFile:
    """A text file at a plain address.

    Attributes:
        url: its address; `variable` names the environment variable that replaces it.
        size, sha256: of its content.
    """

    url: str
    variable: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Books:
    """Books of PG-19, of one split.

    Attributes:
        split: train, validation or test.
        limit: take this many, in the order of the published list; 0 takes all.
        documents: one JSON line a book; otherwise one flat text.
    """

    split: str
    limit: int = 0
    documents: bool = False


@dataclass(frozen=True)
class Normalized:
    """Another corpus with its hard-wrapped prose unwrapped."""

    of: str


@dataclass(frozen=True)
class WikipediaIntros:
    """Introductions of Good and Featured Articles of the English Wikipedia."""


Source = HubFile | WebFile | Books | Normalized | WikipediaIntros
