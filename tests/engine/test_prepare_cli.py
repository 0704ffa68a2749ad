"""`python -m engine.prepare_corpora`: what it makes, says and refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.cli.prepare import main
from engine.corpora import find_corpus, patience, wikipedia
from engine.corpora.jobs import job_of
from engine.paths import PROJECT
from tests.mediawiki import MediaWiki, serving

PROSE = (
    "The lamps had been lit along the quay when the old pilot came down the steps, wrapped in a coat that had seen "
    "more winters than he cared to count, and stood for a while looking out over the water. Nobody spoke to him, for "
    "it was known that he had lost a son to the bar that spring, and the men only touched their caps as he went by."
)
SPLITS = ("train", "validation", "test")


@pytest.fixture
def wiki(monkeypatch: pytest.MonkeyPatch) -> Iterator[MediaWiki]:
    titles = [f"Light {number}" for number in range(45)]
    extracts = {title: f"{title} is a lighthouse. {PROSE}" for title in titles}
    content = MediaWiki({wikipedia.CATEGORIES[0]: titles, wikipedia.CATEGORIES[1]: []}, extracts)
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.001)
    with serving(content):
        monkeypatch.setenv("LAB_WIKIPEDIA_API", content.address)
        yield content


def test_introductions(wiki: MediaWiki, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wikipedia_ga_intros", "--limit", "30"]) == 0
    printed = capsys.readouterr()
    assert "wikipedia_ga_intros: kept 30 of 30." in printed.out
    assert "ready, " in printed.out and "30 documents in " in printed.out
    job = job_of("wikipedia_ga_intros")
    assert job and (job.kind, job.state) == ("prepare", "done")
    assert main(["wikipedia_ga_intros"]) == 0
    assert "is here" in capsys.readouterr().out


def test_a_family_brings_all_its_splits(capsys: pytest.CaptureFixture[str]) -> None:
    for split in SPLITS:
        find_corpus(f"pg19_{split}_small").path.write_text(textwrap.fill(PROSE, 70) + "\n")
    assert main(["pg19_small_normalized"]) == 0
    out = capsys.readouterr().out
    for split in SPLITS:
        assert find_corpus(f"pg19_{split}_small_normalized").path.read_text() == PROSE + "\n"
        assert f"pg19_{split}_small_normalized: ready, {len(PROSE) + 1} bytes in " in out


def test_one_failure_does_not_keep_the_others_from_being_made(capsys: pytest.CaptureFixture[str]) -> None:
    for split in SPLITS:
        content = b"\xff" if split == "train" else b"One line.\n"
        find_corpus(f"pg19_{split}_small").path.write_bytes(content)
    assert main(["pg19_small_normalized"]) == 1
    printed = capsys.readouterr()
    assert "pg19_train_small_normalized: " in printed.err and "is not UTF-8" in printed.err
    assert "Traceback" not in printed.err and printed.out.count("ready") == 2


def test_passages_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "mine.jsonl"
    source.write_text("not JSON\n")
    assert main(["wikipedia_ga_intros", "--from-jsonl", str(source)]) == 1
    assert "line 1 is not JSON" in capsys.readouterr().err
    source.write_text(json.dumps({"source": "A", "text": PROSE}) + "\n")
    assert main(["wikipedia_ga_intros", "--from-jsonl", str(source)]) == 0
    assert "1 document in " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "say names"),
        (["--list", "wikipedia_ga_intros"], "say names"),
        (["nothing", "../x"], "nothing: it is not known"),
        (["shakespeare"], "shakespeare: it needs no preparation"),
        (["pg19_small"], "needs no preparation"),
        (["pg19_small_normalized", "--from-jsonl", "x"], "--from-jsonl: only wikipedia_ga_intros"),
        (["pg19_small_normalized", "wikipedia_ga_intros", "--limit", "3"], "--limit: only wikipedia_ga_intros"),
        (["wikipedia_ga_intros", "--limit", "-1"], "--limit: -1 is no number"),
        (["wikipedia_ga_intros", "--limit", "1", "--from-jsonl", "x"], "cannot be combined"),
    ],
)
def test_wrong_usage(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], corpora_folder: Path
) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
    assert list(corpora_folder.iterdir()) == []


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    find_corpus("pg19_test_small_normalized").path.write_text("x" * 200_000)
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    assert "can be made through Wikipedia's API" in out and "can be made from pg19_train_docs" in out
    assert "here, 0.2 MB" in out and len([line for line in out.splitlines() if "_normalized " in line]) == 12


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_cancels_in_one_sentence_and_the_next_goes_on(wiki: MediaWiki, number: int) -> None:
    wiki.faults = [None, None, None, "hang"]  # two lists, a batch, and then it waits
    command = [sys.executable, "-m", "engine.prepare_corpora", "wikipedia_ga_intros"]
    process = subprocess.Popen(
        command, cwd=PROJECT, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while len(wiki.requests) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        began = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert time.monotonic() - began < 10  # the server would be silent for twice as long
    assert process.returncode == 1 and out == ""
    assert err.splitlines()[-1].startswith("wikipedia_ga_intros: cancelled.") and "Traceback" not in err
    job = job_of("wikipedia_ga_intros")
    assert job and job.state == "cancelled"
    assert main(["wikipedia_ga_intros"]) == 0
    assert max(wiki.answered.values()) == 1
