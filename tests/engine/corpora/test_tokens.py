"""engine.corpora.tokens: the cache is right, reused, and replaced as a whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import tokenizer
from engine.corpora import find_corpus, open_tokens, tokens
from engine.errors import CorpusError
from engine.paths import PROJECT

AddCorpus = Callable[[str, str], Path]


def cache_files(corpora: Path) -> dict[str, int]:
    """Every file of the cache but the locks -> when it was written."""
    return {p.name: p.stat().st_mtime_ns for p in (corpora / ".tokens").iterdir() if p.suffix != ".lock"}


def change_manifest(corpora: Path, name: str, **values: Any) -> None:
    path = corpora / ".tokens" / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def text_of(name: str) -> str:
    return tokenizer.decode(open_tokens(name).tokens.tolist())


def test_the_verdict_is_complete() -> None:
    corpus = open_tokens("verdict")
    assert corpus.characters == 20_479
    assert len(corpus.tokens) == 5_145
    assert corpus.source_sha256 == "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f"
    assert corpus.source_bytes == (PROJECT / "corpora" / "verdict.txt").stat().st_size


def test_tokens_are_those_of_the_text(add_corpus: AddCorpus) -> None:
    path = add_corpus("mine", "Grüße, 世界! 🙂\n" * 20)
    corpus = open_tokens("mine")
    assert corpus.tokens.dtype == np.uint16 and corpus.tokens.ndim == 1
    assert tokenizer.decode(corpus.tokens.tolist()) == path.read_text(encoding="utf-8")
    assert corpus.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (corpus.characters, corpus.source_bytes) == (13 * 20, path.stat().st_size)


def test_tokens_cannot_be_changed_by_who_reads_them() -> None:
    with pytest.raises(ValueError, match="read-only"):
        open_tokens("tiny").tokens[0] = 1


def test_the_cache_is_reused(corpora_folder: Path) -> None:
    first = open_tokens("tiny")
    before = cache_files(corpora_folder)
    second = open_tokens("tiny")
    assert cache_files(corpora_folder) == before and len(before) == 2
    assert np.array_equal(first.tokens, second.tokens)
    assert (first.source_sha256, first.characters) == (second.source_sha256, second.characters)


def test_a_changed_text_is_tokenized_anew_and_who_reads_the_old_one_goes_on(add_corpus: AddCorpus) -> None:
    add_corpus("mine", "The first text. " * 500)
    old = open_tokens("mine")
    expected = old.tokens.tolist()
    add_corpus("mine", "Another.")
    assert text_of("mine") == "Another."
    assert old.tokens.tolist() == expected  # replaced, not truncated: this would die of SIGBUS or show other ids


def test_a_text_of_the_same_size_is_noticed(add_corpus: AddCorpus) -> None:
    path = add_corpus("mine", "aaaa")
    open_tokens("mine")
    stat = path.stat()
    add_corpus("mine", "bbbb")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert text_of("mine") == "bbbb"


def test_only_the_current_tokens_are_kept(add_corpus: AddCorpus, corpora_folder: Path) -> None:
    for neighbour in ("mine_too", "mine-too"):
        add_corpus(neighbour, "the neighbour")
        open_tokens(neighbour)
    neighbours = {name: when for name, when in cache_files(corpora_folder).items() if "too" in name}
    for text in ("one", "two", "three"):
        add_corpus("mine", text)
        open_tokens("mine")
    files = cache_files(corpora_folder)
    assert {name: when for name, when in files.items() if "too" in name} == neighbours and len(neighbours) == 4
    assert len(files.keys() - neighbours.keys()) == 2


def test_a_touched_but_unchanged_text_is_not_tokenized_again(add_corpus: AddCorpus, corpora_folder: Path) -> None:
    path = add_corpus("mine", "The same as before.")
    open_tokens("mine")
    before = cache_files(corpora_folder)
    os.utime(path)
    open_tokens("mine")
    after = cache_files(corpora_folder)
    tokens_file = next(name for name in before if name.endswith(".uint16"))
    assert after[tokens_file] == before[tokens_file]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"tokens": 3}', "\xff", '{"format": 1, "tokens_file": "../../x"}']
)
def test_a_torn_or_foreign_manifest_is_made_anew(content: str, add_corpus: AddCorpus, corpora_folder: Path) -> None:
    add_corpus("mine", "Some text.")
    open_tokens("mine")
    (corpora_folder / ".tokens" / "mine.json").write_text(content, encoding="latin-1")
    assert text_of("mine") == "Some text."
    assert json.loads((corpora_folder / ".tokens" / "mine.json").read_text())["tokens"] == 3


@pytest.mark.parametrize(
    "changes",
    [{"format": 0}, {"tokenizer": "other"}, {"tokens": 4}, {"tokens_file": "gone.uint16"}, {"source_bytes": 1}],
)
def test_a_manifest_that_does_not_fit_is_made_anew(
    changes: dict[str, Any], add_corpus: AddCorpus, corpora_folder: Path
) -> None:
    add_corpus("mine", "Some text.")
    open_tokens("mine")
    change_manifest(corpora_folder, "mine", **changes)
    corpus = open_tokens("mine")
    assert (tokenizer.decode(corpus.tokens.tolist()), corpus.source_bytes) == ("Some text.", 10)


def test_a_manifest_cannot_point_outside_of_the_cache(add_corpus: AddCorpus, corpora_folder: Path) -> None:
    add_corpus("mine", "Some text.")
    open_tokens("mine")
    (corpora_folder / "secret").write_bytes(b"123456")  # as long as the tokens
    change_manifest(corpora_folder, "mine", tokens_file="../secret")
    assert text_of("mine") == "Some text."


@pytest.mark.parametrize("size", [0, 1, 5, 8])
def test_a_token_file_of_another_size_is_made_anew(size: int, add_corpus: AddCorpus, corpora_folder: Path) -> None:
    add_corpus("mine", "Some text.")
    open_tokens("mine")
    next((corpora_folder / ".tokens").glob("mine-*.uint16")).write_bytes(b"\0" * size)
    assert text_of("mine") == "Some text."


def refusal(name: str) -> str:
    with pytest.raises(CorpusError) as caught:
        open_tokens(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_text_that_is_not_utf_8(corpora_folder: Path) -> None:
    (corpora_folder / "old.txt").write_bytes("Grüße".encode("latin-1"))
    assert refusal("old") == f"{corpora_folder / 'old.txt'} is not UTF-8 text (byte 2). Save it as UTF-8."


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_an_empty_text(text: str, add_corpus: AddCorpus) -> None:
    path = add_corpus("empty", text)
    assert refusal("empty") == f"{path} is empty. Put some text into it."


def test_an_unknown_corpus() -> None:
    assert "There is no corpus 'nothing'" in refusal("nothing")


def test_a_failed_build_leaves_no_cache(corpora_folder: Path) -> None:
    (corpora_folder / "bad.txt").write_bytes(b"\xff\xfe")
    refusal("bad")
    assert cache_files(corpora_folder) == {}


def test_a_write_that_fails_is_told_with_its_cause(add_corpus: AddCorpus) -> None:
    """A limit on the size of files, in a process of its own, makes the write of the tokens fail for real."""
    add_corpus("mine", "word " * 20_000)
    code = (
        "import resource; from engine import tokenizer; tokenizer.encoding();"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000));"
        "from engine.corpora import open_tokens; from engine.errors import CorpusError\n"
        "try: open_tokens('mine')\n"
        "except CorpusError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "File too large" in result.stdout
    assert "mine" in result.stdout


def test_two_processes_that_build_at_once_agree(add_corpus: AddCorpus, corpora_folder: Path) -> None:
    path = add_corpus("big", "All work and no play makes a dull text. " * 10_000)
    code = (
        "import sys; from engine.corpora import open_tokens; import hashlib; print(flush=True); sys.stdin.readline();"
        "c = open_tokens('big'); print(len(c.tokens), hashlib.sha256(c.tokens.tobytes()).hexdigest())"
    )
    pipe = subprocess.PIPE
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdin=pipe, stdout=pipe, text=True)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        process.stdout.readline()  # both are ready
    outputs = [process.communicate("go\n", timeout=60)[0] for process in both]
    ids = np.array(tokenizer.encode(path.read_text()), dtype=np.uint16)
    assert outputs[0] == outputs[1] == f"{len(ids)} {hashlib.sha256(ids.tobytes()).hexdigest()}\n"
    assert sorted(p.suffix for p in (corpora_folder / ".tokens").iterdir()) == [".json", ".lock", ".uint16"]


# ------------------------------------------------------------------------------------------------ damage


def tokens_file(corpora: Path, name: str = "mine") -> Path:
    (path,) = (corpora / ".tokens").glob(f"{name}-*.uint16")
    return path


@pytest.mark.parametrize("place", [0, 1, 2, 777, 1500, -2, -1])
@pytest.mark.parametrize("bit", [1, 128])
def test_a_flipped_bit_is_found(place: int, bit: int, add_corpus: AddCorpus, corpora_folder: Path) -> None:
    text = "All work and no play makes a dull text. " * 100
    add_corpus("mine", text)
    open_tokens("mine")
    path = tokens_file(corpora_folder)
    data = bytearray(path.read_bytes())
    data[place] ^= bit
    path.write_bytes(data)
    assert text_of("mine") == text
    before = cache_files(corpora_folder)
    assert text_of("mine") == text and cache_files(corpora_folder) == before, "mended once, and for good"


def test_touched_but_equal_tokens_are_reused_and_read_through_once(
    add_corpus: AddCorpus, corpora_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_corpus("mine", "The same as before.")
    open_tokens("mine")
    path = tokens_file(corpora_folder)
    inode = path.stat().st_ino
    os.utime(path, ns=(0, 0))
    hashed: list[Path] = []
    real = tokens._sha256
    monkeypatch.setattr(tokens, "_sha256", lambda path: (hashed.append(path), real(path))[1])
    for _ in range(3):
        assert text_of("mine") == "The same as before."
    assert hashed == [path] and path.stat().st_ino == inode


@pytest.mark.parametrize(
    "changes", [{"tokens_file": "mine-\0.uint16"}, {"tokens_file": ""}, {"tokens_file": "."}, {"mode": "documents"}]
)
def test_a_manifest_that_was_tampered_with_is_made_anew(
    changes: dict[str, Any], add_corpus: AddCorpus, corpora_folder: Path
) -> None:
    add_corpus("mine", "Some text.")
    open_tokens("mine")
    change_manifest(corpora_folder, "mine", **changes)
    assert tokens.cached_facts(find_corpus("mine")) is None
    assert text_of("mine") == "Some text."


def test_a_manifest_of_nothing(add_corpus: AddCorpus, corpora_folder: Path) -> None:
    add_corpus("mine", "Some text.")
    open_tokens("mine")
    tokens_file(corpora_folder).write_bytes(b"")
    change_manifest(corpora_folder, "mine", tokens=0, tokens_sha256=hashlib.sha256(b"").hexdigest())
    assert text_of("mine") == "Some text."


def test_another_mode_gives_other_tokens_of_the_same_text(
    add_corpus: AddCorpus, corpora_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark of TinyStories is text in one mode, and the separator in the other; the file's hash is the same."""
    add_corpus("mine", "One.<|endoftext|>Two.")
    plain = open_tokens("mine")
    real = find_corpus
    with monkeypatch.context() as patch:
        patch.setattr(tokens, "find_corpus", lambda name: replace(real(name), marked=True))
        marked = open_tokens("mine")
    assert (plain.documents, marked.documents) == (1, 2)
    assert tokenizer.END_OF_TEXT in marked.tokens and tokenizer.END_OF_TEXT not in plain.tokens
    assert np.array_equal(open_tokens("mine").tokens, plain.tokens)


