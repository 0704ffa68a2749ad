"""Introductions of Good and Featured Articles, through MediaWiki's public Action API.

The API's manners: https://www.mediawiki.org/wiki/API:Etiquette (one request at a time, `maxlag`, a telling user agent);
its modules: `list=categorymembers` and `prop=extracts` (extension TextExtracts). What was fetched is kept in
append-only files, so that an interrupted fetch goes on where it was and asks for nothing twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import requests

from engine.corpora.fetch import new_session, sources_dir
from engine.corpora.patience import CONNECT_S, READ_S, Trouble, in_background, persist, refusal
from engine.corpora.progress import Progress
from engine.errors import CorpusError

API = "https://en.wikipedia.org/w/api.php"
CATEGORIES = ("Category:Good articles", "Category:Featured articles")
BATCH = 20  # titles a request: the most that `exlimit` allows
MAXLAG = 5  # seconds that the wiki's replicas may lag before it asks us to wait

MAXLAG_WAIT_S = 5.0  # at least, after a lag error

_PASSING_ERRORS = ("ratelimited", "readonly", "internal_api_error")  # beginnings of codes; and maxlag


def api_address() -> str:
    """Where the API is: `$LAB_WIKIPEDIA_API`, or the English Wikipedia's."""
    return os.environ.get("LAB_WIKIPEDIA_API") or API


def user_agent() -> str:
    """How the client names itself; `$LAB_CONTACT` (an address or a page of yours) says whom to write to."""
    contact = os.environ.get("LAB_CONTACT", "").strip() or "educational; run by a single learner, set LAB_CONTACT"
    safe = contact.encode("ascii", "ignore").decode().translate({ord(sign): " " for sign in "()\r\n"})
    return f"llm-pretraining-lab/1.0 ({safe}) python-requests/{requests.__version__}"


class Client:
    """Asks the API one thing at a time, with patience; a cancel is noticed while it waits.

    Args:
        progress: is asked whether to stop.
    """

    def __init__(self, progress: Progress) -> None:
        self.address = api_address()
        self._progress = progress
        self._session = new_session()
        self._session.headers["User-Agent"] = user_agent()

    def query(self, **parameters: str | int) -> dict[str, Any]:
        """The answer to one `action=query`.

        Raises:
            CorpusError: the API refused, or did not answer properly however often it was asked.
            CancelledError: somebody asked to stop.
        """
        asked = {"action": "query", "format": "json", "formatversion": 2, "maxlag": MAXLAG, **parameters}
        try:
            return persist(lambda: self._attempt(asked), self._progress)
        except Trouble as trouble:
            raise CorpusError(f"{self.address} could not be used: {trouble}.") from trouble

    def _attempt(self, asked: dict[str, str | int]) -> dict[str, Any]:
        [response] = in_background(lambda: self._get(asked), self._progress)
        if response.status_code != 200:
            hint = "; set LAB_CONTACT to an address of yours" if response.status_code == 403 else ""
            raise refusal(response.status_code, f"{response.reason or ''}{hint}", response.headers)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise Trouble("what it answered is no JSON object")
        if "error" in answer:
            raise _trouble(answer["error"], response.headers)
        return answer

    def _get(self, asked: dict[str, str | int]) -> Iterator[requests.Response]:
        try:
            yield self._session.get(
                self.address, params=asked, timeout=(CONNECT_S, READ_S), auth=lambda request: request
            )
        except requests.Timeout as error:
            raise Trouble(f"it did not answer within {READ_S:.0f} seconds", unreachable=True) from error
        except requests.exceptions.ChunkedEncodingError as error:
            raise Trouble("the connection was cut") from error
        except requests.ConnectionError as error:
            raise Trouble("it cannot be reached", unreachable=True) from error
        except requests.RequestException as error:
            raise Trouble(f"it cannot be asked ({type(error).__name__})", lasting=True) from error

    def close(self) -> None:
        """Let the connections go."""
        self._session.close()


