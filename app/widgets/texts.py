"""Generated texts on a page: shown as text, blanks and line breaks included; the prompt stands out from the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

_JS = Path(__file__).with_name("texts.js").read_text(encoding="utf-8")
_CSS = """
.lab-texts { display: grid; gap: 0.75rem }
.lab-texts article { border: 1px solid var(--st-border-color); border-radius: var(--st-base-radius); padding: 0.8rem }
.lab-texts h6 { opacity: 0.65; font-size: 0.8rem; font-weight: 400; margin: 0; padding: 0 0 0.4rem }
.lab-text { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.6 }
.lab-text b { color: var(--st-link-color); font-weight: 600 }
"""


def texts(entries: Sequence[dict[str, str]], *, key: str) -> None:
    """Show texts, each a dict of `heading`, `prompt` and `text`."""
    component = st.components.v2.component(
        "lab_texts", html='<div class="lab-texts"></div>', css=_CSS, js=_JS, isolate_styles=False
    )
    component(key=key, data=list(entries))
