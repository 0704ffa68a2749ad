"""Files of data sets on the Hugging Face hub.

`huggingface_hub` says where a file is and what it must contain. The bytes come through `fetch`: the library's own
download keeps nothing of an interrupted attempt, reads ten megabytes at a time, and does not verify what arrived; its
Xet protocol keeps a cache of its own in the home folder and cannot continue in a later process. One HTTPS connection to
the hub's content network fills most lines.
"""

from __future__ import annotations

import os
import re
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from engine.corpora.fetch import FetchError, fetch
from engine.corpora.patience import CONNECT_S, Trouble, in_background, persist, refusal
from engine.corpora.progress import Progress
from engine.corpora.sources import HubFile
from engine.corpora.transfer import Digest, Remote
from engine.errors import CorpusError

VARIABLE = "HF_ENDPOINT"
_BLANK = " \n"  # what WikiText's files hold where its published rows are empty


@dataclass(frozen=True)
class _Published:
    """What the hub says of a file: its size in bytes, and the ETag that identifies its content."""

    size: int | None
    etag: str


def fetch_hub_file(name: str, file: HubFile, target: Path, partial: Path, progress: Progress) -> None:
    """Make `target` exist, verified against the pinned hash, or else the one that the hub publishes.

    A mirror that publishes none is believed the size.

    Args:
        name: of the corpus.
        file: what to fetch; a size of 0 takes the hub's word.
        target, partial: see `fetch.fetch`.
        progress: told the bytes.

    Raises:
        CorpusError: it could not be had; `HF_HUB_OFFLINE` is set; the hub has another file than the pinned one.
        CancelledError: somebody asked to stop.
        OSError: the disk refuses.
    """
    if target.exists():
        return
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise CorpusError(
            f"Corpus {name} could not be downloaded: HF_HUB_OFFLINE is set, so the hub is not asked. "
            "Unset it, and try again."
        )
    remote = _locate(name, file)
    progress.begin(f"Asking {remote.host} for {name}")
    kept = partial.stat().st_size if partial.exists() else 0
    try:
        published = persist(lambda: _ask(remote.url, _endpoint(), progress), progress)
        digest = Digest("SHA-256", file.sha256) if file.sha256 else _digest(published.etag)
        size = file.size or published.size or 0
        if published.size not in (None, size):
            raise Trouble(f"it offers {published.size:,} bytes where {size:,} are expected", lasting=True)
    except Trouble as trouble:
        raise FetchError(remote, trouble, kept) from trouble
    version = digest.hex if digest else ""
    fetch(Remote(name, remote.url, VARIABLE, size, digest, version), target, partial, progress)


def _endpoint() -> str:
    return (os.environ.get(VARIABLE) or "https://huggingface.co").rstrip("/")


def _locate(name: str, file: HubFile) -> Remote:
    _keep_quiet()
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(file.repository, file.path, repo_type="dataset", revision=file.revision, endpoint=_endpoint())
    return Remote(name, url, VARIABLE)


def _keep_quiet() -> None:
    """The library would look up which program uses it, tell the hub, and write that into the home folder."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def _ask(url: str, endpoint: str, progress: Progress) -> _Published:
    with closing(in_background(lambda: iter([_published(url, endpoint)]), progress)) as answers:
        return next(answers)


def _published(url: str, endpoint: str) -> _Published:
    """What the hub says of the file at `url`. Network errors become `Trouble`."""
    import httpx2
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        found = get_hf_file_metadata(url, token=False, timeout=CONNECT_S, endpoint=endpoint)
    except HfHubHTTPError as error:
        raise refusal(error.response.status_code, error.response.reason_phrase, error.response.headers) from error
    except OfflineModeIsEnabled as error:
        raise Trouble("HF_HUB_OFFLINE was set when the program started", lasting=True) from error
    except (httpx2.UnsupportedProtocol, httpx2.InvalidURL, httpx2.TooManyRedirects) as error:
        raise Trouble(f"{url!r} is no address that can be fetched", lasting=True) from error
    except httpx2.TimeoutException as error:
        raise Trouble(f"it did not answer within {CONNECT_S:.0f} seconds", unreachable=True) from error
    except httpx2.HTTPError as error:
        raise Trouble("it cannot be reached", unreachable=True) from error
    except (ImportError, ValueError) as error:  # of a proxy that the environment names
        raise Trouble(f"it cannot be asked: {error}".rstrip("."), lasting=True) from error
    is_elsewhere = urlsplit(found.location).netloc not in ("", urlsplit(url).netloc)
    if is_elsewhere and found.size is None:  # a redirect that tells nothing of the content; its ETag is its own
        return _Published(None, "")
    return _Published(found.size, found.etag or "")


def _digest(etag: str) -> Digest | None:
    """The hash that the hub publishes as an ETag: SHA-256 of a large file, git's of a small one. Mirrors may not."""
    for kind, digits in (("SHA-256", 64), ("git SHA-1", 40)):
        if re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", etag):
            return Digest(kind, etag.lower())
    return None


def write_lines(name: str, table: Path, column: str, text: Path, progress: Progress) -> None:
    """Write the text whose lines are the rows of a Parquet column.

    The rows keep their line ends. Rows of blank lines were emptied when the data set was published; the original files
    hold a space and a line end there.

    Args:
        name: of the corpus.
        table: the Parquet file; it is read a batch of rows at a time.
        column: of strings.
        text: the file to write.
        progress: told the rows.

    Raises:
        CorpusError: there is no such column of strings, or the file is damaged.
        CancelledError: somebody asked to stop.
        OSError: the disk refuses.
    """
    try:
        with pq.ParquetFile(table) as parquet, text.open("w", encoding="utf-8", newline="") as file:
            progress.begin(f"Writing {name}", parquet.metadata.num_rows, unit="lines")
            for batch in parquet.iter_batches(columns=[column]):
                rows = batch.column(column).to_pylist()
                file.write("".join(row or _BLANK for row in rows))
                progress.advance(len(rows))
    except (pa.ArrowException, KeyError, TypeError) as error:
        raise CorpusError(f"Corpus {name}: the source is no Parquet file with a text column {column!r}.") from error
