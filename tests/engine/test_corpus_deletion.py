"""engine.corpus_deletion: what is deleted is gone whole, and nothing that is in use or comes with the lab is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine import TrainConfig
from engine.corpora import find_corpus, jobs, open_tokens
from engine.corpora.state import state_of
from engine.corpus_deletion import deletable_bytes, delete_corpus
from engine.errors import CorpusError
from engine.start import new_run

AddCorpus = Callable[[str, str], Path]
TEXT = "A text of one's own, long enough to be trained on. " * 100


def left_of(folder: Path, name: str) -> list[str]:
    return sorted(path.name for path in folder.rglob(f"{name}*") if path.is_file())


def test_text_tokens_and_the_job_are_gone_and_the_neighbour_stays(add_corpus: AddCorpus, corpora_folder: Path) -> None:
    for name in ("mine", "mine-2"):
        add_corpus(name, TEXT)
        jobs.run(name, "tokenize", lambda _, name=name: open_tokens(name))
    neighbour = left_of(corpora_folder, "mine-2")
    assert deletable_bytes(find_corpus("mine")) > 2 * len(open_tokens("mine").tokens) + len(TEXT)
    delete_corpus("mine")
    assert set(left_of(corpora_folder, "mine")) - set(neighbour) == {"mine.lock"}
    assert left_of(corpora_folder, "mine-2") == neighbour
    with pytest.raises(CorpusError, match="There is no corpus 'mine'"):
        find_corpus("mine")


def test_a_downloaded_one_can_be_had_again(add_corpus: AddCorpus) -> None:
    add_corpus("shakespeare", TEXT)
    open_tokens("shakespeare")
    delete_corpus("shakespeare")
    state = state_of(find_corpus("shakespeare"))
    assert (state.word, state.tokens, state.job) == ("available", None, None)
    assert deletable_bytes(find_corpus("shakespeare")) == 0
    delete_corpus("shakespeare")  # another tab did it already


def test_what_is_in_use_is_refused(add_corpus: AddCorpus, corpora_folder: Path, runs_folder: Path) -> None:
    path = add_corpus("mine", TEXT)
    lock = jobs.claim("mine")
    assert lock
    with pytest.raises(CorpusError, match="is being worked on"):
        delete_corpus("mine")
    lock.release()
    run = new_run(TrainConfig(corpus="tiny", val_corpus="mine", context_length=16, batch_size=1))
    with pytest.raises(CorpusError, match=f"is in use by run {run.id}"):
        delete_corpus("mine")
    run.set_state("stopped")
    run.close()
    assert path.exists() and open_tokens("mine")
    delete_corpus("mine")
    assert not path.exists() and not jobs.is_busy("mine")


@pytest.mark.parametrize("name", ["verdict", "tiny"])
def test_what_comes_with_the_lab_stays(name: str) -> None:
    assert deletable_bytes(find_corpus(name)) == 0
    with pytest.raises(CorpusError, match="comes with the lab"):
        delete_corpus(name)


def test_a_manifest_that_names_another_file_deletes_nothing_else(add_corpus: AddCorpus, corpora_folder: Path) -> None:
    add_corpus("mine", TEXT)
    open_tokens("mine")
    manifest = corpora_folder / ".tokens" / "mine.json"
    precious = corpora_folder / "precious.txt"
    precious.write_text("x")
    manifest.write_text('{"tokens_file": "../precious.txt"}')
    delete_corpus("mine")
    assert precious.exists() and not manifest.exists()
