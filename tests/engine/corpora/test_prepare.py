"""engine.corpora.prepare: the file of a prepared corpus is whole, or not there."""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.corpora import find_corpus, patience, wikipedia
from engine.corpora.known import KNOWN
from engine.corpora.prepare import prepare
from engine.corpora.progress import CancelledError, Progress
from engine.corpora.sources import Normalized
from engine.errors import CorpusError
from tests.mediawiki import MediaWiki, serving

NORMALIZED = [corpus for corpus in KNOWN if isinstance(corpus.origin, Normalized)]
PROSE = (
    "The lamps had been lit along the quay when the old pilot came down the steps, wrapped in a coat that had seen "
    "more winters than he cared to count, and stood for a while looking out over the water. Nobody spoke to him, for "
    "it was known that he had lost a son to the bar that spring, and the men only touched their caps as he went by."
)
WRAPPED = f"CHAPTER I.\n\n{textwrap.fill(PROSE, 70)}\n\nTo-day,\nTo-morrow.\n"
UNWRAPPED = f"CHAPTER I.\n\n{PROSE}\n\nTo-day,\nTo-morrow.\n"


def intro(title: str) -> str:
    return (
        f"{title} is a lighthouse on the northern shore. It was built in 1871 to mark the bar, and stands to this day."
    )


@pytest.fixture
def wiki(monkeypatch: pytest.MonkeyPatch) -> Iterator[MediaWiki]:
    titles = [f"Light {number}" for number in range(45)]
    extracts = {title: intro(title) for title in titles}
    extracts["Light 3"] = "Light 3 is short."
    extracts["Light 4"] = extracts["Light 5"] = intro("Light 5").replace("lighthouse", "''lighthouse''")
    content = MediaWiki({wikipedia.CATEGORIES[0]: titles, wikipedia.CATEGORIES[1]: []}, extracts)
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.001)
    with serving(content):
        monkeypatch.setenv("LAB_WIKIPEDIA_API", content.address)
        yield content


def documents(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def left_overs(folder: Path) -> list[str]:
    return [path.name for path in folder.glob(".*.part")]


# ------------------------------------------------------------------------------------------------- introductions


def test_introductions_become_documents(wiki: MediaWiki, corpora_folder: Path) -> None:
    corpus = find_corpus("wikipedia_ga_intros")
    said: list[str] = []
    prepare(corpus, Progress(), say=said.append)
    made = documents(corpus.path)
    kept = [f"Light {n}" for n in range(45) if n not in (3, 5)]
    assert sorted(made, key=lambda d: int(d["source"].split()[1])) == [
        {"source": title, "text": intro("Light 5" if title == "Light 4" else title)} for title in kept
    ]
    assert said[0].startswith("wikipedia_ga_intros: kept 43 of 45: 1 ")
    assert "1 too short" in said[0] and "1 duplicate" in said[0]
    asked = len(wiki.requests)
    before = corpus.path.stat()
    prepare(corpus, Progress())
    assert len(wiki.requests) == asked and corpus.path.stat() == before
    assert left_overs(corpora_folder) == []


def test_a_limit_makes_a_quick_corpus(wiki: MediaWiki) -> None:
    corpus = find_corpus("wikipedia_ga_intros")
    prepare(corpus, Progress(), limit=3)
    assert [document["source"] for document in documents(corpus.path)] == ["Light 0", "Light 1", "Light 2"]


def test_two_at_once_ask_for_nothing_twice(wiki: MediaWiki, corpora_folder: Path) -> None:
    corpus = find_corpus("wikipedia_ga_intros")
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(prepare, corpus, Progress()) for _ in range(2)]:
            done.result()
    assert len(documents(corpus.path)) == 43 and left_overs(corpora_folder) == []
    assert max(wiki.answered.values()) == 1 and wiki.complaints == []


@pytest.mark.parametrize("at", range(1, 6))
def test_a_failure_leaves_no_corpus_and_is_resumed(wiki: MediaWiki, at: int, corpora_folder: Path) -> None:
    corpus = find_corpus("wikipedia_ga_intros")
    wiki.faults = [*[None] * (at - 1), 404]
    with pytest.raises(CorpusError, match="404"):
        prepare(corpus, Progress())
    assert not corpus.path.exists() and left_overs(corpora_folder) == []
    prepare(corpus, Progress())
    assert len(documents(corpus.path)) == 43 and max(wiki.answered.values()) == 1


