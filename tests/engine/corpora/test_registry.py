"""engine.corpora.registry: which corpora there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.corpora import find_corpus, list_corpora
from engine.corpora.known import KNOWN
from engine.corpora.registry import badly_named
from engine.errors import CorpusError
from engine.paths import PROJECT

AddCorpus = Callable[[str, str], Path]


def test_built_in_corpora_are_found_when_the_folder_was_moved() -> None:
    for name in ("verdict", "tiny"):
        corpus = find_corpus(name)
        assert corpus.path == PROJECT / "corpora" / f"{name}.txt"
        assert corpus.prompt and corpus.licence and corpus.description


def test_built_in_corpora_are_found_when_the_folder_does_not_exist(corpora_folder: Path) -> None:
    corpora_folder.rmdir()
    assert [c.name for c in list_corpora()] == [c.name for c in KNOWN]
    assert find_corpus("verdict").path.is_file()


def test_a_prompt_is_in_its_text() -> None:
    for name in ("verdict", "tiny"):
        corpus = find_corpus(name)
        assert corpus.prompt.lower() in corpus.path.read_text(encoding="utf-8").lower()


def test_a_dropped_text_file_is_a_corpus(add_corpus: AddCorpus) -> None:
    path = add_corpus("my_letters", "Dear reader.")
    corpus = find_corpus("my_letters")
    assert (corpus.path, corpus.title, corpus.built_in) == (path, "My letters", False)


def test_known_corpora_come_first_and_dropped_ones_by_name(add_corpus: AddCorpus) -> None:
    for name in ("zebra", "apple"):
        add_corpus(name, "text")
    assert [c.name for c in list_corpora()] == [*(c.name for c in KNOWN), "apple", "zebra"]


def test_what_is_no_text_file_is_no_corpus(corpora_folder: Path) -> None:
    (corpora_folder / "folder.txt").mkdir()
    (corpora_folder / "picture.png").write_bytes(b"x")
    (corpora_folder / ".hidden.txt").write_text("x")
    (corpora_folder / "nowhere.txt").symlink_to("does-not-exist")
    assert [c.name for c in list_corpora()] == [c.name for c in KNOWN]


def test_a_text_whose_name_cannot_be_a_corpus_is_told_apart(corpora_folder: Path) -> None:
    for name in ("my text.txt", "größe.md", ".hidden.txt", "picture 1.png", "good.txt"):
        (corpora_folder / name).write_text("x")
    assert [path.name for path in badly_named()] == ["größe.md", "my text.txt"]
    assert [c.name for c in list_corpora()][len(KNOWN) :] == ["good"]


@pytest.mark.parametrize("name", ["nothing", "", "../x", "../corpora/tiny", "/etc/passwd", "tiny.txt", "a\0b"])
def test_an_unknown_name_is_refused_with_the_names_there_are(name: str, corpora_folder: Path) -> None:
    (corpora_folder.parent / "x.txt").write_text("outside of the folder")
    with pytest.raises(CorpusError) as caught:
        find_corpus(name)
    assert "verdict" in str(caught.value) and "\n" not in str(caught.value)
