"""engine.corpora.wikipedia: what is fetched, in which manner, and what is kept when it is cut short."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from engine.corpora import patience, wikipedia
from engine.corpora.progress import CancelledError, Progress, Stage
from engine.errors import CorpusError
from tests.mediawiki import MediaWiki, serving

GOOD, FEATURED = wikipedia.CATEGORIES


def titles(kind: str, count: int) -> list[str]:
    return [f"{kind} article {number:03}" for number in range(count)]


@pytest.fixture
def wiki(monkeypatch: pytest.MonkeyPatch) -> Iterator[MediaWiki]:
    """47 good and 30 featured articles, one of them both; one was deleted since. Five answers list them."""
    good, featured = titles("Good", 47), [*titles("Featured", 29), "Good article 003"]
    extracts = {title: f"{title} is – “about” something.\nIt is whole." for title in good + featured}
    del extracts["Good article 010"]
    content = MediaWiki({GOOD: good, FEATURED: featured}, extracts)
    content.members_a_page = 16
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(wikipedia, "MAXLAG_WAIT_S", 0.01)
    monkeypatch.delenv("LAB_CONTACT", raising=False)
    with serving(content):
        monkeypatch.setenv("LAB_WIKIPEDIA_API", content.address)
        yield content


def passages(kept: wikipedia.Kept) -> dict[str, str]:
    found = list(kept.passages())
    assert len(found) == len(dict(found)), "an introduction was kept twice"
    return dict(found)


def expected(wiki: MediaWiki) -> dict[str, str]:
    listed = dict.fromkeys(wiki.categories[GOOD] + wiki.categories[FEATURED])
    return {title: wiki.extracts.get(title, "") for title in listed}


def test_all_introductions_are_fetched_politely(wiki: MediaWiki, corpora_folder: Path) -> None:
    stages: list[Stage] = []
    kept = wikipedia.fetch(Progress(stages.append))
    assert passages(kept) == expected(wiki)
    assert list(kept.titles) == list(expected(wiki))
    assert wiki.complaints == []
    assert len(wiki.requests) == 3 + 2 + 4  # 47 and 30 members of 16 a page; 76 titles of 20 a batch
    assert max(wiki.answered.values()) == 1
    assert (stages[-1].title, stages[-1].unit, stages[-1].done, stages[-1].total) == (
        "Fetching introductions",
        "articles",
        76,
        76,
    )
    assert kept.folder == corpora_folder / ".sources" / "wikipedia_ga_intros"


def test_a_second_fetch_asks_nothing(wiki: MediaWiki) -> None:
    wikipedia.fetch(Progress())
    before = len(wiki.requests)
    assert passages(wikipedia.fetch(Progress())) == expected(wiki)
    assert len(wiki.requests) == before


def test_contact_is_told(wiki: MediaWiki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_CONTACT", "me@example.org\r\nX-Evil: (1)")
    wikipedia.fetch(Progress(), limit=5)
    [agent] = wiki.agents
    assert "me@example.org" in agent and "\n" not in agent and agent.count("(") == 1


def test_continued_extracts_and_normalized_titles(wiki: MediaWiki) -> None:
    wiki.extracts_a_page = 7
    wiki.categories[GOOD][5] = "Good_article_005"
    kept = passages(wikipedia.fetch(Progress()))
    assert kept.pop("Good_article_005") == wiki.extracts["Good article 005"]
    assert kept == {title: text for title, text in expected(wiki).items() if title != "Good_article_005"}
    assert max(wiki.answered.values()) == 1


def test_articles_that_moved_since_they_were_listed(wiki: MediaWiki) -> None:
    wiki.extracts_a_page = 7
    wiki.categories[GOOD][5] = "Good_article_005"
    wiki.extracts["Elsewhere"] = wiki.extracts.pop("Good article 005")
    wiki.extracts["Far away"] = wiki.extracts.pop("Good article 006")
    wiki.redirects = {"Good article 005": "Elsewhere", "Good article 006": "Far away"}
    kept = passages(wikipedia.fetch(Progress()))
    assert kept["Good_article_005"] == wiki.extracts["Elsewhere"]
    assert kept["Good article 006"] == wiki.extracts["Far away"]
    assert sum(not text for text in kept.values()) == 1


def test_the_old_format_is_understood(wiki: MediaWiki) -> None:
    wiki.old_format = True
    wiki.extracts_a_page = 7
    assert passages(wikipedia.fetch(Progress())) == expected(wiki)


def test_a_listing_that_goes_round_in_circles(wiki: MediaWiki) -> None:
    wiki.going_round = True
    with pytest.raises(CorpusError, match="goes round in circles"):
        wikipedia.fetch(Progress())
    assert len(wiki.requests) == 2


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"query": None},
        {"query": []},
        {"query": {"categorymembers": None}},
        {"query": {"categorymembers": [{}]}},
        {"query": {"categorymembers": [{"title": 7}]}},
        {"query": {"categorymembers": []}, "continue": ["x"]},
        {"error": None},
        {"error": ["x"]},
    ],
)
def test_an_answer_of_another_shape(wiki: MediaWiki, answer: dict[str, object]) -> None:
    wiki.answer = lambda asked: answer  # type: ignore[assignment, method-assign]
    with pytest.raises(CorpusError, match=r"answered without|in circles|refused with the error") as caught:
        wikipedia.fetch(Progress())
    assert str(wiki.address) in str(caught.value)


# ------------------------------------------------------------------------------------------------------- cut short


@pytest.mark.parametrize(("extracts_a_page", "cut"), [*((20, n) for n in range(1, 10)), (7, 7), (7, 9), (7, 12)])
def test_a_cut_at_any_request_is_resumed(wiki: MediaWiki, extracts_a_page: int, cut: int) -> None:
    wiki.extracts_a_page = extracts_a_page
    progress = Progress(cancelled=lambda: len(wiki.requests) >= cut)
    try:
        wikipedia.fetch(progress)
    except CancelledError:
        pass
    else:
        assert cut >= 9
    # What a cancel left unread was answered and not kept: that one answer alone may be asked for again.
    kept = wikipedia.fetch(Progress())
    assert passages(kept) == expected(wiki)
    repeated = [title for title, count in wiki.answered.items() if count > 1]
    assert len(repeated) <= 20 and max(wiki.answered.values()) <= 2


@pytest.mark.parametrize("cut", range(9))
def test_a_refusal_at_any_request_keeps_the_rest(wiki: MediaWiki, cut: int) -> None:
    wiki.faults = [*[None] * cut, "badtoken"]
    with pytest.raises(CorpusError) as caught:
        wikipedia.fetch(Progress())
    kept = wikipedia.Kept(wikipedia.sources_dir() / "wikipedia_ga_intros")
    assert "badtoken" in str(caught.value) and str(kept.folder) in str(caught.value)
    assert f"{len(kept.fetched):,} introductions are kept" in str(caught.value)
    assert len(kept.fetched) == [0, 0, 0, 0, 0, 0, 20, 40, 60][cut]
    assert passages(wikipedia.fetch(Progress())) == expected(wiki)
    assert max(wiki.answered.values()) == 1  # nothing that was answered is asked for again


@pytest.mark.parametrize("name", ["titles.jsonl", "passages.jsonl"])
def test_a_torn_or_spoiled_line_costs_only_itself(wiki: MediaWiki, name: str) -> None:
    kept = wikipedia.fetch(Progress())
    path = kept.folder / name
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    requests = len(wiki.requests)
    assert passages(wikipedia.fetch(Progress())) == expected(wiki)
    assert len(wiki.requests) == requests + 1
    if name == "passages.jsonl":
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([lines[0], b"\x00\xff{\n", b"[]\n", *lines[2:]]))
        assert passages(wikipedia.fetch(Progress())) == expected(wiki)
        assert len(wiki.requests) == requests + 2


# ---------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("fault", [500, 502, 503, 429, "maxlag", "cut", "torn", "html", "ratelimited", "readonly"])
@pytest.mark.parametrize("at", [0, 5])
def test_a_passing_fault_is_survived(wiki: MediaWiki, fault: str | int, at: int) -> None:
    wiki.faults = [*[None] * at, fault, fault]
    assert passages(wikipedia.fetch(Progress())) == expected(wiki)
    assert len(wiki.requests) == 9 + 2 and max(wiki.answered.values()) == 1


@pytest.mark.parametrize("fault", [500, 429, "maxlag", "cut", "torn", "html"])
def test_a_lasting_fault_ends_in_a_sentence(wiki: MediaWiki, fault: str | int) -> None:
    wiki.faults = [*[None] * 6, *[fault] * 50]
    with pytest.raises(CorpusError, match=r"20 introductions are kept in .* go on from there\.$") as caught:
        wikipedia.fetch(Progress())
    assert wiki.address in str(caught.value)
    assert len(wiki.requests) == 6 + patience.ATTEMPTS


@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_refusal_is_not_repeated(wiki: MediaWiki, status: int) -> None:
    wiki.faults = [status] * 10
    with pytest.raises(CorpusError, match=str(status)) as caught:
        wikipedia.fetch(Progress())
    assert len(wiki.requests) == 1
    assert ("LAB_CONTACT" in str(caught.value)) == (status == 403)


@pytest.mark.parametrize("fault", [429, 503, "maxlag", "ratelimited"])
@pytest.mark.parametrize("date", [False, True])
def test_retry_after_is_obeyed(wiki: MediaWiki, fault: str | int, date: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(patience, "_wait", lambda seconds, progress: waits.append(seconds))
    wiki.retry_after = formatdate(time.time() + 60, usegmt=True) if date else "60"
    wiki.faults = [fault]
    wikipedia.fetch(Progress(), limit=1)
    [wait] = waits
    assert 50 < wait <= 60


@pytest.mark.parametrize("fault", [429, 503, "maxlag"])
def test_a_wiki_that_wants_a_long_rest_is_left_alone(wiki: MediaWiki, fault: str | int) -> None:
    wiki.retry_after = "86400"
    wiki.faults = [fault]
    with pytest.raises(CorpusError, match=r"left alone for 86,?400 seconds"):
        wikipedia.fetch(Progress())
    assert len(wiki.requests) == 1


def test_a_wiki_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.001)
    monkeypatch.setenv("LAB_WIKIPEDIA_API", "http://127.0.0.1:9/w/api.php")
    with pytest.raises(CorpusError, match="it cannot be reached"):
        wikipedia.fetch(Progress())


def test_another_kind_of_server_is_recognised(wiki: MediaWiki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiki, "answer", lambda asked: {"hello": "world"})
    with pytest.raises(CorpusError, match="is it a MediaWiki API"):
        wikipedia.fetch(Progress())


def test_a_wiki_without_such_articles(wiki: MediaWiki) -> None:
    wiki.categories.clear()
    with pytest.raises(CorpusError, match="lists no articles"):
        wikipedia.fetch(Progress())


def test_a_continuation_that_leads_nowhere_is_noticed(wiki: MediaWiki) -> None:
    wiki.extracts_a_page = 0
    with pytest.raises(CorpusError, match="in circles"):
        wikipedia.fetch(Progress())


def test_a_full_disk_loses_nothing_of_before(wiki: MediaWiki, monkeypatch: pytest.MonkeyPatch) -> None:
    wikipedia.fetch(Progress(), limit=20)
    before = Path(wikipedia.sources_dir() / "wikipedia_ga_intros" / "passages.jsonl").read_bytes()

    def full(path: Path, values: list[dict[str, object]]) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(wikipedia, "_append", full)
        with pytest.raises(OSError, match="No space"):
            wikipedia.fetch(Progress())
    assert (wikipedia.sources_dir() / "wikipedia_ga_intros" / "passages.jsonl").read_bytes() == before
    assert passages(wikipedia.fetch(Progress())) == expected(wiki)


# ------------------------------------------------------------------------------------------------- cancel and limit


@pytest.mark.parametrize("fault", ["hang", "wait"])
def test_a_cancel_is_felt_long_before_the_server_answers(wiki: MediaWiki, fault: str) -> None:
    wiki.faults = ["hang" if fault == "hang" else 503]
    wiki.retry_after = "60"
    cancelled = threading.Event()
    threading.Timer(0.3, cancelled.set).start()
    began = time.monotonic()
    with pytest.raises(CancelledError):
        wikipedia.fetch(Progress(cancelled=cancelled.is_set))
    assert time.monotonic() - began < 5


def test_a_limit_takes_the_first_articles_and_can_be_lifted(wiki: MediaWiki) -> None:
    kept = wikipedia.fetch(Progress(), limit=25)
    assert len(wiki.requests) == 2 + 2
    assert wikipedia.wanted(kept, 25) == titles("Good", 25)
    assert passages(kept).keys() == set(titles("Good", 25))
    assert passages(wikipedia.fetch(Progress())) == expected(wiki)
    assert max(wiki.answered.values()) == 1
    assert len(wikipedia.wanted(wikipedia.fetch(Progress(), limit=3), 3)) == 3


def test_what_is_kept_is_plain_json(wiki: MediaWiki) -> None:
    kept = wikipedia.fetch(Progress(), limit=2)
    first = json.loads((kept.folder / "passages.jsonl").read_text().splitlines()[0])
    assert first == {"source": "Good article 000", "text": wiki.extracts["Good article 000"]}
