"""A small MediaWiki on this machine: the two modules of the Action API that the lab uses, and faults on demand.

It answers as https://www.mediawiki.org/wiki/API:Categorymembers and the extension TextExtracts do: limits,
continuation, `maxlag` errors with status 200 and `Retry-After`, missing and normalized titles.
"""

from __future__ import annotations

import contextlib
import json
import select
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

EXTRACTS = 20  # the most that one request may ask for
TITLES = 50


class MediaWiki:
    """A wiki's content, what was asked of it, and what is to go wrong.

    Attributes:
        categories: titles by category.
        extracts: introductions by title; a title without one was deleted since.
        members_a_page: how many members one answer lists at most.
        redirects: titles that lead to others since.
        old_format: it answers `formatversion=1` whatever it is asked, as wikis of before 2015 do.
        going_round: it continues every listing where it began.
        extracts_a_page: how many extracts one answer brings at most; the rest is continued.
        faults: what happens to the next requests, one each: a status, `maxlag`, `cut`, `torn`, `html`, `hang`, or an
            API error's code; None lets one through.
        retry_after: the header of refusals.
        requests: parameters of the requests, in order; `asked` counts the titles that were asked for and answered.
        complaints: what a request did against the API's manners.
    """

    def __init__(self, categories: dict[str, list[str]], extracts: dict[str, str]) -> None:
        self.categories = categories
        self.extracts = extracts
        self.members_a_page = 500
        self.extracts_a_page = EXTRACTS
        self.redirects: dict[str, str] = {}
        self.old_format = self.going_round = False
        self.faults: list[str | int | None] = []
        self.retry_after = ""
        self.requests: list[dict[str, str]] = []
        self.answered: Counter[str] = Counter()
        self.complaints: list[str] = []
        self.agents: set[str] = set()
        self.address = ""
        self._at_work = threading.Lock()

    def answer(self, asked: dict[str, str]) -> dict[str, Any]:
        """What a healthy wiki says."""
        if asked.get("action") != "query" or asked.get("format") != "json" or asked.get("formatversion") != "2":
            return _error("badvalue", "this wiki speaks action=query, format=json and formatversion=2")
        if asked.get("list") == "categorymembers":
            return self._members(asked)
        if asked.get("prop") == "extracts":
            answer = self._extracts(asked)
            return _in_old_format(answer) if self.old_format else answer
        return _error("badvalue", "unknown module")

    def _members(self, asked: dict[str, str]) -> dict[str, Any]:
        if asked.get("cmnamespace") != "0" or asked.get("cmlimit") != "max":
            self.complaints.append(f"categorymembers asked with {asked}")
        titles = self.categories.get(asked["cmtitle"], [])
        start = int(asked["cmcontinue"].removeprefix("page|")) if "cmcontinue" in asked else 0
        start *= not self.going_round
        end = start + self.members_a_page
        chosen = titles[start:end]
        self.answered.update(f"{asked['cmtitle']}/{title}" for title in chosen)
        members = [{"pageid": start + i + 1, "ns": 0, "title": title} for i, title in enumerate(chosen)]
        answer: dict[str, Any] = {"query": {"categorymembers": members}}
        if end < len(titles):
            return answer | {"continue": {"cmcontinue": f"page|{end}", "continue": "-||"}}
        return answer | {"batchcomplete": True}

    def _extracts(self, asked: dict[str, str]) -> dict[str, Any]:
        titles = asked["titles"].split("|")
        if len(titles) > TITLES:
            return _error("toomanyvalues", f"Too many values supplied for parameter titles. The limit is {TITLES}.")
        if "exintro" not in asked or "explaintext" not in asked:
            self.complaints.append(f"extracts asked with {asked}")
        limit = min(self.extracts_a_page, EXTRACTS if asked.get("exlimit") == "max" else int(asked.get("exlimit", 1)))
        normalized = [(title, title.replace("_", " ")) for title in titles if "_" in title]
        titles = [title.replace("_", " ") for title in titles]
        moved = [(title, self.redirects[title]) for title in titles if title in self.redirects and "redirects" in asked]
        titles = [dict(moved).get(title, title) for title in titles]
        there = sorted({title for title in titles if title in self.extracts})
        start = int(asked.get("excontinue", 0))
        given = there[start : start + limit]
        self.answered.update(given)
        pages: list[dict[str, Any]] = [{"ns": 0, "title": t, "missing": True} for t in titles if t not in there]
        for number, title in enumerate(there):
            page = {"pageid": number + 1, "ns": 0, "title": title}
            pages.append(page | {"extract": self.extracts[title]} if title in given else page)
        query: dict[str, Any] = {"pages": pages}
        if normalized:
            query["normalized"] = [{"fromencoded": False, "from": old, "to": new} for old, new in normalized]
        if moved:
            query["redirects"] = [{"from": old, "to": new} for old, new in moved]
        if start + limit < len(there):
            return {"continue": {"excontinue": start + limit, "continue": "||"}, "query": query}
        return {"batchcomplete": True, "query": query}

    def check_manners(self, asked: dict[str, str], agent: str) -> None:
        """Note what Wikimedia's policies would not like."""
        self.agents.add(agent)
        if not agent.startswith("llm-pretraining-lab/") or "(" not in agent:
            self.complaints.append(f"user agent {agent!r}")
        if asked.get("maxlag") != "5":
            self.complaints.append(f"maxlag {asked.get('maxlag')!r}")


