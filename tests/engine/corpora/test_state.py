"""engine.corpora.state: every word for how far a corpus is."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.corpora import find_corpus, jobs, list_corpora, open_tokens
from engine.corpora.progress import Progress
from engine.corpora.state import QUICK, State, is_ready, state_of
from engine.errors import CorpusError

AddCorpus = Callable[[str, str], Path]


def now(name: str) -> State:
    return state_of(find_corpus(name))


def test_available() -> None:
    state = now("shakespeare")
    assert state == State("available", None, 0, None, None, None) and not state.is_busy


def test_every_corpus_has_a_state_at_once() -> None:
    began = time.process_time()
    states = {corpus.name: state_of(corpus).word for corpus in list_corpora()}
    assert time.process_time() - began < 0.1
    assert states.pop("verdict") == states.pop("tiny") == "here"
    assert set(states.values()) == {"available"} and len(states) > 20


def test_partly_downloaded(corpora_folder: Path) -> None:
    (corpora_folder / ".sources").mkdir()
    (corpora_folder / ".sources" / "shakespeare.txt.part").write_bytes(b"x" * 1234)
    assert now("shakespeare") == State("partly downloaded", None, 1234, None, None, None)


def test_downloaded_and_then_tokenized(add_corpus: AddCorpus) -> None:
    path = add_corpus("shakespeare", "To be or not to be.\n" * 50)
    assert now("shakespeare") == State("downloaded", 1000, 0, None, None, None)
    corpus = open_tokens("shakespeare")
    assert now("shakespeare") == State("tokenized", 1000, 0, len(corpus.tokens), 1, None)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert now("shakespeare").word == "downloaded", "nobody knows before the text is read"
    open_tokens("shakespeare")
    assert now("shakespeare").word == "tokenized"
    add_corpus("shakespeare", "Another text.")
    assert now("shakespeare") == State("downloaded", 13, 0, None, None, None)


def test_ones_own_text_is_here_and_then_tokenized(corpora_folder: Path) -> None:
    path = corpora_folder / "mine.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("One.", "Two.")))
    assert now("mine").word == "here"
    open_tokens("mine")
    assert (now("mine").word, now("mine").documents) == ("tokenized", 2)
    next((corpora_folder / ".tokens").glob("mine-*.uint16")).unlink()
    assert (now("mine").word, now("mine").tokens) == ("here", None)


@pytest.mark.parametrize(
    ("title", "word"),
    [
        ("Downloading Tiny Shakespeare", "downloading"),
        ("Preparing Tiny Shakespeare", "preparing"),
        ("Tokenizing Tiny Shakespeare", "tokenizing"),
        ("Measuring the loss ladder", "measuring"),
        ("Waiting", "waiting"),
    ],
)
@pytest.mark.parametrize("name", ["shakespeare", "tiny"])
def test_at_work(name: str, title: str, word: str) -> None:
    looks: list[State] = []

    def work(progress: Progress) -> None:
        looks.append(now(name))
        progress.begin(title, 100)
        looks.append(now(name))

    before = now(name)
    jobs.run(name, "download", work)
    assert [(state.word, state.is_busy) for state in looks] == [("starting", True), (word, True)]
    after = now(name)
    assert (after.word, after.is_busy) == (before.word, False)
    assert after.job is not None and after.job.state == "done"


def test_a_job_that_failed_is_told_and_the_word_is_that_of_the_files() -> None:
    def work(progress: Progress) -> None:
        raise CorpusError("The moon is gone.")

    with pytest.raises(CorpusError):
        jobs.run("shakespeare", "download", work)
    state = now("shakespeare")
    assert state.word == "available" and not state.is_busy
    assert state.job is not None and (state.job.state, state.job.error) == ("failed", "The moon is gone.")


def test_a_file_that_goes_while_it_is_looked_at(add_corpus: AddCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the moment, the answer is a state and no error."""
    path = add_corpus("shakespeare", "To be or not to be.")
    corpus = find_corpus("shakespeare")
    open_tokens("shakespeare")
    whole = Path.stat
    for looks in range(6):
        path.write_text("To be or not to be.")
        left = looks

        def stat(self: Path, *, follow_symlinks: bool = True) -> os.stat_result:
            nonlocal left
            if left == 0:
                path.unlink(missing_ok=True)
            left -= 1
            return whole(self, follow_symlinks=follow_symlinks)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "stat", stat)
            assert state_of(corpus).word in ("available", "downloaded", "tokenized")
            assert is_ready(corpus) in (True, False)


def test_a_folder_is_no_corpus(corpora_folder: Path) -> None:
    (corpora_folder / "shakespeare.txt").mkdir()
    assert now("shakespeare").bytes is None and not is_ready(find_corpus("shakespeare"))


def test_a_run_can_start_at_once_on_a_small_text_or_a_tokenized_one(corpora_folder: Path) -> None:
    assert is_ready(find_corpus("tiny")) and not is_ready(find_corpus("shakespeare"))
    path = corpora_folder / "shakespeare.txt"
    path.write_bytes(b"word " * (QUICK // 5))
    assert is_ready(find_corpus("shakespeare"))
    path.write_bytes(b"word " * (QUICK // 5) + b"\n")
    assert not is_ready(find_corpus("shakespeare"))
    open_tokens("shakespeare")
    assert is_ready(find_corpus("shakespeare"))
