"""Which corpora there are: those the lab knows, and texts that a person dropped into the folder.

A known corpus has an entry in `known`; this module finds corpora by name, and says where their files are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from engine.corpora.sources import Source
from engine.errors import CorpusError
from engine.paths import PROJECT, corpora_dir

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
SUFFIXES = (".txt", ".jsonl", ".md")  # of texts; the first that exists is taken


@dataclass(frozen=True)
class Corpus:
    """A text with a name.

    Attributes:
        name: what `--corpus` takes.
        title, description, good_for: for people.
        licence, source: what may be done with it and where it comes from.
        prompt: what samples begin with, unless the settings say otherwise.
        origin: how to get it; None for built-in texts and a person's own.
        validation: name of the official validation corpus; "" where there is none.
        size: bytes of the finished file, about; 0 when nobody knows before it is there.
        suffix: of the file: `.txt` and `.md` are one text, `.jsonl` is one document a line (field `text`).
        marked: whether `<|endoftext|>` in the text stands between documents, rather than for itself.
        family: the heading under which it is listed; "" for none.
    """

    name: str
    title: str
    description: str
    good_for: str = ""
    licence: str = ""
    source: str = ""
    prompt: str = "Once upon a time"
    origin: Source | None = None
    validation: str = ""
    size: int = 0
    suffix: str = ".txt"
    marked: bool = False
    family: str = ""
    built_in: bool = False

    @property
    def path(self) -> Path:
        """The file. Built-in texts are found in the project when the corpora folder was moved elsewhere."""
        path = corpora_dir() / f"{self.name}{self.suffix}"
        if self.built_in and not path.exists():
            return PROJECT / "corpora" / path.name
        return path

    @property
    def is_here(self) -> bool:
        """Whether the file exists; a downloaded one exists only whole and verified."""
        return self.path.is_file()

    @property
    def is_held_out(self) -> bool:
        """Whether it is an official validation or test text, which is there to measure on."""
        return self.origin is not None and not {"validation", "test"}.isdisjoint(self.name.split("_"))

    @property
    def mode(self) -> str:
        """How it becomes tokens: `text`, `marked text` or `documents`."""
        return "documents" if self.suffix == ".jsonl" else "marked text" if self.marked else "text"


def list_corpora() -> list[Corpus]:
    """All corpora: the known ones first, then the texts in the corpora folder, by name."""
    from engine.corpora.known import KNOWN

    known = {corpus.name for corpus in KNOWN}
    dropped: dict[str, str] = {}
    for path in _texts():
        if path.stem not in known and NAME.fullmatch(path.stem):
            dropped.setdefault(path.stem, path.suffix)
    return [*KNOWN, *(_dropped(name, dropped[name]) for name in sorted(dropped))]


def badly_named() -> list[Path]:
    """Texts in the corpora folder that are no corpora because their names cannot be those of one."""
    return sorted(path for path in _texts() if not NAME.fullmatch(path.stem) and not path.name.startswith("."))


def _texts() -> list[Path]:
    return [path for suffix in SUFFIXES for path in corpora_dir().glob(f"*{suffix}") if path.is_file()]


def _dropped(name: str, suffix: str) -> Corpus:
    title = name.replace("_", " ").capitalize()
    return Corpus(name, title, "Your own text.", source=f"{name}{suffix} in the corpora folder", suffix=suffix)


def find_corpus(name: str) -> Corpus:
    """The corpus called `name`; a family's name, such as `pg19_small`, stands for its training split.

    Raises:
        CorpusError: there is none.
    """
    from engine.corpora.known import canonical_name

    wanted = canonical_name(name)
    corpora = list_corpora()
    for corpus in corpora:
        if corpus.name == wanted:
            return corpus
    here = [corpus.name for corpus in corpora if corpus.is_here]
    raise CorpusError(
        f"There is no corpus {name!r}. Here are: {', '.join(here)}. "
        "`python -m engine.download_corpora --list` shows what can be downloaded."
    )
