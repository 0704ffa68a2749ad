"""Which corpora there are: those the lab knows, and text files that a person dropped into the folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from engine.errors import CorpusError
from engine.paths import PROJECT, corpora_dir

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Corpus:
    """A text with a name.

    Attributes:
        name: what `--corpus` takes.
        title, description, good_for: for people.
        licence, source: where it comes from and what may be done with it.
        prompt: what samples begin with, unless the settings say otherwise.
        built_in: whether it ships with the lab.
    """

    name: str
    title: str
    description: str
    good_for: str = ""
    licence: str = ""
    source: str = ""
    prompt: str = "Once upon a time"
    built_in: bool = False

    @property
    def path(self) -> Path:
        """The text file. Built-in texts are found in the project when the corpora folder was moved elsewhere."""
        path = corpora_dir() / f"{self.name}.txt"
        if self.built_in and not path.exists():
            return PROJECT / "corpora" / path.name
        return path


KNOWN = (
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


def list_corpora() -> list[Corpus]:
    """All corpora: the known ones first, then the text files in the corpora folder, by name."""
    known = {corpus.name: corpus for corpus in KNOWN}
    dropped = sorted(
        path.stem
        for path in corpora_dir().glob("*.txt")
        if path.stem not in known and _NAME.fullmatch(path.stem) and path.is_file()
    )
    return [*KNOWN, *(_dropped(name) for name in dropped)]


def _dropped(name: str) -> Corpus:
    title = name.replace("_", " ").capitalize()
    return Corpus(name, title, "Your own text.", source=f"{name}.txt in the corpora folder")


def find_corpus(name: str) -> Corpus:
    """The corpus called `name`.

    Raises:
        CorpusError: there is none.
    """
    corpora = list_corpora()
    for corpus in corpora:
        if corpus.name == name:
            return corpus
    raise CorpusError(f"There is no corpus {name!r}. There are: {', '.join(corpus.name for corpus in corpora)}.")