# ------------------------------------------------------------------------------------------------ large files


def write_prose(path: Path, megabytes: int) -> None:
    """Prose of many different words, quickly: lines of a few thousand, in an order that does not repeat."""
    random = np.random.default_rng(7)
    parts = ["ba", "de", "mi", "lo", "su", "tra", "ken", "shi", "on", "er"]
    words = np.array([a + b + c for a in parts for b in parts for c in parts])
    lines = [" ".join(random.choice(words, 12)) + f" {i}.\n" for i in range(3000)]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(megabytes):
            block = "".join(lines[i] for i in random.integers(0, len(lines), 16_000))
            file.write(block[:1_000_000])


def test_the_second_time_a_large_corpus_is_there_at_once(corpora_folder: Path) -> None:
    write_prose(corpora_folder / "large.txt", 20)
    first = open_tokens("large")
    began = time.process_time()
    second = open_tokens("large")
    assert time.process_time() - began < 0.1
    assert len(second.tokens) == len(first.tokens) > 3_000_000


def python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_large_file_is_tokenized_in_bounded_memory(corpora_folder: Path) -> None:
    write_prose(corpora_folder / "large.txt", 64)
    peak = python(
        "from engine.corpora import open_tokens; from engine.environment import peak_bytes; open_tokens('large');"
        "print(peak_bytes())"
    )
    assert int(peak) < 600e6, f"{int(peak) / 1e6:.0f} MB"