def test_a_full_disk_is_told_before_anything_is_asked(wiki: MediaWiki, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(CorpusError, match="Free some space"):
        prepare(find_corpus("wikipedia_ga_intros"), Progress())
    assert wiki.requests == []


# ---------------------------------------------------------------------------------------------- passages of one's own


def test_passages_of_ones_own_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_WIKIPEDIA_API", "http://127.0.0.1:9/")
    source = tmp_path / "mine.jsonl"
    lines = [{"source": "A \ud800", "text": f"'''{intro('A')}'''", "more": 1}, {"source": "B", "text": "Too short."}]
    source.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    corpus, said = find_corpus("wikipedia_ga_intros"), list[str]()
    prepare(corpus, Progress(), from_jsonl=source, say=said.append)
    assert documents(corpus.path) == [{"source": "A ?", "text": intro("A")}]
    assert said == ["wikipedia_ga_intros: kept 1 of 2: 1 too short."]


def test_all_problems_of_a_file_are_told_together(tmp_path: Path, corpora_folder: Path) -> None:
    source = tmp_path / "mine.jsonl"
    good = json.dumps({"source": "A", "text": intro("A")}).encode()
    bad = [b"{", b"[1]", b'{"source": "B"}', b'{"text": "b"}', b'{"source": 1, "text": "b"}', b'"\xff"']
    source.write_bytes(b"\n".join([good, *bad, good, *[b"x"] * 20]) + b"\n")
    with pytest.raises(CorpusError) as caught:
        prepare(find_corpus("wikipedia_ga_intros"), Progress(), from_jsonl=source)
    message = str(caught.value)
    assert "26 lines" in message and "and 16 more" in message and "\n" not in message
    for words in (
        "line 2 is not JSON",
        "line 3 is no JSON object",
        "line 4 has no text under 'text'",
        "line 5",
        "UTF-8",
    ):
        assert words in message
    assert not find_corpus("wikipedia_ga_intros").path.exists() and left_overs(corpora_folder) == []


@pytest.mark.parametrize("content", [b"", b'{"source": "A", "text": "Too short."}\n'])
def test_an_empty_corpus_is_not_made(tmp_path: Path, content: bytes, corpora_folder: Path) -> None:
    source = tmp_path / "mine.jsonl"
    source.write_bytes(content)
    with pytest.raises(CorpusError, match="would be empty: kept 0 of"):
        prepare(find_corpus("wikipedia_ga_intros"), Progress(), from_jsonl=source)
    assert left_overs(corpora_folder) == []


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"nowhere\.jsonl cannot be used: No such file"):
        prepare(find_corpus("wikipedia_ga_intros"), Progress(), from_jsonl=tmp_path / "nowhere.jsonl")


def test_only_one_corpus_is_made_of_passages(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="not made of passages"):
        prepare(find_corpus("pg19_test_small_normalized"), Progress(), from_jsonl=tmp_path / "x")
    with pytest.raises(CorpusError, match="nothing to prepare"):
        prepare(find_corpus("shakespeare"), Progress())


# ------------------------------------------------------------------------------------------------------- normalized


@pytest.mark.parametrize("corpus", NORMALIZED, ids=lambda corpus: corpus.name)
def test_every_normalized_corpus_is_made_from_its_source(corpus: object, corpora_folder: Path) -> None:
    corpus = find_corpus(corpus.name)  # type: ignore[attr-defined]
    source = find_corpus(corpus.origin.of)  # type: ignore[union-attr]
    as_documents = corpus.mode == "documents"
    source.path.write_text(json.dumps({"text": WRAPPED}) + "\n" if as_documents else WRAPPED)
    (corpora_folder / f".{corpus.path.name}.dead.part").write_text("what a killed process left")
    stages = []
    prepare(corpus, Progress(stages.append))
    assert corpus.path.read_text() == (json.dumps({"text": UNWRAPPED}) + "\n" if as_documents else UNWRAPPED)
    assert (stages[-1].done, stages[-1].total) == (source.path.stat().st_size,) * 2
    assert left_overs(corpora_folder) == []


def test_a_source_that_is_not_here_is_downloaded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.corpora import download

    asked = []

    def fake(corpus: object, progress: Progress) -> None:
        asked.append(corpus.name)  # type: ignore[attr-defined]
        corpus.path.write_text(WRAPPED)  # type: ignore[attr-defined]

    monkeypatch.setattr(download, "download", fake)
    corpus = find_corpus("pg19_test_small_normalized")
    prepare(corpus, Progress())
    assert asked == ["pg19_test_small"] and corpus.path.read_text() == UNWRAPPED


def test_a_cancel_leaves_no_file(corpora_folder: Path) -> None:
    corpus = find_corpus("pg19_test_small_normalized")
    find_corpus("pg19_test_small").path.write_text(WRAPPED * 5_000)
    progress = Progress()
    progress = Progress(cancelled=lambda: progress.stage.done > 0)
    with pytest.raises(CancelledError):
        prepare(corpus, progress)
    assert not corpus.path.exists() and left_overs(corpora_folder) == []


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_meanwhile(monkeypatch: pytest.MonkeyPatch, corpora_folder: Path) -> None:
    from engine.corpora import normalize

    find_corpus("pg19_test_small").path.write_text(WRAPPED * 5_000)
    real = normalize.normalize_file
    monkeypatch.setattr(normalize, "normalize_file", lambda source, target, p: real(source, Path("/dev/full"), p))
    with pytest.raises(CorpusError, match=r"pg19_test_small_normalized: .*"):
        prepare(find_corpus("pg19_test_small_normalized"), Progress())
    assert not find_corpus("pg19_test_small_normalized").path.exists() and left_overs(corpora_folder) == []