def _trouble(error: Any, headers: Mapping[str, str]) -> Trouble:
    """What an error of the API means. A lag error comes with status 200 and `Retry-After`."""
    code, info = (str(error.get("code")), error.get("info")) if isinstance(error, dict) else (str(error), "")
    if code != "maxlag" and not code.startswith(_PASSING_ERRORS):
        return Trouble(f"it refused with the error {code}: {info}", lasting=True)
    busy = refusal(503, "", headers)  # what the same headers mean when a server says by its status that it is busy
    if busy.lasting:
        return Trouble(
            f"it is busy ({code}) and asks to be left alone for {headers['Retry-After']} seconds", lasting=True
        )
    return Trouble(
        f"it is busy ({code})", wait_s=max(MAXLAG_WAIT_S, busy.wait_s or 0) if code == "maxlag" else busy.wait_s
    )


class Kept:
    """What was fetched so far: two append-only JSONL files, whose last line may be torn.

    Attributes:
        folder: where they are.
        titles: of the articles listed so far, in the wiki's order, each once.
        fetched: titles whose introduction is kept (or is known not to exist).
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._titles_file, self._passages_file = folder / "titles.jsonl", folder / "passages.jsonl"
        for path in (self._titles_file, self._passages_file):
            _cut_torn_line(path)
        self.titles: dict[str, None] = {}
        self._continue: dict[str, dict[str, str] | None] = {}  # where a category's listing goes on; None: it is whole
        for page in _read_lines(self._titles_file):
            self._remember(page)
        self.fetched = {source for source, _ in self.passages()}

    def _remember(self, page: dict[str, Any]) -> None:
        self.titles.update(dict.fromkeys(page["titles"]))
        self._continue[page["category"]] = page["continue"]

    def continuation(self, category: str) -> dict[str, str] | None:
        """Parameters of the next request for a category's members: none at its start; None when all are known."""
        return self._continue.get(category, {})

    def add_titles(self, category: str, titles: list[str], following: dict[str, str] | None) -> None:
        """Keep one answer of a category's listing, and where the next one goes on."""
        page = {"category": category, "titles": titles, "continue": following}
        _append(self._titles_file, [page])
        self._remember(page)

    def add_passages(self, passages: dict[str, str]) -> None:
        """Keep introductions, by title; an empty text says that the article has none."""
        _append(self._passages_file, [{"source": title, "text": text} for title, text in passages.items()])
        self.fetched.update(passages)

    def passages(self) -> Iterator[tuple[str, str]]:
        """Title and introduction of all that is kept, in the order of fetching."""
        for line in _read_lines(self._passages_file):
            yield line["source"], line["text"]


def _cut_torn_line(path: Path) -> None:
    """Take away a last line without its end: a killed run was writing it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def _append(path: Path, values: list[dict[str, Any]]) -> None:
    """Add lines in a single write; JSON's escapes let any title through."""
    with path.open("ab", buffering=0) as file:
        content = "".join(json.dumps(value) + "\n" for value in values).encode("ascii")
        if file.write(content) != len(content):
            raise OSError(28, os.strerror(28), str(path))


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of one of our files; one that a damaged disk spoiled is left out, and so fetched again."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value


def fetch(progress: Progress, *, limit: int = 0) -> Kept:
    """Fetch what is not kept yet.

    Args:
        progress: is told articles.
        limit: stop after this many articles; 0 fetches all.

    Returns:
        What is kept now; with a limit its first `limit` titles are fetched, and perhaps more.

    Raises:
        CorpusError: the API cannot be reached or refuses; what was fetched is kept.
        CancelledError: somebody asked to stop; likewise.
        OSError: the disk refuses.
    """
    kept = Kept(sources_dir() / "wikipedia_ga_intros")
    client = Client(progress)
    try:
        _list_articles(client, kept, progress, limit)
        _fetch_introductions(client, kept, progress, limit)
    except CorpusError as error:
        raise CorpusError(
            f"{error} {len(kept.fetched):,} introductions are kept in {kept.folder}; "
            "run the same command again to go on from there."
        ) from error
    finally:
        client.close()
    return kept