def test_of_two_processes_one_builds(add_corpus: AddCorpus, corpora_folder: Path) -> None:
    add_corpus("big", "All work and no play makes a dull text. " * 100_000)
    code = (
        "import sys; from engine.corpora import open_tokens, tokens; build = tokens._build\n"
        "def counted(*a): print('built'); return build(*a)\n"
        "tokens._build = counted; print('ready', flush=True); sys.stdin.readline(); open_tokens('big')"
    )
    pipe = subprocess.PIPE
    several = [
        subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdin=pipe, stdout=pipe, text=True)
        for _ in range(3)
    ]
    for process in several:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in several:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0] for process in several]
    assert sorted(outputs) == ["", "", "built\n"] and all(process.returncode == 0 for process in several)


@pytest.mark.parametrize("moment", ["tokens", "manifest"])
def test_a_disk_that_fills_up_leaves_nothing(moment: str, add_corpus: AddCorpus, corpora_folder: Path) -> None:
    """For real, in a process that may write files of so many bytes; the manifest is smaller, so it is made to fail."""
    add_corpus("mine", "word " * 20_000)
    limit = (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))"
        if moment == "tokens"
        else "tokens.write_json = full"
    )
    printed = python(
        "import resource, os; from engine import tokenizer; from engine.corpora import open_tokens, tokens\n"
        "from engine.errors import CorpusError\n"
        "def full(*_): raise OSError(28, 'No space left on device')\n"
        f"{limit}\n"
        "try: open_tokens('mine')\n"
        "except CorpusError as error: print(error)\n"
    )
    assert printed.startswith("Corpus mine: ") and printed.count("\n") == 1
    assert cache_files(corpora_folder) == {}
    assert text_of("mine") == "word " * 20_000


def test_too_little_space_is_found_before_anything_is_read(
    add_corpus: AddCorpus, corpora_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_corpus("mine", "word " * 20_000)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 59_999, 59_999))
    assert refusal("mine").startswith("The tokens of Mine need about 0.1 MB")
    assert cache_files(corpora_folder) == {}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 60_000, 60_000))
    assert text_of("mine") == "word " * 20_000


def test_what_a_killed_process_left_is_removed(add_corpus: AddCorpus, corpora_folder: Path) -> None:
    add_corpus("mine", "Some text.")
    (corpora_folder / ".tokens").mkdir()
    for name in (".mine.uint16.0123abcd.part", ".mine-too.uint16.0123abcd.part"):
        (corpora_folder / ".tokens" / name).write_bytes(b"half")
    open_tokens("mine")
    assert sorted(p.suffix for p in (corpora_folder / ".tokens").iterdir()) == [".json", ".lock", ".part", ".uint16"]
