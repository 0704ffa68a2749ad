"""Where a run comes from and what was branched from it, as a tree of links."""

from __future__ import annotations

from html import escape
from typing import Any

import streamlit as st

from app.widgets import formats
from app.widgets.actions import run_address
from app.widgets.snapshot import Snapshot
from engine.config import SETTINGS, label
from engine.files import object_in
from engine.run import Run, list_runs

_MOST_UP = 100  # an imported run may name itself as its own grandparent

_CSS = """<style>
.lab-lineage ul { list-style: none; margin: 0; padding-left: 1.4rem; border-left: 1px solid var(--st-border-color) }
.lab-lineage > ul { padding-left: 0; border: 0 }
.lab-lineage li { padding: 0.35rem 0; line-height: 1.5; overflow-wrap: anywhere }
.lab-lineage small { opacity: 0.7; display: block }
.lab-lineage .here { font-weight: 700 }
</style>"""


def lineage(shot: Snapshot) -> None:
    """The run among its ancestors and descendants."""
    runs = {run.id: run for run in list_runs()}
    infos = {run_id: run.info for run_id, run in runs.items()} | {shot.run.id: shot.info}
    children: dict[str, list[str]] = {}
    for run_id in sorted(infos):
        if parent := _parent(infos[run_id]):
            children.setdefault(parent["run"], []).append(run_id)
    tree = _Tree(runs, infos, children, shot.run.id)
    path = tree.path_to(shot.run.id)
    if len(path) == 1 and not children.get(shot.run.id):
        st.caption("This run was started from fresh weights, and nothing was branched from it yet.")
    st.html(f'{_CSS}<div class="lab-lineage"><ul>{tree.down(path)}</ul></div>')
    imported = shot.info.get("imported")
    if isinstance(imported, dict):
        st.caption(
            f"Imported on {formats.moment(imported.get('time'))} from an archive of run "
            f"{formats.plain(str(imported.get('id')))}. Parents that were not imported are named and not linked."
        )


def _parent(info: dict[str, Any]) -> dict[str, Any] | None:
    parent = info.get("parent")
    return parent if isinstance(parent, dict) and isinstance(parent.get("run"), str) else None


class _Tree:
    """The runs as a family; `here` is the one that the page shows."""

    def __init__(
        self, runs: dict[str, Run], infos: dict[str, dict[str, Any]], children: dict[str, list[str]], here: str
    ) -> None:
        self.runs, self.infos, self.children, self.here = runs, infos, children, here
        self._shown: set[str] = set()

    def path_to(self, run_id: str) -> list[str]:
        """Its ancestors, the oldest first, and the run itself."""
        path = [run_id]
        while (parent := _parent(self.infos.get(path[0], {}))) and parent["run"] not in path and len(path) < _MOST_UP:
            path.insert(0, parent["run"])
        return path

    def down(self, path: list[str]) -> str:
        """One item: the first of the path, and below it the rest of the path or, at its end, all descendants."""
        first, rest = path[0], path[1:]
        self._shown.add(first)
        below = self.down(rest) if rest else "".join(self.down([c]) for c in self._children(first))
        return f"<li>{self._line(first)}{f'<ul>{below}</ul>' if below else ''}</li>"

    def _children(self, run_id: str) -> list[str]:
        return [child for child in self.children.get(run_id, []) if child not in self._shown]

    def _line(self, run_id: str) -> str:
        info = self.infos.get(run_id)
        if info is None:
            return f"{escape(run_id)}<small>not in this lab</small>"
        name = escape(str(info.get("name") or run_id))
        link = f'<a class="lab-link" href="{escape(run_address(run_id))}" target="_self">{name}</a>'
        title = f'<span class="here">{name} (this run)</span>' if run_id == self.here else link
        progress = object_in(info, "progress")
        state = self.runs[run_id].state_of(info) if run_id in self.runs else ""
        facts = [
            state,
            f"step {formats.count(progress.get('step'))}",
            f"training loss {formats.loss(progress.get('train_loss'))}",
        ]
        return f"{title}<small>{escape(' · '.join([*facts, *_origin(info)]))}</small>"


def _origin(info: dict[str, Any]) -> list[str]:
    """From which step it was branched, and what was changed."""
    parent = _parent(info)
    if parent is None:
        return []
    changes = parent.get("changes")
    changed = [
        f"{label(name)}: {pair[0]} → {pair[1]}"
        for name, pair in (changes.items() if isinstance(changes, dict) else ())
        if name in SETTINGS and isinstance(pair, list) and len(pair) == 2
    ]
    return [f"branched at step {formats.count(parent.get('step'))}", *changed]