def wanted(kept: Kept, limit: int) -> list[str]:
    """The titles that a corpus of `limit` articles is made of; 0 takes all."""
    titles = list(kept.titles)
    return titles[:limit] if limit else titles


def _list_articles(client: Client, kept: Kept, progress: Progress, limit: int) -> None:
    progress.begin("Listing Wikipedia's good articles", limit or None, unit="articles", kept=len(kept.titles))
    for category in CATEGORIES:
        while (following := kept.continuation(category)) is not None:
            if limit and len(kept.titles) >= limit:
                return
            before = len(kept.titles)
            answer = client.query(
                list="categorymembers", cmtitle=category, cmnamespace=0, cmprop="title", cmlimit="max", **following
            )
            titles = [member["title"] for member in _part(client, answer, "categorymembers")]
            kept.add_titles(category, titles, _following(client, answer, following))
            progress.advance(len(kept.titles) - before)
    if not kept.titles:
        raise CorpusError(f"{client.address} lists no articles in {' or '.join(CATEGORIES)}.")


def _fetch_introductions(client: Client, kept: Kept, progress: Progress, limit: int) -> None:
    titles = wanted(kept, limit)
    pending = [title for title in titles if title not in kept.fetched]
    progress.begin("Fetching introductions", len(titles), unit="articles", kept=len(titles) - len(pending))
    for first in range(0, len(pending), BATCH):
        _fetch_batch(client, kept, progress, pending[first : first + BATCH])


def _fetch_batch(client: Client, kept: Kept, progress: Progress, titles: list[str]) -> None:
    """Fetch up to `BATCH` introductions; an answer may bring a part of them and say how to ask for the rest."""
    left = dict.fromkeys(titles)
    following: dict[str, str] | None = {}
    while following is not None:
        answer = client.query(
            prop="extracts",
            exintro=1,
            explaintext=1,
            exlimit="max",
            redirects=1,
            titles="|".join(titles),
            **following,
        )
        extracts = {page["title"]: page.get("extract") for page in _part(client, answer, "pages")}
        found = {}
        for title in list(left):
            extract = extracts.get(_renamed(client, answer, title))
            if isinstance(extract, str):
                found[title] = extract
                del left[title]
        following = _following(client, answer, following)
        if following is None or not left:  # whatever is still left was moved or deleted since it was listed
            found |= dict.fromkeys(left, "")
            following = None
        kept.add_passages(found)
        progress.advance(len(found))


def _renamed(client: Client, answer: dict[str, Any], title: str) -> str:
    """The title under which an answer has the page that was asked for as `title`."""
    for change in ("normalized", "redirects"):
        for pair in _part(client, answer, change, ("from", "to"), required=False):
            if pair["from"] == title:
                title = pair["to"]
                break
    return title


def _following(client: Client, answer: dict[str, Any], before: dict[str, str]) -> dict[str, str] | None:
    """Parameters that continue an answer, itself got with those `before`; None when it is whole."""
    following = answer.get("continue")
    if not following:
        return None
    if following == before or not isinstance(following, dict):
        raise CorpusError(f"{client.address} goes round in circles: it continues where it was continued.")
    return following


def _part(
    client: Client, answer: dict[str, Any], name: str, keys: tuple[str, ...] = ("title",), required: bool = True
) -> list[dict[str, Any]]:
    """A list in an answer's `query`, of objects that have strings under `keys`.

    The older `formatversion=1`, which some wikis answer whatever they are asked, has pages under their numbers.

    Raises:
        CorpusError: it is not there: something else than the API answered.
    """
    query = answer.get("query")
    part = query.get(name) if isinstance(query, dict) else None
    if isinstance(part, dict):
        part = list(part.values())
    if part is None and not required:
        return []
    if isinstance(part, list) and all(isinstance(o, dict) and all(type(o.get(k)) is str for k in keys) for o in part):
        return part
    raise CorpusError(f"{client.address} answered without `{name}`: is it a MediaWiki API?")
