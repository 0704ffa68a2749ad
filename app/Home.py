"""The lab in the browser: `streamlit run app/Home.py`.

Streamlit imports this file once, for the server, and runs it as `__main__` whenever a page is to be drawn.
"""

import asyncio
import inspect
import pkgutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path

PROJECT = str(Path(__file__).resolve().parents[1])
if PROJECT not in sys.path:  # so that it starts with nothing on PYTHONPATH
    sys.path.insert(0, PROJECT)

import engine  # noqa: E402, F401, I001 - the first: it says how Arrow, which pandas loads, is to use memory

import pandas as pd  # noqa: E402
import streamlit as st  # noqa: E402

from app.widgets import downloads, feed, plot  # noqa: E402
from app.widgets.guard import guard  # noqa: E402
from engine import session  # noqa: E402
from engine.library import list_summaries  # noqa: E402

LISTS = ("corpora", "runs")  # pages that train nothing: loading torch would only keep them from being drawn


@st.cache_resource(show_spinner=False)
def _warm_up() -> None:
    session.warm_up()


def draw() -> None:
    """The page that the address names, below the navigation."""
    st.set_page_config("LLM pretraining lab", page_icon=str(Path(__file__).parent / "assets/icon.svg"), layout="wide")
    st.html(
        "<style>"
        ".stMainBlockContainer { padding-top: 4.5rem; padding-bottom: 4rem; max-width: 90rem }"
        "a.lab-link { color: inherit; font-weight: 600 }"
        "</style>"
    )
    page = st.navigation(
        [
            st.Page("views/home.py", title="Home", icon=":material/home:", default=True),
            st.Page(
                "views/pretraining.py", title="Pretraining", icon=":material/model_training:", url_path="pretraining"
            ),
            st.Page("views/exercises.py", title="Exercises", icon=":material/school:", url_path="exercises"),
            st.Page("views/corpora.py", title="Corpora", icon=":material/menu_book:", url_path="corpora"),
            st.Page("views/runs.py", title="Runs", icon=":material/stacked_line_chart:", url_path="runs"),
            st.Page("views/run.py", title="Run", icon=":material/show_chart:", url_path="run", visibility="hidden"),
        ],
        position="top",
    )
    if page.url_path not in LISTS:
        _warm_up()
    with guard():
        page.run()


def _get_ready() -> None:
    """What the first visitor would wait for; all of it takes a third of a second, and torch stays out of it."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent / "widgets")], "app.widgets."):
        import_module(module.name)
    pd.DataFrame({"": [0.0]}).style.to_html()
    inspect.stack()  # Streamlit asks for it once, and the first time it looks at every module
    list_summaries()


@asynccontextmanager
async def _serving(_app: st.App) -> AsyncIterator[None]:
    """A server that is told to end stops the training in good order; it ends by the signal, so nothing else would."""
    await asyncio.to_thread(_get_ready)
    yield
    downloads.forget()
    await asyncio.to_thread(session.stop_and_wait)


if __name__ == "__main__":
    draw()
else:
    app = st.App(Path(__file__).resolve(), routes=[feed.ROUTE, downloads.ROUTE, plot.LIBRARY], lifespan=_serving)