def _in_old_format(answer: dict[str, Any]) -> dict[str, Any]:
    pages = {str(page.get("pageid", -1 - i)): page for i, page in enumerate(answer["query"]["pages"])}
    for page in pages.values():
        page.update({"missing": ""} if "missing" in page else {})
    complete = {"batchcomplete": ""} if "batchcomplete" in answer else {}
    return answer | complete | {"query": answer["query"] | {"pages": pages}}


def _error(code: str, info: str) -> dict[str, Any]:
    return {"error": {"code": code, "info": info}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    wiki: MediaWiki

    def do_GET(self) -> None:
        wiki = self.wiki
        asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        if not wiki._at_work.acquire(blocking=False):
            wiki.complaints.append("two requests at once")
            wiki._at_work.acquire()
        try:
            wiki.requests.append(asked)
            wiki.check_manners(asked, self.headers.get("User-Agent", ""))
            self._serve(asked, wiki.faults.pop(0) if wiki.faults else None)
        finally:
            wiki._at_work.release()

    def _serve(self, asked: dict[str, str], fault: str | int | None) -> None:
        if fault is None:
            self._send(200, self.wiki.answer(asked))
        elif isinstance(fault, int):
            self._send(fault, {})
        elif fault == "maxlag":
            self._send(200, _error("maxlag", "Waiting for db1: 7 seconds lagged") | {"lag": 7})
        elif fault == "html":
            self._send(200, "<html>Please log in to the network.</html>")
        elif fault == "hang":
            select.select([self.connection], [], [], 20)  # until the other side hangs up
            self.close_connection = True
        elif fault == "cut":
            self.close_connection = True
        elif fault == "torn":
            content = json.dumps({"query": {"pages": []}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) + 100))
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = True
        else:
            self._send(200, _error(fault, "as the test wishes"))

    def _send(self, status: int, value: Any) -> None:
        content = (value if isinstance(value, str) else json.dumps(value)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        if self.wiki.retry_after:
            self.send_header("Retry-After", self.wiki.retry_after)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""


@contextlib.contextmanager
def serving(wiki: MediaWiki) -> Iterator[MediaWiki]:
    """Let `wiki` answer at `wiki.address`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"wiki": wiki}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    wiki.address = f"http://127.0.0.1:{server.server_address[1]}/w/api.php"
    try:
        yield wiki
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
