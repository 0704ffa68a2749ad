"""What the browser asks for while a run goes on: its numbers and curves, when there is news.

Each run of a Streamlit script costs the browser some 60 ms of the cores that train, whatever it draws, because all
elements of the page are looked through. So a live view is not drawn by scripts that run again and again: the page asks
this route, which answers "no news", or what to change in place. A script runs when what stands around it changes.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.widgets.charts import AXES, View
from app.widgets.numbers import numbers_of
from app.widgets.run_charts import run_charts
from app.widgets.snapshot import Snapshot, snapshot
from engine.errors import RunError
from engine.run import load_run

TICK_S = 1.0
CHARTS_S = 2.0  # charts are sent at most as often as this,
VISIBLE_PARTS = 500  # and when a curve has grown by this part, about a pixel,
PATIENCE_S = 10.0  # or, after this time, at all

# Pages get it through Streamlit, which speaks only to the hosts that it allows: a page elsewhere cannot ask.
_TOKEN = secrets.token_urlsafe(16)


def about(shot: Snapshot, view: View) -> dict[str, Any] | None:
    """What a page needs in order to ask; None when nothing will change any more."""
    if not shot.is_active:
        return None
    query = {"x": view.x, "smoothing": view.smoothing, "log_x": int(view.log_x), "log_y": int(view.log_y)}
    address = f"lab/live/{shot.run.id}?{urlencode({'token': _TOKEN} | query)}"
    return {"address": address, "every": TICK_S} | _marks(shot)


def answer(request: Request) -> Response:
    """204 without news; 200 with numbers, and with charts when they would look different; 410 when the page is old."""
    ask = request.query_params
    if not secrets.compare_digest(ask.get("token", "").encode(), _TOKEN.encode()):
        return Response(status_code=403)
    try:
        view = View(ask["x"], float(ask["smoothing"]), ask["log_x"] == "1", ask["log_y"] == "1")
        known = view.x in AXES and 0 <= view.smoothing < 1
        step, age = int(ask["step"]), float(ask["age"])
        shot = snapshot(load_run(request.path_params["run_id"]))
    except (KeyError, ValueError, RunError):
        return Response(status_code=410)
    marks = _marks(shot)
    if not known or marks["outline"] != ask.get("outline"):
        return Response(status_code=410)
    would_show = _would_show(marks["step"] - step, step, age)
    if marks["version"] == ask.get("version") and not would_show:
        return Response(status_code=204)
    drawn = {"charts": [asdict(chart) for chart in run_charts(shot, view)]} if would_show else {}
    return JSONResponse(marks | numbers_of(shot) | drawn)


def _marks(shot: Snapshot) -> dict[str, Any]:
    """By which a page and this route know whether they speak of the same."""
    marks = {"version": shot.signature, "outline": shot.outline}
    return {name: f"{hash(value):x}" for name, value in marks.items()} | {"step": int(shot.last.get("step", 0))}


def _would_show(news: int, step: int, age_s: float) -> bool:
    """Whether charts of so many steps look different with the new ones: one more does not change a curve of 100,000."""
    return news != 0 and age_s >= CHARTS_S and (news >= step / VISIBLE_PARTS or age_s >= PATIENCE_S)


ROUTE = Route("/lab/live/{run_id}", answer)
