"""engine.corpora.add: a person's text becomes a corpus, or one sentence says why not and nothing is left behind."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.corpora import add, find_corpus, open_tokens
from engine.corpora.add import add_file, add_text, name_problem, suggest_name
from engine.corpora.jobs import claim
from engine.corpora.progress import CancelledError, Progress, Stage
from engine.corpora.registry import NAME
from engine.errors import CorpusError
from engine.paths import PROJECT

BLOCK = add._BLOCK


def added(data: bytes, file_name: str = "notes.txt", name: str = "mine", progress: Progress | None = None) -> Any:
    return add_text(io.BytesIO(data), len(data), file_name, name, progress)


def left(corpora: Path) -> list[str]:
    """Everything in the folder but the locks, which stay."""
    return sorted(str(p.relative_to(corpora)) for p in corpora.rglob("*") if p.is_file() and p.suffix != ".lock")


def refusal(data: bytes, file_name: str = "notes.txt", name: str = "mine") -> str:
    with pytest.raises(CorpusError) as caught:
        added(data, file_name, name)
    assert "\n" not in str(caught.value) and ".part" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ what is taken


@pytest.mark.parametrize("suffix", [".txt", ".md", ".TXT", ".Md"])
def test_a_text_is_copied_byte_for_byte(suffix: str, corpora_folder: Path) -> None:
    data = "\ufeffGrüße, 世界! 🙂\r\n".encode() * 3
    corpus = added(data, f"My notes{suffix}")
    assert (corpus.name, corpus.suffix, corpus.mode) == ("mine", suffix.lower(), "text")
    assert corpus.path == corpora_folder / f"mine{suffix.lower()}" and corpus.path.read_bytes() == data
    assert left(corpora_folder) == [corpus.path.name]
    assert len(open_tokens("mine").tokens) > 10


def test_documents_are_taken_line_by_line(corpora_folder: Path) -> None:
    lines = [json.dumps({"text": text}) for text in ("One.", "Two.", "Three.")]
    corpus = added("\n\n".join(lines).encode(), "notes.jsonl")
    assert corpus.mode == "documents" and left(corpora_folder) == ["mine.jsonl"]
    assert open_tokens("mine").documents == 3


def test_a_file_is_copied_and_stays_where_it_was(tmp_path: Path, corpora_folder: Path) -> None:
    path = tmp_path / "Über mich.txt"
    path.write_text("Once upon a time.")
    corpus = add_file(path)
    assert (corpus.name, path.read_text()) == ("ber_mich", corpus.path.read_text())


def test_the_corpora_folder_is_made_when_it_is_not_there(corpora_folder: Path) -> None:
    corpora_folder.rmdir()
    assert added(b"Once upon a time.").is_here


@pytest.mark.parametrize("position", range(BLOCK - 4, BLOCK + 1))
def test_a_character_across_two_blocks_is_one(position: int) -> None:
    data = b"a" * position + "🙂".encode() + b"b" * 10
    assert added(data).path.read_bytes() == data


def test_progress_goes_to_the_end() -> None:
    stages: list[Stage] = []
    data = json.dumps({"text": "word " * 300_000}).encode() + b"\n"
    added(data, "notes.jsonl", progress=Progress(stages.append))
    ends = {stage.title: (stage.done, stage.total) for stage in stages}
    assert ends == {title: (len(data), len(data)) for title in ("Adding notes.jsonl", "Checking notes.jsonl")}


# ------------------------------------------------------------------------------------------------ names

ESCAPES = [
    "../x",
    "..",
    ".",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a\0b",
    ".hidden",
    "-rf",
    "_x",
    "a\n",
    "\n",
    "~",
    "a b",
    "a.b",
]


@pytest.mark.parametrize("name", [*ESCAPES, "", "é", "世界", "x" * 65, "Ａ", "٣"])
def test_what_cannot_be_a_name(name: str, corpora_folder: Path) -> None:
    assert "cannot be a name" in refusal(b"Some text.", name=name)
    assert left(corpora_folder.parent) == [] and os.listdir(corpora_folder) == []


@pytest.mark.parametrize("name", ["a", "9", "x" * 64, "My-notes_2"])
def test_what_can_be_a_name(name: str) -> None:
    assert name_problem(name) == "" and added(b"Some text.", name=name).name == name


@pytest.mark.parametrize(
    ("name", "existing"),
    [
        ("verdict", "verdict"),
        ("Verdict", "verdict"),
        ("tinystories", "tinystories"),
        ("pg19", "pg19_train"),
        ("pg19_small", "pg19_train_small"),
        ("PG19_Small", "pg19_train_small"),
        ("pg19_docs_small", "pg19_train_small_docs"),
        ("Dropped", "Dropped"),
        ("dropped", "Dropped"),
        ("DROPPED", "Dropped"),
    ],
)
def test_a_name_that_exists(name: str, existing: str, corpora_folder: Path) -> None:
    (corpora_folder / "Dropped.md").write_text("the text that was there")
    assert refusal(b"Some text.", name=name) == f"There is a corpus {existing!r} already: choose another name."
    assert left(corpora_folder) == ["Dropped.md"]
    assert (corpora_folder / "Dropped.md").read_text() == "the text that was there"


def test_name_and_kind_are_told_together(corpora_folder: Path) -> None:
    message = refusal(b"%PDF\0", "thesis.pdf", "../x")
    assert "'../x' cannot be a name" in message and "thesis.pdf is none of .txt, .jsonl, .md" in message
    message = refusal(b"", "verdict", "verdict")
    assert "There is a corpus 'verdict' already" in message and "verdict is none of" in message
    assert os.listdir(corpora_folder) == []


@pytest.mark.parametrize("file_name", ["notes.pdf", "notes", ".txt", "notes.txt.gz", "notes.json"])
def test_a_wrong_ending(file_name: str, corpora_folder: Path) -> None:
    assert refusal(b"Some text.", file_name).startswith(f"{file_name} is none of .txt, .jsonl, .md")
    assert os.listdir(corpora_folder) == []


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("notes.txt", "notes"),
        ("My Notes (final).txt", "My_Notes__final"),
        ("/etc/../x y.md", "x_y"),
        ("__a__.txt", "a"),
        ("世界.txt", "my_text"),
        ("...", "my_text"),
        ("", "my_text"),
        ("archive.tar.txt", "archive_tar"),
    ],
)
def test_a_suggested_name(file_name: str, name: str) -> None:
    assert suggest_name(file_name) == name


@given(st.text(max_size=100))
def test_every_suggested_name_can_be_one(file_name: str) -> None:
    assert NAME.fullmatch(suggest_name(file_name))


# ------------------------------------------------------------------------------------------------ contents


@pytest.mark.parametrize("position", [0, 1, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK + 7])
@pytest.mark.parametrize("wrong", [b"\xff", b"\xc3(", b"\xe4\xb8(", b"\xf0\x9f\x99(", b"\xed\xa0\x80"])
def test_not_utf_8_is_told_with_its_place(position: int, wrong: bytes, corpora_folder: Path) -> None:
    message = refusal(b"a" * position + wrong + b"b" * 20)
    assert message == f"notes.txt is not UTF-8 text (byte {position:,}). Save it as UTF-8."
    assert left(corpora_folder) == []


@pytest.mark.parametrize("position", [0, 5, BLOCK - 2])
@pytest.mark.parametrize("wrong", [b"\xc3", b"\xe4\xb8", b"\xf0\x9f\x99"])
def test_a_character_that_is_cut_off_at_the_end(position: int, wrong: bytes, corpora_folder: Path) -> None:
    message = refusal(b"a" * position + wrong)
    assert message == f"notes.txt is not UTF-8 text (byte {position:,}). Save it as UTF-8."
    assert left(corpora_folder) == []


@pytest.mark.parametrize("position", [0, 10, BLOCK + 3])
def test_a_binary_file(position: int, corpora_folder: Path) -> None:
    message = refusal(b"a" * position + b"\0" + b"b" * 10)
    assert message == f"notes.txt is not text: byte {position:,} is zero. Save it as UTF-8 text."
    assert left(corpora_folder) == []


def test_utf_16_is_none_of_ours(corpora_folder: Path) -> None:
    assert "UTF-8" in refusal("Grüße".encode("utf-16"))
    assert left(corpora_folder) == []


BLANKS = [b"", b" \n\t\r\n ", b"\xef\xbb\xbf", b"\xef\xbb\xbf \n", "\u3000\u2003".encode(), b" " * (2 * BLOCK + 1)]


@pytest.mark.parametrize("blank", BLANKS, ids=lambda blank: f"{len(blank)} bytes")
@pytest.mark.parametrize("suffix", [".txt", ".md", ".jsonl"])
def test_an_empty_file(blank: bytes, suffix: str, corpora_folder: Path) -> None:
    assert refusal(blank, f"notes{suffix}").startswith(f"notes{suffix} is empty")
    assert left(corpora_folder) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"not json", "line 3: not JSON"),
        (b'{"text": 3}', "line 3: no text"),
        (b'{"body": "x"}', "line 3: no text"),
        (b'["text"]', "line 3: no text"),
        (b'{"text": "torn', "line 3: not JSON"),
    ],
)
def test_a_bad_line_is_named(line: bytes, words: str, corpora_folder: Path) -> None:
    good = b'{"text": "Once upon a time."}\n'
    message = refusal(good + b"\n" + line + b"\n" + good, "notes.jsonl")
    assert message.startswith(f"notes.jsonl, {words}") and str(corpora_folder) not in message
    assert left(corpora_folder) == []


def test_documents_without_any_text(corpora_folder: Path) -> None:
    assert refusal(b'{"text": ""}\n{"text": " \\n"}\n', "notes.jsonl").startswith("notes.jsonl is empty")
    assert left(corpora_folder) == []


# ------------------------------------------------------------------------------------------------ the disk, others


@pytest.mark.parametrize("path", ["", "missing.txt"])
def test_a_file_that_cannot_be_read(path: str, tmp_path: Path, corpora_folder: Path) -> None:
    with pytest.raises(CorpusError) as caught:
        add_file(tmp_path / path, "mine")
    assert str(tmp_path / path) in str(caught.value) and "\n" not in str(caught.value)
    assert left(corpora_folder) == []


def test_too_little_space_is_found_before_anything_is_copied(
    corpora_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 91, 9))
    assert refusal(b"Some text.").startswith("The bytes of notes.txt need about 0.0 MB")
    assert left(corpora_folder) == []


@pytest.mark.parametrize("moment", ["write", "fsync", "rename"])
def test_a_full_disk_leaves_nothing(moment: str, corpora_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    if moment == "write":
        monkeypatch.setattr(add, "_copy", lambda file, part, *_: (part.write_bytes(b"some"), full()))
    elif moment == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "rename", full)
    assert "is full. Free some space, then try again." in refusal(b"Some text.")
    assert left(corpora_folder) == []
    monkeypatch.undo()


def test_a_cancel_leaves_nothing(corpora_folder: Path) -> None:
    asked = iter([False, False, False, True])
    with pytest.raises(CancelledError):
        added(b"word " * BLOCK, progress=Progress(cancelled=lambda: next(asked)))
    assert left(corpora_folder) == []


def test_what_a_killed_process_left_is_removed_by_the_next_attempt(corpora_folder: Path) -> None:
    for name in (".mine.txt.0123abcd.part", ".other.txt.0123abcd.part"):
        (corpora_folder / name).write_text("half a copy")
    added(b"Some text.")
    assert left(corpora_folder) == [".other.txt.0123abcd.part", "mine.txt"]


def test_who_comes_second_overwrites_nothing(corpora_folder: Path) -> None:
    """Two uploads under one name at the same time, one of them slower."""
    lock = claim("mine")
    assert lock is not None
    try:
        assert "Another process is making a corpus 'mine' now" in refusal(b"Some text.")
    finally:
        lock.release()

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            (corpora_folder / "mine.md").write_text("the quicker one")  # dropped into the folder meanwhile
            return super().read(size)

    with pytest.raises(CorpusError, match="There is a corpus 'mine' already"):
        add_text(Slow(b"the slower one"), 14, "notes.txt", "mine")
    assert left(corpora_folder) == ["mine.md"] and (corpora_folder / "mine.md").read_text() == "the quicker one"


def test_of_many_at_once_exactly_one_wins(corpora_folder: Path) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(6)

    def attempt(number: int) -> None:
        barrier.wait()
        try:
            added(f"text {number}".encode() * 50_000)
            outcomes.append(f"text {number}")
        except CorpusError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [outcome for outcome in outcomes if outcome.startswith("text")]
    assert len(winners) == 1 and len(outcomes) == 6
    assert left(corpora_folder) == ["mine.txt"]
    assert (corpora_folder / "mine.txt").read_text() == winners[0] * 50_000


def test_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    """60 MB; what a process grows by while it copies and checks them."""
    text = b"All work and no play. " * 200
    for suffix, line in ((".txt", text + b"\n"), (".jsonl", b'{"text": "' + text + b'"}\n')):
        with (tmp_path / f"large{suffix}").open("wb") as file:
            block = line * (1_000_000 // len(line))
            for _ in range(60):
                file.write(block)
    code = (
        "import sys; from pathlib import Path; from engine.environment import peak_bytes\n"
        "from engine.corpora.add import add_file\n"
        "before = peak_bytes(); add_file(Path(sys.argv[1]), sys.argv[2]); print(peak_bytes() - before)"
    )
    for suffix, name in ((".txt", "one"), (".jsonl", "two")):
        command = [sys.executable, "-c", code, str(tmp_path / f"large{suffix}"), name]
        result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
        assert int(result.stdout) < 20e6, f"{suffix}: {result.stdout} bytes"
        assert find_corpus(name).path.stat().st_size > 59e6
