"""`python -m engine.cli.settings_table`: the settings as a Markdown table, for the README (a test holds them equal)."""

from __future__ import annotations

from engine.cli.common import show_default
from engine.config import SETTINGS, flag


def settings_table() -> str:
    """One row a setting: flag, default, range or choices, what it does."""
    rows = ["| flag | default | allowed | what it does |", "|---|---|---|---|"]
    for name, field in SETTINGS.items():
        meta = field.metadata
        if meta["choices"]:
            allowed = ", ".join(f"`{choice}`" for choice in meta["choices"])
        elif meta["minimum"] is not None:
            allowed = f"{meta['minimum']:,} to {meta['maximum']:,}"
        else:
            allowed = "yes or no" if isinstance(field.default, bool) else "a text"
        rows.append(f"| `{flag(name)}` | {show_default(field.default)} | {allowed} | {meta['help']} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(settings_table(), end="")
