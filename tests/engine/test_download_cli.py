"""`python -m engine.download_corpora`: what it gets, says and refuses; never a traceback."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.cli.download import main
from engine.corpora import find_corpus, jobs, known, list_corpora, open_tokens, patience
from engine.corpora.download import kept_bytes
from engine.corpora.ladder import cached_ladder
from engine.corpora.progress import CancelledError
from engine.corpora.state import state_of
from engine.errors import CorpusError
from engine.paths import PROJECT
from tests.web import Fault, Web, fill
from tests.with_small_sources import shrink

SHAKESPEARE = "/shakespeare.txt"


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """All sources in miniature on this machine, and a registry that expects them."""
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.002)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with Web() as servers:
        shrink(fill(servers, 60_000), monkeypatch.setattr)
        for name, value in servers.environment.items():
            monkeypatch.setenv(name, value)
        yield servers


Capture = pytest.CaptureFixture[str]


def said(capsys: Capture, code: int, *arguments: str) -> tuple[str, str]:
    """Run the command in this process; its output and its errors, once it ended as it should."""
    ended = main(list(arguments))
    printed = capsys.readouterr()
    assert ended == code, printed
    assert "Traceback" not in printed.out + printed.err
    return printed.out, printed.err


# ------------------------------------------------------------------------------------------------ listing


def test_the_list_has_every_corpus_and_its_state(corpora_folder: Path, capsys: Capture) -> None:
    (corpora_folder / "mine.md").write_text("My own text.")
    open_tokens("tiny")
    out, err = said(capsys, 0, "--list")
    lines = {line.split()[0]: line for line in out.splitlines() if line and not line.startswith(" ")}
    assert err == "" and lines.keys() >= {corpus.name for corpus in list_corpora()}
    assert " built in " in lines["verdict"]
    assert " tokenized " in lines["tiny"] and f"{len(open_tokens('tiny').tokens):,} tokens" in lines["tiny"]
    assert " here " in lines["mine"]
    assert " available " in lines["tinystories"] and lines["tinystories"].endswith("~1,924.3 MB")


def test_the_list_as_json(corpora_folder: Path, capsys: Capture) -> None:
    (corpora_folder / "shakespeare.txt").write_text("To be or not to be.\n" * 50)
    (corpora_folder / ".sources").mkdir()
    (corpora_folder / ".sources" / "tinystories.txt.part").write_bytes(b"x" * 77)
    tokens = len(open_tokens("shakespeare").tokens)
    rows = {row["name"]: row for row in json.loads(said(capsys, 0, "--list", "--json")[0])}
    assert list(rows) == [corpus.name for corpus in list_corpora()]
    assert rows["shakespeare"] | {"licence": "", "source": "", "description": ""} == {
        "name": "shakespeare",
        "state": "tokenized",
        "built_in": False,
        "bytes": 1000,
        "kept_bytes": 0,
        "expected_bytes": 1_115_394,
        "tokens": tokens,
        "documents": 1,
        "validation": "",
        "licence": "",
        "source": "",
        "description": "",
    }
    stories = rows["tinystories"]
    assert (stories["state"], stories["bytes"], stories["kept_bytes"]) == ("partly downloaded", None, 77)
    assert stories["validation"] == "tinystories_validation" and stories["licence"] == "CDLA-Sharing-1.0"
    assert rows["wikipedia_ga_intros"]["expected_bytes"] is None, "nobody knows"
    assert rows["verdict"]["built_in"]


# ------------------------------------------------------------------------------------------------ wrong usage


def test_all_unknown_names_are_told_together_and_nothing_is_fetched(web: Web, capsys: Capture) -> None:
    out, err = said(capsys, 2, "shakespeare", "moby", "pg19_tiny")
    assert out == "" and "There is no corpus 'moby'" in err and "There is no corpus 'pg19_tiny'" in err
    assert web.asked(SHAKESPEARE) == [] and not find_corpus("shakespeare").is_here


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["say one of"]),
        (["--tokenize"], ["say one of"]),
        (["--list", "--all"], ["say one of"]),
        (["shakespeare", "--all"], ["say one of"]),
        (["shakespeare", "--list"], ["say one of"]),
        (["--add", "x.txt", "--list"], ["say one of"]),
        (["shakespeare", "--add", "x.txt"], ["say one of"]),
        (["shakespeare", "--json"], ["--json: it goes with --list only."]),
        (["shakespeare", "--name", "x"], ["--name: it goes with --add only."]),
        (["--list", "--tokenize"], ["--tokenize: it does not go with --list."]),
        (["--json", "--name", "x"], ["say one of", "--json:", "--name:"]),
    ],
)
def test_wrong_usage(arguments: list[str], words: list[str], capsys: Capture) -> None:
    out, err = said(capsys, 2, *arguments)
    assert out == "" and len(err.splitlines()) == len(words)
    for word in words:
        assert word in err


def test_an_unknown_flag_is_usage_too(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--tokenise"])
    assert caught.value.code == 2


# ------------------------------------------------------------------------------------------------ downloading


def test_a_corpus_comes_with_its_official_splits(web: Web, capsys: Capture) -> None:
    out, _ = said(capsys, 0, "wikitext2", "shakespeare")
    names = ["wikitext2", "wikitext2_validation", "wikitext2_test", "shakespeare"]
    assert [line.split(": ready, ")[0] for line in out.splitlines()] == names
    for name, line in zip(names, out.splitlines(), strict=True):
        corpus = find_corpus(name)
        assert corpus.is_here and line.endswith(f" in {corpus.path}")
        job = jobs.job_of(name)
        assert job is not None and (job.kind, job.state) == ("download", "done")
        assert state_of(corpus).word == "downloaded"
    web.forget()
    out, _ = said(capsys, 0, "wikitext2", "shakespeare")
    assert [line.split(": is here, ")[0] for line in out.splitlines()] == names
    assert web.sent() == 0


def test_a_family_of_books(web: Web, capsys: Capture) -> None:
    out, _ = said(capsys, 0, "pg19_docs_small")
    names = [f"pg19_{split}_small_docs" for split in ("train", "validation", "test")]
    assert [line.split(":")[0] for line in out.splitlines()] == names
    assert open_tokens(names[1]).documents == 6


def test_tokenize_also_measures(web: Web, capsys: Capture) -> None:
    said(capsys, 0, "shakespeare", "--tokenize")
    assert state_of(find_corpus("shakespeare")).word == "tokenized"
    assert cached_ladder(open_tokens("shakespeare").source_sha256, None, jobs.VAL_FRACTION) is not None
    job = jobs.job_of("shakespeare")
    assert job is not None and job.state == "done" and job.verb == "measuring"


def test_tokenize_with_official_validation_has_the_ladder_of_both(web: Web, capsys: Capture) -> None:
    said(capsys, 0, "tinystories", "--tokenize")
    both = [open_tokens(name).source_sha256 for name in ("tinystories", "tinystories_validation")]
    assert cached_ladder(both[0], both[1], jobs.VAL_FRACTION) is not None


def test_one_that_fails_does_not_stop_the_others(web: Web, capsys: Capture) -> None:
    web.fail(SHAKESPEARE, then=Fault(status=404))
    out, err = said(capsys, 1, "shakespeare", "wikitext2_test", "tinystories_validation")
    assert [line.split(":")[0] for line in out.splitlines()] == ["wikitext2_test", "tinystories_validation"]
    errors = [line for line in err.splitlines() if "shakespeare" in line and "404" in line]
    assert len(errors) == 1
    job = jobs.job_of("shakespeare")
    assert job is not None and job.state == "failed" and job.error in errors[0]


def test_all_means_all(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    asked: list[str] = []
    monkeypatch.setattr("engine.cli.download._download", lambda names, tokenize: asked.extend(names) or 0)
    said(capsys, 0, "--all")
    assert asked == [corpus.name for corpus in known.KNOWN if not corpus.built_in]


def test_a_failure_is_not_forgotten_when_the_rest_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fate(corpus: object, *, tokenize: bool) -> None:
        name = corpus.name  # type: ignore[attr-defined]
        raise CorpusError("The moon is gone.") if name == "shakespeare" else CancelledError("Cancelled.")

    monkeypatch.setattr("engine.cli.download.work_on", fate)
    out, err = said(capsys, 1, "shakespeare", "wikitext2_test", "tinystories_validation")
    assert out == "" and err.splitlines() == [
        "shakespeare: The moon is gone.",
        "wikitext2_test: cancelled. What was fetched is kept; the same command goes on from there.",
    ]


@pytest.mark.parametrize("way", ["SIGINT", "SIGTERM", "the app"])
def test_a_cancelled_download_keeps_what_it_has_and_goes_on_from_there(web: Web, capsys: Capture, way: str) -> None:
    corpus = find_corpus("shakespeare")
    web.fail(SHAKESPEARE, then=Fault(bytes_per_s=2_000))  # half a minute for all of it
    command = [sys.executable, "tests/with_small_sources.py", web.url, "-m", "engine.download_corpora", "shakespeare"]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 20
        while not ((job := jobs.job_of("shakespeare")) and job.state == "running" and job.done):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.02)
        began = time.monotonic()
        jobs.cancel("shakespeare") if way == "the app" else process.send_signal(getattr(signal, way))
        out, err = process.communicate(timeout=20)
        assert time.monotonic() - began < 10
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 1 and out == ""
    sentence = "shakespeare: cancelled. What was fetched is kept; the same command goes on from there."
    assert [line for line in err.splitlines() if not line.lstrip("\r").startswith(("Downloading", "\x1b"))] == [
        sentence
    ]
    job, kept = jobs.job_of("shakespeare"), kept_bytes(corpus)
    assert job is not None and job.state == "cancelled"
    assert not corpus.is_here and 0 < kept < corpus.size
    web.heal()
    web.forget()
    said(capsys, 0, "shakespeare")
    assert corpus.is_here and web.sent(SHAKESPEARE) == corpus.size - kept


# ------------------------------------------------------------------------------------------------ adding


def test_a_small_text_is_added_with_the_numbers(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "My notes.md"
    path.write_text("Once upon a time there was a lamp. " * 20)
    out, err = said(capsys, 0, "--add", str(path), "--name", "mine")
    corpus, tokens = find_corpus("mine"), len(open_tokens("mine").tokens)
    added, numbers, hint = out.splitlines()
    assert added == f"mine: added, 700 bytes in {corpus.path}"
    assert numbers.startswith(f"{tokens:,} tokens. Too small for nano, ")
    assert f"the training part has {tokens - round(tokens / 10):,}" in numbers
    assert hint == "To train on it: python -m engine.train --corpus mine"
    assert state_of(corpus).word == "tokenized" and err == ""


def test_a_text_that_is_large_enough_is_not_called_small(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Once upon a time there was a lamp. " * 10_000)
    out, _ = said(capsys, 0, "--add", str(path))
    assert out.splitlines()[1] == f"{len(open_tokens('notes').tokens):,} tokens."


def test_what_cannot_be_added(tmp_path: Path, corpora_folder: Path, capsys: Capture) -> None:
    bad = tmp_path / "old.txt"
    bad.write_bytes("Grüße".encode("latin-1"))
    for arguments, words in (
        (["--add", str(bad)], "old.txt is not UTF-8 text (byte 2)"),
        (["--add", str(bad), "--name", "verdict"], "There is a corpus 'verdict' already"),
        (["--add", str(bad), "--name", "../x"], "'../x' cannot be a name"),
        (["--add", str(tmp_path / "missing.txt")], "missing.txt cannot be used: No such file or directory."),
        (["--add", str(tmp_path)], "cannot be used: Is a directory."),
    ):
        out, err = said(capsys, 1, *arguments)
        assert out == "" and words in err and len(err.splitlines()) == 1
    assert [p for p in corpora_folder.rglob("*") if p.is_file() and p.suffix != ".lock"] == []
