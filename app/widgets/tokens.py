"""Tokens of a text on a page: each in a colour, its id on hover."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from engine import tokenizer

_JS = Path(__file__).with_name("tokens.js").read_text(encoding="utf-8")
_CSS = """
.lab-tokens { border: 1px solid var(--st-border-color); border-radius: var(--st-base-radius); padding: 0.8rem;
  max-height: 22rem; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9 }
.lab-tokens span { border-radius: 0.2rem; padding: 0.1rem 0; cursor: default; color: var(--st-text-color) }
.lab-tokens span.mark { opacity: 0.75; font-size: 0.8rem; border: 1px dashed var(--st-border-color); padding: 0 0.3rem }
.lab-tokens span:hover { outline: 2px solid var(--st-primary-color) }
"""


def tokens(ids: Sequence[int], *, key: str) -> None:
    """Show tokens. One that is a part of a character, as in many scripts, is shown as its bytes."""
    pieces = [(piece(i), int(i)) for i in ids]
    component = st.components.v2.component(
        "lab_tokens", html='<div class="lab-tokens"></div>', css=_CSS, js=_JS, isolate_styles=False
    )
    component(key=key, data=pieces)


def piece(token: int) -> str:
    """The token's own text, blanks and line breaks as they are."""
    content = tokenizer.encoding().decode_single_token_bytes(int(token))
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return f"<{content.hex(' ').upper()}>"
