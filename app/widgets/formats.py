"""Numbers and times as people read them: 14,336 tokens, 1.2 k tok/s, 3 min 12 s. What was not measured is a dash."""

from __future__ import annotations

import math
from datetime import datetime

DASH = "–"


def _missing(value: float | None) -> bool:
    """Whether it is no number: not measured, not finite, or something else from a damaged file."""
    return not isinstance(value, int | float) or not math.isfinite(value)


def count(value: float | None) -> str:
    """A whole number with thousands separated."""
    return DASH if _missing(value) else f"{value:,.0f}"


def short_count(value: float | None) -> str:
    """A large number in three digits: 9.9 M, 24.9 k."""
    if _missing(value):
        return DASH
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}" if abs(value) < 999.5 * size else f"{value / size:,.0f}{unit}"
    return f"{value:.3g}"


def setting(value: object) -> str:
    """A setting's value: a switch is on or off, a text that is empty is seen to be, a number keeps its digits."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value) or "empty"


def rate(value: float | None) -> str:
    """Tokens per second."""
    return DASH if _missing(value) else f"{short_count(value)} tok/s"


def loss(value: float | None) -> str:
    """Nats per token."""
    return DASH if _missing(value) else f"{value:.3f}"


def perplexity(nats: float | None) -> str:
    """exp(loss): among how many tokens the model is, as it were, undecided."""
    return DASH if _missing(nats) or nats > 700 else f"{math.exp(nats):,.0f}" if nats > 2.3 else f"{math.exp(nats):.2f}"


def duration(seconds: float | None) -> str:
    """A time span in its two largest units."""
    if _missing(seconds):
        return DASH
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    days, hours, minutes, rest = whole // 86400, whole // 3600 % 24, whole // 60 % 60, whole % 60
    if days:
        return f"{days} d {hours} h"
    if hours or minutes:
        return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
    return f"{rest} s"


def size(count_of_bytes: float) -> str:
    """Bytes in MiB or GiB."""
    if count_of_bytes >= 2**30:
        return f"{count_of_bytes / 2**30:.2f} GiB"
    return f"{count_of_bytes / 2**20:,.0f} MiB" if count_of_bytes >= 2**20 else f"{count_of_bytes / 2**10:,.0f} KiB"


def moment(iso: str | None) -> str:
    """A UTC time stamp as local date and time."""
    try:
        return datetime.fromisoformat(iso).astimezone().strftime("%d %b %Y, %H:%M")
    except (TypeError, ValueError, OverflowError):
        return DASH


def clock(iso: str) -> str:
    """A UTC time stamp as local time of day."""
    try:
        return datetime.fromisoformat(iso).astimezone().strftime("%H:%M:%S")
    except ValueError:
        return DASH


def plain(text: str) -> str:
    """A person's text, safe inside a Markdown label: every sign that Markdown could take for its own is escaped."""
    return "".join(f"\\{sign}" if sign in r"\`*_{}[]()#+-.!|~<>$:&" else sign for sign in " ".join(text.split()))
