"""Files that a page offers: made when they are asked for, and sent from disk, so that their size does not matter.

Streamlit's own button keeps a file in memory until its page is closed, and says of one that cannot be made only that it
cannot. Here the page makes the file, says why it could not, or tells the browser an address to save it from, once.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import streamlit as st
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from app.widgets.formats import plain
from app.widgets.guard import guard
from engine.errors import LabError, storage_sentence

KEPT_S = 600.0  # a file that no browser came for is deleted after this time, when another one is made
_JS = Path(__file__).with_name("downloads.js").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Download:
    """A file on offer.

    Attributes:
        label: of its button.
        file_name: that the browser suggests.
        write: makes the file at the path it is given, once the button is pressed.
        help: what the file is.
        disabled: there is nothing to download now.
    """

    label: str
    file_name: str
    write: Callable[[Path], object]
    help: str | None = None
    disabled: bool = False

    @property
    def key(self) -> str:
        """By which a page tells it from others."""
        return f"{self.label}-{self.file_name}"


@st.fragment
@guard()
def downloads(offered: Sequence[Download]) -> None:
    """A button for each file, in a row; below it what is wrong with the one that was asked for."""
    wanted = None
    with st.container(horizontal=True):
        for file in offered:
            key, icon = f"download-{file.key}", ":material/download:"
            if st.button(file.label, key=key, icon=icon, help=file.help, disabled=file.disabled):
                wanted = file
    if wanted is not None:
        _send(wanted)


def _send(file: Download) -> None:
    """Make it, and let the browser save it."""
    try:
        with st.spinner(f"Writing {plain(file.file_name)} …"):
            address = _make(file)
    except OSError as error:
        place = Path(error.filename2 or error.filename or tempfile.gettempdir())  # of a copy, the second is the target
        return _refuse(file, storage_sentence(error, place))
    except LabError as error:
        return _refuse(file, str(error))
    component = st.components.v2.component("lab_download", html='<i class="lab-download" hidden></i>', js=_JS)
    component(key=f"save-{file.key}", data=address)


def _refuse(file: Download, why: str) -> None:
    st.error(f"{plain(file.file_name)} could not be made. {plain(why)}", icon=":material/error:")


@dataclass(frozen=True)
class _Made:
    path: Path
    name: str
    time: float

    def delete(self) -> None:
        shutil.rmtree(self.path.parent, ignore_errors=True)


_made: dict[str, _Made] = {}  # by the secret part of their address
_under_way: set[Path] = set()  # folders whose file is being written


def _make(file: Download) -> str:
    """Write it to a temporary folder; returns the address that gives it out, once."""
    for token, old in list(_made.items()):
        if time.monotonic() - old.time > KEPT_S and _made.pop(token, None):
            old.delete()
    folder = Path(tempfile.mkdtemp(prefix="lab-download-"))
    _under_way.add(folder)
    try:
        file.write(folder / "file")
        token = secrets.token_urlsafe(16)
        _made[token] = _Made(folder / "file", file.file_name, time.monotonic())  # it may have taken minutes
    except BaseException:  # also Streamlit's, when the page is left meanwhile
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        _under_way.discard(folder)
    return f"lab/file/{token}"


def forget() -> None:
    """Delete what no browser came for, and what is half written; the server ends."""
    for token in list(_made):
        if made := _made.pop(token, None):
            made.delete()
    for folder in list(_under_way):
        shutil.rmtree(folder, ignore_errors=True)


def answer(request: Request) -> Response:
    """The file, which is deleted once it was sent; 404 when there is none, or it was sent before."""
    is_taken = request.method == "GET"  # HEAD only asks what there is
    made = (_made.pop if is_taken else _made.get)(request.path_params["token"], None)
    if made is None:
        return Response("This file was downloaded already, or not in time. Ask for it once more.", status_code=404)
    return FileResponse(
        made.path,
        filename=made.name,
        media_type="application/octet-stream",
        headers={"content-encoding": "identity"},  # else the server compresses it, and nobody knows its size
        background=BackgroundTask(made.delete) if is_taken else None,
    )


ROUTE = Route("/lab/file/{token}", answer)


def zipped(fill: Callable[[Path], object]) -> Callable[[Path], None]:
    """What writes a folder's files as one zip, from what fills the folder."""

    def write(path: Path) -> None:
        folder = path.with_name("folder")
        folder.mkdir()
        fill(folder)
        with zipfile.ZipFile(path, "w") as packed:
            for file in sorted(folder.iterdir()):
                packed.write(file, file.name)

    return write
