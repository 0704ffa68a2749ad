"""A run in numbers and in words: its progress, what was measured last, and what the engine reads in its curves."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st

from app.widgets import formats
from app.widgets.snapshot import Snapshot
from engine.config import SETTINGS, label

_JS = Path(__file__).with_name("numbers.js").read_text(encoding="utf-8")
_HTML = (
    '<div class="lab-run"><div class="lab-progress"><span></span><div><i></i></div></div>'
    '<div class="lab-numbers"></div><div class="lab-findings"></div></div>'
)
_CSS = """
.lab-run { display: grid; gap: 1rem }
.lab-progress > span { font-size: 0.9rem }
.lab-progress > div { background: var(--st-secondary-background-color); border-radius: 1rem; height: 0.5rem;
  margin-top: 0.35rem; overflow: hidden }
.lab-progress i { background: var(--st-primary-color); display: block; height: 100% }
.lab-numbers { display: grid; gap: 0.8rem; grid-template-columns: repeat(auto-fill, minmax(7.6rem, 1fr)) }
.lab-number span { display: block; font-size: 0.875rem; opacity: 0.75 }
.lab-number b { font-size: 1.3rem; font-variant-numeric: tabular-nums; font-weight: 400; white-space: nowrap }
.lab-findings { border: 1px solid var(--st-border-color); border-radius: var(--st-base-radius); display: grid;
  gap: 0.6rem; padding: 0.9rem 1rem }
.lab-findings:empty { display: none }
.lab-finding { line-height: 1.5; margin: 0; padding-left: 0.8rem; border-left: 3px solid var(--lab-tint) }
.lab-finding b { color: var(--lab-tint); font-weight: 600 }
.lab-problem { --lab-tint: var(--st-red-text-color) }
.lab-warning { --lab-tint: var(--st-orange-text-color) }
.lab-note { --lab-tint: var(--st-gray-text-color) }
.lab-good { --lab-tint: var(--st-green-text-color) }
.lab-setting { background: none; border: 1px solid var(--st-border-color); border-radius: 1rem; color:
  var(--st-link-color); cursor: pointer; font: inherit; font-size: 0.85rem; margin-right: 0.15rem; padding: 0 0.6rem }
.lab-setting:hover, .lab-setting:focus-visible { border-color: currentColor }
"""


def numbers(shot: Snapshot, *, feed: dict[str, Any] | None, on_setting: Callable[[], None]) -> None:
    """Show them.

    Args:
        feed: where the browser asks for news, for these numbers and for charts that follow them.
        on_setting: called when a setting that a finding names is clicked; `clicked_setting` says which.
    """
    data = numbers_of(shot) | {"feed": feed, "made": time.monotonic()}
    st.components.v2.component("lab_numbers", html=_HTML, css=_CSS, js=_JS, isolate_styles=False)(
        key="numbers", data=data, on_setting_change=on_setting, on_changed_change=_nothing
    )


def numbers_of(shot: Snapshot) -> dict[str, Any]:
    """What the component shows."""
    return {"progress": _progress(shot), "numbers": _numbers(shot), "findings": _findings(shot)}


def _nothing() -> None:
    """The page is drawn anew, which is all that is wanted."""


def clicked_setting() -> str:
    """The setting that was clicked; inside `on_setting`."""
    return str(st.session_state["numbers"].setting)


def _progress(shot: Snapshot) -> dict[str, Any]:
    step, total, left = int(shot.last.get("step", 0)), shot.total_steps, shot.seconds_left
    ahead = f" · about {formats.duration(left)} left" if left is not None and shot.state == "running" else ""
    return {"share": min(1.0, step / total) if total else 0.0, "text": f"Step {step:,} of {total:,}{ahead}"}


def _numbers(shot: Snapshot) -> list[dict[str, str]]:
    last, train, val = shot.last, shot.last.get("train_loss"), shot.last_val_loss
    memory, estimate = shot.peak_memory, shot.memory_estimate
    before = f" Before the start {estimate:.2f} GiB were estimated." if estimate else ""
    power = "e to the power of the loss: among how many tokens the model is, as it were, undecided."
    shown = [
        ("Epoch", f"{last['epoch']:.2f}" if last else formats.DASH, "Passes over the training part of the text."),
        ("Tokens", formats.count(last.get("tokens")), "Trained on so far."),
        ("Training time", formats.duration(last.get("elapsed_s")), "Pauses are left out."),
        ("Speed", formats.rate(last.get("tokens_per_s")), "Validation, samples and saving are left out."),
        ("Training loss", formats.loss(train), "Nats per token, of the last step."),
        ("Perplexity", formats.perplexity(train), f"In training: {power}"),
        ("Validation loss", formats.loss(val), "Nats per token, where it was measured last."),
        ("Perplexity, validation", formats.perplexity(val), f"In validation: {power}"),
        ("Peak memory", f"{memory:.2f} GiB" if memory else formats.DASH, f"Measured.{before}"),
    ]
    return [{"label": name, "value": value, "help": meaning} for name, value, meaning in shown]


def _findings(shot: Snapshot) -> list[dict[str, Any]]:
    """Problems first, each with name and label of the settings that it is about."""
    if not shot.last:
        return []
    return [
        {
            "severity": finding.severity,
            "title": finding.title,
            "text": f"{finding.evidence} {finding.advice}",
            "settings": [(name, label(name)) for name in finding.settings if name in SETTINGS],
        }
        for finding in shot.findings
    ]
