"""Files that a page offers: made when they are asked for, and no larger than a browser and this process can bear."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import streamlit as st

from app.widgets import formats

MOST_BYTES = 400 * 2**20  # of one download: Streamlit holds it in memory until the page is closed


def download(
    label: str,
    file_name: str,
    write: Callable[[Path], object],
    *,
    size: int = 0,
    command: str = "",
    help: str | None = None,
    disabled: bool = False,
) -> None:
    """A button for a file.

    Args:
        label: of the button.
        file_name: that the browser suggests.
        write: makes the file at the path it is given, once the button is pressed.
        size: of the file in bytes, as far as it is known before.
        command: what makes the same file in a terminal, for those that are too large.
        help: what the file is.
        disabled: there is nothing to download now.
    """
    if size > MOST_BYTES:
        disabled = True
        help = (
            f"It has {formats.size(size)}; through the browser go {formats.size(MOST_BYTES)}. "
            f"In a terminal: `{command}`"
        )
    st.download_button(
        label,
        lambda: _content(write),
        file_name,
        mime="application/octet-stream",
        key=f"download-{label}-{file_name}",
        icon=":material/download:",
        on_click="ignore",
        help=help,
        disabled=disabled,
    )


def _content(write: Callable[[Path], object]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="lab-download-") as folder:
        path = Path(folder) / "file"
        write(path)
        return path.read_bytes()


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
