"""A generated text on a page: each token tells on hover how likely it was, and what else was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

_JS = Path(__file__).with_name("choices.js").read_text(encoding="utf-8")
_HTML = '<div class="lab-choices"><div class="text"></div><div class="tip" role="tooltip" hidden></div></div>'
_CSS = """
.lab-choices { position: relative }
.lab-choices .text { border: 1px solid var(--st-border-color); border-radius: var(--st-base-radius); padding: 0.8rem;
  min-height: 6rem; max-height: 32rem; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere;
  line-height: 1.8 }
.lab-choices b { color: var(--st-link-color); font-weight: 600 }
.lab-choices .text span { border-radius: 0.15rem; padding: 0.1rem 0; cursor: default;
  background: color-mix(in srgb, var(--st-primary-color) var(--lab-p), transparent) }
.lab-choices .text span:hover { outline: 2px solid var(--st-primary-color) }
.lab-choices .text span.mark { font-size: 0.8rem; border: 1px dashed var(--st-border-color); padding: 0 0.3rem }
.lab-choices .text span.part::before { content: "▯"; opacity: 0.5 }
.lab-choices .text span.line::before { content: "⏎"; opacity: 0.5 }
.lab-choices .tip { position: absolute; z-index: 10; width: 19rem; max-width: 100%; padding: 0.6rem 0.7rem;
  background: var(--st-secondary-background-color); color: var(--st-text-color); pointer-events: none;
  border: 1px solid var(--st-border-color); border-radius: var(--st-base-radius); font-size: 0.85rem }
.lab-choices .tip .row { display: grid; grid-template-columns: 7rem 1fr 4.5rem; gap: 0.5rem; align-items: center }
.lab-choices .tip .chosen { font-weight: 700 }
.lab-choices .tip .name { overflow: hidden; text-overflow: ellipsis; white-space: pre }
.lab-choices .tip .number { text-align: right; font-variant-numeric: tabular-nums }
.lab-choices .tip i { display: block; height: 0.5rem; border-radius: 0.2rem; background: var(--st-primary-color) }
.lab-choices .tip small { opacity: 0.75 }
"""


def choices(number: int, prompt: str, tokens: Sequence[dict[str, Any]], *, key: str) -> None:
    """Show a prompt and the tokens after it, those of `generation`.

    Args:
        number: another one for another text; what is added to the same text is appended on the page.
    """
    component = st.components.v2.component("lab_choices", html=_HTML, css=_CSS, js=_JS, isolate_styles=False)
    component(key=key, data={"number": number, "prompt": prompt, "tokens": list(tokens)})
